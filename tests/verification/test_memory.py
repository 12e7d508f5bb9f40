"""A thousand classes: what verification holds beside the models is bounded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_NETWORK = """
from torch import nn
from cnndeploy.architectures import Architecture
from cnndeploy.architectures._recipe import Recipe
from cnndeploy.preprocessing import Preprocessing

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 1000))

ARCHITECTURE = Architecture(build, Preprocessing((28, 28)), {"original": Recipe(1, 64, 0.001)}, "none")
"""
_MAKE = """
import cnndeploy
from dataclasses import replace
from cnndeploy.checkpoint import Checkpoint
from cnndeploy.datasets.fashion_mnist import LABELS
from cnndeploy.specs import TensorSpec
fresh = Checkpoint.untrained("wide")
output = TensorSpec("logits", "float32", ("batch", 1000))
labels = (*LABELS, *(f"class {number}" for number in range(990)))
replace(fresh, manifest=replace(fresh.manifest, output=output, labels=labels)).save("wide.pt")
cnndeploy.export("wide.pt", "onnx", "wide.onnx")
"""
_VERIFY = """
from pathlib import Path
from cnndeploy.datasets import fashion_mnist
from cnndeploy.machine import peak_memory_bytes, reset_peak_memory
from cnndeploy.verification.verify import verify
fashion_mnist.load("test")
before = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
reset_peak_memory()
report = verify("wide.onnx", "wide.pt")
assert report.equivalent and report.images == 10_000, report.reasons
print(peak_memory_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc of Linux")
def test_ten_thousand_images_of_a_thousand_classes_take_less_than_200_mb(tmp_path: Path) -> None:
    (tmp_path / "wide_network.py").write_text(_NETWORK)
    facts = tmp_path / "wide_network-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: wide-network\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[cnndeploy.architectures]\nwide = wide_network:ARCHITECTURE\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for script in (_MAKE, _VERIFY):
        done = subprocess.run(
            [sys.executable, "-c", script],
            check=False,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    logits = 10_000 * 1_000 * 4  # bytes of one side
    assert 3 * logits < int(done.stdout) < 200e6  # both sides, and float64
