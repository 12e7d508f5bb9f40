from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnndeploy.artifact import Artifact
from cnndeploy.errors import ArtifactError
from cnndeploy.files import check_writable, held, replacing, scratch_folder, write_file


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_takes_the_place_and_the_permissions_of_an_ordinary_file(tmp_path: Path) -> None:
    path, ordinary = tmp_path / "model.onnx", tmp_path / "ordinary"
    write_file(path, b"before")
    write_file(path, b"after")
    ordinary.touch()
    assert path.read_bytes() == b"after"
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_a_write_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"before")
    link.symlink_to(target)
    write_file(link, b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    """The kernel refuses the write for real: a process may be limited to files of 1 kB."""
    (tmp_path / "model").write_bytes(b"before")
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "from cnndeploy.files import write_file\n"
        "from cnndeploy.errors import ArtifactError\n"
        "try: write_file(sys.argv[1], bytes(4096))\n"
        "except ArtifactError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model"], capture_output=True, text=True, check=True
    )
    assert "was not written" in done.stdout
    assert (tmp_path / "model").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0,
    reason="needs Linux and root, to mount a file system of 64 kB",
)
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=False)  # noqa: S607
    if mounted.returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    try:
        write_file(disk / "model", b"before")
        with pytest.raises(ArtifactError, match="is full; free some space"):
            write_file(disk / "model", bytes(2**20))
        assert (disk / "model").read_bytes() == b"before"
        assert len(list(disk.iterdir())) == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # noqa: S607


def test_a_folder_that_cannot_be_written_to() -> None:
    with pytest.raises(ArtifactError, match="/proc cannot be written to; choose another"):
        write_file("/proc/model", b"")
    with pytest.raises(ArtifactError, match="cannot be written"):
        check_writable("/proc/model")
    for write in (check_writable, lambda path: write_file(path, b"")):
        with pytest.raises(ArtifactError, match="the file name is too long; choose a shorter one"):
            write("a" * 300)


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    path, link = tmp_path / "model", tmp_path / "link"
    path.touch()
    link.symlink_to(path)
    for target in (path, link):
        with pytest.raises(ArtifactError, match="is also an input"):
            check_writable(target, path)
    check_writable(tmp_path / "other", path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist; create it first"):
        write_file(tmp_path / "no" / "model", b"")


@pytest.mark.parametrize("path", ["/dev/null", "."])
def test_only_regular_files_are_replaced(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="not a regular file"):
        write_file(path, b"")
    assert Path(path).exists()


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (b"", "empty"),
        *(
            (content, "damaged or not a model file")
            for content in (b"random bytes" * 50, os.urandom(4096), b"PK\x05\x06" + bytes(18))
        ),
    ],
)
def test_what_is_no_model_is_refused(content: bytes, state: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"model.onnx is {state}.*cnndeploy train and cnndeploy export"):
        Artifact.open(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        Artifact.open(tmp_path / "none.onnx")
    with pytest.raises(ArtifactError, match="is a folder"):
        Artifact.open(tmp_path)


def test_what_killed_processes_left_is_swept_and_what_others_write_is_not(tmp_path: Path) -> None:
    path, other = tmp_path / "a[1].onnx", tmp_path / "b.onnx"
    left, strange = tmp_path / ".a[1].onnx.0123456789ab.tmp", tmp_path / ".a[1].onnx.notes.tmp"
    for one in (left, strange, other):
        one.touch()
        os.utime(one, (1, 1))
    with replacing(path) as temporary:
        os.utime(temporary, (1, 1))  # slow, and still at work
        write_file(path, b"meanwhile")
        assert not left.exists()
        temporary.write_bytes(b"at last")
    assert path.read_bytes() == b"at last"
    assert set(tmp_path.iterdir()) == {path, strange, other}


def test_temporary_folders_that_killed_processes_left_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left, strange = tmp_path / ".cnndeploy-scratch-a1", tmp_path / "cnndeploy-demo"
    for one in (left, strange):
        one.mkdir()
        (one / "logits.npy").touch()
        os.utime(one, (1, 1))
    with scratch_folder() as slow:
        os.utime(slow, (1, 1))  # and still at work
        with scratch_folder() as other:
            assert set(tmp_path.iterdir()) == {strange, slow, other}
    assert list(tmp_path.iterdir()) == [strange]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with (
        pytest.raises(ArtifactError, match=r"no temporary folder could be made.*set TMPDIR"),
        scratch_folder(),
    ):
        pass


def test_a_process_that_is_killed_while_it_tries_an_output_leaves_what_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lenet.onnx"
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", lambda *_, **__: None)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        check_writable(path)
    (left,) = tmp_path.iterdir()
    os.utime(left, (1, 1))
    write_file(path, b"")
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lenet.pt"
    code = "import sys\nfrom cnndeploy.files import held\nwith held(sys.argv[1]):\n print(1, flush=True)\n input()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with (
            pytest.raises(ArtifactError, match=r"another process works on .*lenet\.pt; wait until"),
            held(path),
        ):
            pass
        other.kill()
        other.wait()
    with held(path):  # the lock file that was left is nobody's
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_files_cannot_be_locked_nothing_of_others_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path, left, folder = (tmp_path / name for name in ("a", ".a.0123456789ab.tmp", ".cnndeploy-scratch-a1"))
    left.touch()
    folder.mkdir()
    for one in (left, folder):
        os.utime(one, (1, 1))
    with scratch_folder(), held(path):
        write_file(path, b"")
    assert set(tmp_path.iterdir()) == {path, left, folder}
