"""``cnndeploy bench``: time model files side by side."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy.benchmark.raw import RAW
from cnndeploy.cli import _common as common
from cnndeploy.cli._progress import progress_bar
from cnndeploy.cli._run_options import PRECISIONS
from cnndeploy.cli._stop import PoliteStop
from cnndeploy.errors import BenchmarkError, CnndeployError
from cnndeploy.files import check_writable, make_folder, write_file
from cnndeploy.words import counted

if TYPE_CHECKING:
    from cnndeploy.benchmark.baseline import Comparison
    from cnndeploy.benchmark.report import BenchmarkReport

_REGRESSED = 4
_OUTPUTS = ("csv", "markdown", "html", "plots")  # options beside --json


class _Threads(click.ParamType[int | str]):
    name = "threads"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        return "auto" if value == "auto" else common.THREADS.convert(value, param, ctx)


@click.command()
@click.argument("sources", type=common.PATH, nargs=-1, required=True, metavar="FILES...")
@click.option(
    "--runtime",
    "runtimes",
    type=common.RegisteredName("runtimes", *RAW),
    multiple=True,
    metavar="RUNTIME",
    help="What runs the files; repeatable. raw-* call the library as a plain script does.  "
    "[default: each format's own]",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=common.CommaList(common.COUNT),
    multiple=True,
    metavar="N,N,...",
    help="Images in one call.  [default: 1]",
)
@click.option(
    "--threads",
    type=common.CommaList(_Threads()),
    multiple=True,
    metavar="N,N,...|auto",
    help="CPU threads; auto takes one if more are no faster.  [default: as planned, else all usable CPUs]",
)
@common.device_option
@click.option(
    "--precision",
    "precisions",
    type=common.CommaList(PRECISIONS),
    multiple=True,
    metavar="float32,tf32,bfloat16",
    help="What float32 files are computed in, each where a runtime can.  [default: as planned, else float32]",
)
@click.option(
    "--cuda-graphs",
    is_flag=True,
    help="On a GPU, time each file with CUDA graphs too, if its runtime has them.",
)
@click.option(
    "--end-to-end", is_flag=True, help="Time the way from raw images to labels, not the model alone."
)
@click.option(
    "--data",
    metavar="fashion-mnist|DIR",
    help="The images for --end-to-end.  [default: what the model was made on, else random ones]",
)
@click.option(
    "--until",
    type=common.POSITIVE,
    default=0.02,
    help="Stop when every ratio is known to within this share; 0.02 is 2%.",
)
@click.option(
    "--seconds",
    type=common.POSITIVE,
    default=20.0,
    help="Time limit in seconds for each candidate and batch size.",
)
@click.option(
    "--cold-start",
    "cold_starts",
    type=common.Whole(0, 100),
    default=3,
    help="Fresh processes to start for each candidate.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=common.POSITIVE,
    default=600.0,
    help="Seconds after which a candidate that does not answer is killed.",
)
@click.option("--seed", type=int, metavar="N", default=0, help="Random seed for the order in each round.")
@click.option(
    "--self-test",
    is_flag=True,
    help="Time one file against itself; exit 1 if either wins or the machine is busy.",
)
@click.option(
    "--compare",
    "baseline",
    type=common.PATH,
    metavar="JSON",
    help="Compare with an earlier --json; exit 4 if a row got slower, 1 if that cannot be told.",
)
@click.option("--any-machine", is_flag=True, help="Compare although the baseline is from another machine.")
@common.json_file_option
@click.option("--html", type=common.PATH, metavar="FILE", help="Write a web page with plots, in one file.")
@click.option("--csv", type=common.PATH, metavar="FILE", help="Write the rows as CSV.")
@click.option("--markdown", type=common.PATH, metavar="FILE", help="Write the table as Markdown.")
@common.source_option
@click.option("--plots", type=common.PATH, metavar="FOLDER", help="Write each plot as SVG and PNG.")
def command(
    sources: tuple[Path, ...],
    batch_sizes: tuple[tuple[int, ...], ...],
    threads: tuple[tuple[Any, ...], ...],
    device: str | None,
    precisions: tuple[tuple[Any, ...], ...],
    self_test: bool,
    baseline: Path | None,
    any_machine: bool,
    json_file: str | None,
    **settings: Any,
) -> None:
    """Time model files against the first of them.

    Each file runs in a process of its own. They take turns in random order, and each ratio is taken within a round. The
    verdict is FASTER or SLOWER if the whole 95% interval of the ratio lies more than 2% away from 1, SAME if it lies
    within 2%, and AMBIGUOUS otherwise. It is BUSY, and nothing is judged, if other programs keep the machine busy.

    \b
    Examples:
      cnndeploy bench lenet.pt lenet.onnx --batch-size 1,64 --html bench.html
      cnndeploy bench lenet.pt lenet.onnx --runtime eager --runtime openvino
      cnndeploy bench lenet.pt lenet.onnx --compare baseline.json
    """
    from cnndeploy.benchmark.bench import bench

    counts = list(chain(*threads))
    several = (settings["runtimes"], counts, [*chain(*precisions)])
    if self_test and (
        len(sources) != 1 or any(len(given) > 1 for given in several) or settings["cuda_graphs"]
    ):
        raise click.UsageError(
            "--self-test takes one file and at most one --runtime, one --precision and one number of --threads; it "
            "does not take --cuda-graphs"
        )
    outputs = {name: path for name in _OUTPUTS if (path := settings.pop(name)) is not None}
    _check(outputs, json_file, sources if baseline is None else (*sources, baseline))
    before = None if baseline is None else _read_baseline(baseline, any_machine)
    with PoliteStop() as stop, progress_bar("Starting", refreshes_a_second=1, stop=stop) as update:
        report = bench(
            sources * 2 if self_test else sources,
            batch_sizes=list(chain(*batch_sizes)) or [1],
            threads=counts,
            device=device or "",
            precisions=list(chain(*precisions)),
            should_stop=stop,
            progress=update,
            **settings,
        )
    judged = _write(report, before, json_file, outputs)
    raise SystemExit(stop.exit_code if report.interrupted else _outcome(report, judged, self_test))


def _check(outputs: dict[str, Path], json_file: str | None, inputs: tuple[Path, ...]) -> None:
    """Find out before the work what would keep its report from being written."""
    files = [path for name, path in outputs.items() if name != "plots"]
    reports = [*files, *([] if json_file in (None, "-") else [Path(json_file)])]
    if len({file.absolute() for file in reports}) < len(reports):
        raise click.UsageError("two reports are to be written to the same file")
    if outputs.keys() & {"html", "plots"}:
        importlib.import_module("cnndeploy.display.plots")  # it needs matplotlib
    for file in files:
        check_writable(file, *inputs)
    if "plots" in outputs:
        make_folder(outputs["plots"])


def _write(
    report: BenchmarkReport, before: BenchmarkReport | None, json_file: str | None, outputs: dict[str, Path]
) -> Comparison | None:
    """Write the JSON before all else, then what is made of it; raise the first error once all was tried."""
    from cnndeploy.benchmark.baseline import compare
    from cnndeploy.display.benchmark_tables import benchmark_table, comparison_table

    judged, errors = None, list[Exception]()

    @contextlib.contextmanager
    def attempt() -> Iterator[None]:
        try:
            yield
        except (CnndeployError, OSError) as error:
            errors.append(error)

    with attempt():
        if before is not None:
            judged = compare(report, before, any_machine=True)  # that was checked before the work
    with attempt():
        comparison = {} if judged is None else {"comparison": judged.to_dict()}
        common.write_json(json_file, report.to_dict() | comparison)
    with attempt():
        console = common.console_for(json_file)
        console.print(benchmark_table(report))
        if judged is not None:
            console.print(comparison_table(judged))
    common.say_wrote(json_file, json_file=json_file)
    for name, path in outputs.items():
        with attempt():
            common.say_wrote(*_write_output(name, path, report), json_file=json_file)
    if errors:
        raise errors[0]
    return judged


def _write_output(name: str, path: Path, report: BenchmarkReport) -> list[Path]:
    """Write what one of the options asks for; return the files. Plots go to a folder."""
    from cnndeploy.display import benchmark_tables, rows

    if name == "plots":
        from cnndeploy.display.plots import benchmark_plots

        drawn = benchmark_plots(report)
        for stem, plot in drawn.items():
            write_file(path / f"{stem}.svg", plot.svg())
            write_file(path / f"{stem}.png", plot.png())
        return [path / f"{stem}{suffix}" for stem in drawn for suffix in (".svg", ".png")]
    if name == "html":
        from cnndeploy.display.page import render_benchmark

        text = render_benchmark(report, common.command_line())
    else:
        text = (rows.as_csv if name == "csv" else benchmark_tables.benchmark_markdown)(report)
    write_file(path, text.encode("utf-8", "backslashreplace"))
    return [path]


def _read_baseline(path: Path, any_machine: bool) -> BenchmarkReport:
    """Return an earlier report, if it is of this machine or of any that will do."""
    from cnndeploy.benchmark.baseline import check_machine
    from cnndeploy.benchmark.report import BenchmarkReport
    from cnndeploy.machine import environment

    try:
        before = BenchmarkReport.from_json(path.read_text())
    except (OSError, UnicodeDecodeError, BenchmarkError) as error:
        raise BenchmarkError(f"{path} cannot be compared with: {error}") from error
    try:
        check_machine(environment(), before, any_machine=any_machine)
    except BenchmarkError as error:
        raise BenchmarkError(f"{error} To compare all the same: --any-machine") from error
    return before


def _outcome(report: BenchmarkReport, judged: Comparison | None, self_test: bool) -> int:
    """Return the exit code."""
    if self_test and not report.failures:
        failure, result = _tested(report)
        common.say(f"Error: {failure}." if failure else result, err=True)
        if failure:
            return 1
    if report.failures or (judged is not None and judged.undecided):
        return 1
    return _REGRESSED if judged is not None and judged.slower else 0


def _tested(report: BenchmarkReport) -> tuple[str, str]:
    """Return why a file was not found to be as fast as itself, empty if nothing says so; and what was found."""
    rows = [row for row in report.results if row.verdict != "REFERENCE"]
    if report.was_busy:
        return "the machine was busy with other programs; repeat the self-test when it is idle", ""
    for row in rows:
        if row.verdict in ("FASTER", "SLOWER"):
            noisy = "this machine is too noisy now for a benchmark to be believed"
            return f"a file was found to be {row.verdict} than itself: {noisy}", ""
    rounds = counted(min(row.rounds for row in rows), "round")
    if any(row.verdict == "AMBIGUOUS" for row in rows):
        wide = "but an interval is too wide to say SAME; --seconds allows more rounds"
        return "", f"Self-test undecided: no winner between a file and itself in {rounds}, {wide}."
    return "", f"Self-test passed: a file is as fast as itself in {rounds}."
