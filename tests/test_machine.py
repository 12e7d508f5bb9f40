"""How many CPUs a process may use, by a made-up /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cnndeploy.machine import usable_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


V1_MOUNT = "33 31 0:30 {shown} /sys/fs/cgroup/{place} rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
V2_MOUNT = "33 31 0:30 {shown} {place} rw shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        ({"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),  # Docker, version 2
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "1600000 100000\n"}, 8),  # more than the cpuset has
        ({"sys/fs/cgroup/cpu.max": "nonsense"}, 8),
        ({"sys/fs/cgroup/cpu.max": "100000 0"}, 8),
        (  # systemd, CPUQuota of a service
            {
                "proc/self/cgroup": "0::/system.slice/shop.service\n",
                "sys/fs/cgroup/system.slice/shop.service/cpu.max": "100000 100000\n",
            },
            1,
        ),
        (  # the slice around it has the smaller quota
            {
                "proc/self/cgroup": "0::/a.slice/b.service\n",
                "sys/fs/cgroup/a.slice/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a.slice/b.service/cpu.max": "400000 100000\n",
            },
            2,
        ),
        ({"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
        (
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            8,
        ),
        (
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (  # version 1, as Docker mounts a container's own cgroup
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/1f\n0::/\n",
                "proc/self/mountinfo": V1_MOUNT.format(shown="/docker/1f", place="cpu,cpuacct"),
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (  # a cgroup within a container's
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/kubepods/pod7/c/inner\n",
                "proc/self/mountinfo": V1_MOUNT.format(shown="/kubepods/pod7/c", place="cpu"),
                "sys/fs/cgroup/cpu/inner/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/inner/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (  # mounted elsewhere
            {
                "proc/self/cgroup": "0::/x\n",
                "proc/self/mountinfo": V2_MOUNT.format(shown="/", place="/dev/cgroup"),
                "dev/cgroup/x/cpu.max": "500000 100000\n",
            },
            5,
        ),
    ],
)
def test_the_smallest_quota_around_the_process_counts(
    files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cpus(tmp_path) == expected
