"""Test the CUDA path on this machine, all of it in one command. See docs/GPU.md.

The most informative stages run first. Each has its own time limit, and each is written to disk as it ends: gpu.md,
gpu.json, details.json and log.txt in the output's folder. The report names what there was no time for. Run it with a
Python that has cnndeploy with the extras gpu, torch and dev. On a machine without a network, put wheels and data in a
folder .gpu.

    make gpu
    .venv/bin/python benchmarks/gpu.py --minutes 40 --output build/gpu
    .venv/bin/python benchmarks/gpu.py --dry                # the stages on the CPU, with the smallest settings
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CARRIED = HERE.parent / ".gpu"
# The lines of a command's output that tell how it went.
TELLING = (
    "Error", "Warning", "equivalent", "within budget", "against float64", "artifact was run", "epoch ", "times as fast",
    "usable", "OK ", "FAIL", "passed", "failed", "FAILED", "Wrote", "cuda", " on cpu", "GPU",
)  # fmt: skip
_MOST_LINES = 12
_GRACE_S = 10  # for a command that is asked to end
_NETWORKS = ("nin", "alexnet", "vgg11")


@dataclass(frozen=True)
class Command:
    """A command line of a stage; ``module`` is what Python runs, ``fails`` whether it should exit with an error."""

    arguments: Sequence[str]
    module: str = "cnndeploy"
    fails: bool = False


@dataclass(frozen=True)
class Stage:
    """Commands that run one after the other, within ``seconds`` together."""

    name: str
    seconds: float
    commands: Sequence[Command]


@dataclass
class Outcome:
    """What came of a command; ``exit`` is None if its time was over."""

    stage: str
    command: str
    exit: int | None
    seconds: float
    ok: bool
    said: list[str] = field(default_factory=list)


class Machine:
    """A folder in which stages run, the environment of their commands, and the time that is left."""

    def __init__(self, output: Path, minutes: float, dry: bool) -> None:
        self.output, self.dry = output, dry
        self.device = "cpu" if dry else "cuda"
        self.ends = time.monotonic() + 60 * minutes
        output.mkdir(parents=True, exist_ok=True)
        self.work = Path(tempfile.mkdtemp(prefix="cnndeploy-gpu-"))
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
        if CARRIED.is_dir():
            self._unpack()

    def _unpack(self) -> None:
        """Make what was carried here importable: ONNX Runtime, cnndeploy and the data set."""
        site, data = self.work / "site", self.work / "data" / "FashionMNIST" / "raw"
        site.mkdir(exist_ok=True)
        data.mkdir(parents=True, exist_ok=True)
        for archive in CARRIED.glob("*.tar.xz"):
            with tarfile.open(archive) as file:
                file.extractall(site, filter="data")
        for wheel in CARRIED.glob("*.whl"):
            with zipfile.ZipFile(wheel) as zipped:
                zipped.extractall(site)  # noqa: S202 - of our own making
        for packed in CARRIED.glob("*ubyte.gz"):
            with gzip.open(packed) as source, (data / packed.stem).open("wb") as target:
                shutil.copyfileobj(source, target)
        self.environment |= {"PYTHONPATH": str(site), "CNNDEPLOY_DATA": str(self.work / "data")}

    @property
    def left_s(self) -> float:
        """The seconds that are left."""
        return self.ends - time.monotonic()

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Write the report so far: few files, for not every machine gives back many."""
        reports = {
            path.name: json.loads(path.read_text())
            for path in sorted(self.work.glob("*.json"))
            if not path.name.endswith(".verified.json")
        }
        (self.output / "gpu.json").write_text(json.dumps([asdict(one) for one in outcomes], indent=1))
        (self.output / "details.json").write_text(json.dumps(reports, indent=1))
        (self.output / "gpu.md").write_text(report_of(outcomes, self))

    def run(self, stage: Stage) -> Iterator[Outcome]:
        """Run a stage's commands, and yield what came of each; leave out the rest if the stage's time is over."""
        stage_ends = time.monotonic() + min(stage.seconds, self.left_s)
        for command in stage.commands:
            start = time.monotonic()
            shown = " ".join([command.module, *command.arguments])
            if (left := stage_ends - start) < 1:
                yield Outcome(stage.name, shown, None, 0, ok=False, said=["not run: the time was over"])
                continue
            program = [] if command.module.endswith(".py") else ["-m"]
            line = [sys.executable, *program, command.module, *command.arguments]
            code, text = _run(line, self.work, self.environment, left)
            with (self.output / "log.txt").open("a") as log:
                log.write(f"\n== {stage.name}: {shown}\n{text}\n== exit {code}\n")
            said = [
                text_line.strip() for text_line in text.splitlines() if any(t in text_line for t in TELLING)
            ]
            ok = code is not None and (code != 0) == command.fails
            seconds = time.monotonic() - start
            yield Outcome(stage.name, shown, code, round(seconds, 1), ok, said[-_MOST_LINES:])


def _run(
    line: Sequence[str], folder: Path, environment: dict[str, str], seconds: float
) -> tuple[int | None, str]:
    """Run a command for at most so long; return its exit code, None if it was ended, and what it printed.

    At first it is asked to end, for then commands write what they have.
    """
    with tempfile.TemporaryFile(
        "w+", errors="replace"
    ) as printed:  # a pipe may be held open by what it started
        process = subprocess.Popen(  # noqa: S603 - our own command
            line,
            cwd=folder,
            env=environment,
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
        printed.seek(0)
        text = printed.read()
    return code, text if code is not None else f"{text}\nended after {seconds:.0f} s"


def _of(*arguments: object) -> Command:
    return Command([str(argument) for argument in arguments])


def _check(name: str, *arguments: object) -> Command:
    return Command([name, *map(str, arguments)], str(HERE / "_gpu_checks.py"))


def stages(machine: Machine) -> Iterator[Stage]:
    """Yield the stages, the one that tells most first."""
    dry, device = machine.dry, machine.device
    on = ("--device", device)
    few = ("--images", 64) if dry else ()
    yield Stage("machine", 60, [_check("machine"), _of("list")])
    yield Stage(
        "lenet: train and export",
        150,
        [
            _of(
                "train",
                "lenet",
                "--output",
                "lenet.pt",
                *on,
                *(("--epochs", 1, "--images", 512) if dry else ()),
            ),
            _of("export", "lenet.pt", "--format", "onnx"),
            _of("export", "lenet.pt", "--format", "torchscript"),
        ],
    )
    yield Stage("sessions", 90, [_check("sessions", device)])
    yield Stage("lenet: proof", 120, [*_proofs("lenet", device, few, ("onnx", "torchscript", "pt"))])
    yield Stage("lenet: float16", 90, [*_half("lenet", machine)])
    runtimes = ("eager", "compiled", "torchscript", "onnxruntime", "raw-onnxruntime")
    yield Stage("lenet: speed", 150, [_bench("lenet", machine, *runtimes)])
    yield Stage("training is repeatable", 60, [_check("training", device, *(("--dry",) if dry else ()))])
    yield Stage(
        "googlenet: train and export",
        150,
        [
            _of(
                *("train", "googlenet", "--output", "googlenet.pt", "--precision", "bfloat16", *on),
                *(("--epochs", 1, "--images", 64) if dry else ("--epochs", 2)),
            ),
            _of("export", "googlenet.pt", "--format", "onnx"),
        ],
    )
    some = ("--images", 16 if dry else 1000)
    yield Stage("googlenet: proof", 90, [*_proofs("googlenet", device, some, ("onnx",))])
    if not dry:  # it takes a network that is right now and then
        yield Stage("googlenet: float16", 60, [*_half("googlenet", machine)])
    yield Stage("googlenet: speed", 90, [_bench("googlenet", machine, "eager", "onnxruntime")])
    nets = ("lenet",) if dry else ("lenet", "googlenet")
    yield Stage("variants of ONNX Runtime's options", 120, [_check("variants", device, *nets)])
    minutes = 1 if dry else 2
    yield Stage(
        "lenet: a deployment",
        240,  # the first round of the race is finished whatever the time
        [
            _of("tune", "lenet.pt", "--output", "lenet.deploy", "--max-minutes", minutes, *on),
            _of("bench", "lenet.pt", "lenet.deploy", "--seconds", 0.2 if dry else 3, "--cold-start", 1, *on),
        ],
    )
    for name in _NETWORKS[:1] if dry else _NETWORKS:
        epochs = ("--epochs", 0) if dry else ("--epochs", 2, "--precision", "bfloat16")
        yield Stage(
            f"{name}: all of it",
            240,
            [
                _of("train", name, "--output", f"{name}.pt", *on, *epochs),
                _of("export", f"{name}.pt", "--format", "onnx"),
                *_proofs(name, device, ("--images", 8 if dry else 500), ("onnx",)),
                _bench(name, machine, "eager", "onnxruntime"),
            ],
        )
    tests = HERE.parent / "tests" / "contract" / "test_runtimes.py"
    chosen = ("-k", "closed_session or default_runtime") if dry else ()
    yield Stage(
        "contract tests",
        120,
        [Command(["-q", "--maxfail=30", "-p", "no:cacheprovider", *chosen, str(tests)], "pytest")],
    )


def _proofs(name: str, device: str, images: Sequence[object], kinds: Sequence[str]) -> Iterator[Command]:
    """Yield verifications of a network's files against its checkpoint, in float32 and on a GPU in TF32."""
    against = ("--against", f"{name}.pt", "--device", device, *images)
    for kind in kinds:
        if kind == "pt":  # which is not verified against itself
            yield _of("evaluate", f"{name}.pt", "--device", device, *images)
        else:
            yield _of("verify", f"{name}.{kind}", *against, "--json", f"{name}.{kind}.json")
    if device == "cuda":
        yield _of("verify", f"{name}.onnx", *against, "--precision", "tf32")


def _half(name: str, machine: Machine) -> Iterator[Command]:
    """Yield what makes a float16 file, verifies it and times it beside the float32 one."""
    images = ("--images", 64 if machine.dry else 2000)
    # so few images tell little of a loss
    budget = ("--budget", 100 if machine.dry else 0.5)
    on = ("--device", machine.device)
    yield _of("quantize", f"{name}.pt", "--precision", "float16", *budget, *images, *on)
    half = f"{name}.float16.onnx"
    yield _of("verify", half, "--against", f"{name}.pt", *budget, *images, *on)
    yield _of("bench", f"{name}.onnx", half, *_short(machine), *on)


def _short(machine: Machine) -> Sequence[object]:
    return (
        "--seconds",
        0.2 if machine.dry else 2,
        "--cold-start",
        0,
        "--batch-size",
        "1" if machine.dry else "1,64",
    )


def _bench(name: str, machine: Machine, *runtimes: str) -> Command:
    """Return the benchmark of a network on these runtimes, in float32 and on a GPU in TF32 and with CUDA graphs."""
    by = [word for runtime in runtimes for word in ("--runtime", runtime)]
    files = [f"{name}.pt", f"{name}.onnx", *([f"{name}.torchscript"] if "torchscript" in runtimes else [])]
    precisions = () if machine.dry else ("--precision", "float32,tf32", "--cuda-graphs")
    report = ("--markdown", f"{name}.md", "--json", f"{name}.bench.json")
    return _of("bench", *files, *by, *precisions, *_short(machine), "--device", machine.device, *report)


def report_of(outcomes: Sequence[Outcome], machine: Machine) -> str:
    """Return the report in Markdown."""
    lines = ["| stage | command | exit | seconds | |", "| --- | --- | ---: | ---: | --- |"]
    for one in outcomes:
        shown = one.command.replace(str(HERE) + "/", "").replace("|", "\\|")
        code = "-" if one.exit is None else one.exit
        lines.append(
            f"| {one.stage} | `{shown}` | {code} | {one.seconds:.1f} | {'ok' if one.ok else '**no**'} |"
        )
    for one in outcomes:
        if one.said:
            lines += ["", f"`{one.command.replace(str(HERE) + '/', '')}`:", "", "```", *one.said, "```"]
    for table in sorted(machine.work.glob("*.md")):
        lines += ["", f"## {table.stem}", "", table.read_text().strip()]
    return "\n".join(lines) + "\n"


def has_gpu() -> bool:
    """Return whether NVIDIA's driver is there and has a GPU, without any package."""
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Test the CUDA path on this machine.")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all stages (default: 8)")
    parser.add_argument("--output", type=Path, help="a folder (default: build/gpu, or build/gpu-dry)")
    parser.add_argument(
        "--dry", action="store_true", help="run the stages on the CPU, with the smallest settings"
    )
    arguments = parser.parse_args()
    if not arguments.dry and not has_gpu():
        sys.exit("There is no NVIDIA GPU that works here; --dry runs the stages on the CPU.")
    output: Path = (arguments.output or Path("build", "gpu-dry" if arguments.dry else "gpu")).absolute()
    machine = Machine(output, arguments.minutes, arguments.dry)
    (output / "log.txt").write_text("")
    outcomes: list[Outcome] = []
    try:
        for stage in stages(machine):
            print(f"[{machine.left_s:4.0f} s left] {stage.name}", flush=True)
            for outcome in machine.run(stage):
                outcomes.append(outcome)
                said = f": {outcome.said[-1][:100]}" if outcome.said else ""
                print(f"    {'ok' if outcome.ok else 'NO'}  {outcome.seconds:5.1f} s{said}", flush=True)
                machine.write(outcomes)
    finally:
        shutil.rmtree(machine.work, ignore_errors=True)
    bad = sum(not one.ok for one in outcomes)
    print(f"{len(outcomes) - bad} of {len(outcomes)} commands as expected; see {output / 'gpu.md'}")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
