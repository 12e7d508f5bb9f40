"""``cnndeploy bench``: time model files side by side."""

from __future__ import annotations

import importlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cnndeploy.benchmark.raw import RAW
from cnndeploy.cli._common import (
    INTERRUPTED,
    PATH,
    POSITIVE,
    POSITIVE_NUMBER,
    TERMINATED,
    CommaList,
    PoliteStop,
    RegisteredName,
    console_for,
    json_file_option,
    progress_bar,
    write_json,
)
from cnndeploy.errors import BenchmarkError, CnndeployError

if TYPE_CHECKING:
    from cnndeploy.benchmark.baseline import Comparison
    from cnndeploy.benchmark.report import BenchmarkReport

_REGRESSED = 4


class _Threads(click.ParamType[int | str]):
    name = "threads"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        return "auto" if value == "auto" else click.IntRange(min=1, max=256).convert(value, param, ctx)


@click.command()
@click.argument("sources", type=PATH, nargs=-1, required=True, metavar="FILES...")
@click.option(
    "--runtime",
    "runtimes",
    type=RegisteredName("runtimes", *RAW),
    multiple=True,
    metavar="RUNTIME",
    help="What runs the files; repeatable. Those named raw are as a plain script uses them.  [default: each format's]",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=CommaList(POSITIVE),
    multiple=True,
    metavar="N,N,...",
    help="Images in one call.  [default: 1]",
)
@click.option(
    "--threads",
    type=CommaList(_Threads()),
    multiple=True,
    metavar="N,N,...|auto",
    help="CPU threads; auto takes one if more are no faster.  [default: as planned, or all usable CPUs]",
)
@click.option(
    "--device",
    metavar="cpu|cuda[:N]",
    help="Fails if unavailable; never falls back.  [default: as planned, or cpu]",
)
@click.option("--end-to-end", is_flag=True, help="From raw uint8 images to labels, not the model alone.")
@click.option(
    "--until",
    type=POSITIVE_NUMBER,
    default=0.02,
    show_default=True,
    help="Stop when every ratio is known to this share.",
)
@click.option(
    "--seconds",
    type=POSITIVE_NUMBER,
    default=20.0,
    show_default=True,
    help="Or after so many seconds for each candidate and batch size.",
)
@click.option(
    "--cold-start",
    "cold_starts",
    type=click.IntRange(min=0, max=100),
    default=3,
    show_default=True,
    help="Fresh processes to start for each candidate.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=POSITIVE_NUMBER,
    default=600.0,
    show_default=True,
    help="Seconds after which a candidate that does not answer is ended.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order in each round.")
@click.option("--self-test", is_flag=True, help="Time the one file against itself; exit 1 if either wins.")
@click.option(
    "--compare", "baseline", type=PATH, metavar="JSON", help="An earlier --json; exit 4 if a line got slower."
)
@click.option("--any-machine", is_flag=True, help="Compare though the baseline is of another machine.")
@json_file_option
@click.option("--html", type=PATH, metavar="FILE", help="Write a page with plots, in one file.")
@click.option("--csv", type=PATH, metavar="FILE", help="Write the rows as CSV.")
@click.option("--markdown", type=PATH, metavar="FILE", help="Write the table as Markdown.")
@click.option("--plots", type=PATH, metavar="FOLDER", help="Write each plot as SVG and PNG.")
def command(
    sources: tuple[Path, ...],
    batch_sizes: tuple[tuple[int, ...], ...],
    threads: tuple[tuple[Any, ...], ...],
    device: str | None,
    self_test: bool,
    baseline: Path | None,
    any_machine: bool,
    json_file: str | None,
    html: Path | None,
    csv: Path | None,
    markdown: Path | None,
    plots: Path | None,
    **settings: Any,
) -> None:
    """Time model files against the first of them.

    Each runs in a process of its own; they take turns in random order, and ratios are taken within a turn. FASTER and
    SLOWER are said if the 95% interval of the ratio lies wholly beyond 2%, SAME if it lies within.

    \b
    Example:
      cnndeploy bench lenet.pt lenet.onnx lenet.torchscript --batch-size 1,64 --html bench.html
      cnndeploy bench lenet.pt lenet.onnx --runtime eager --runtime onnxruntime --runtime openvino --threads 1,2
      cnndeploy bench lenet.onnx --compare baseline.json
    """
    from cnndeploy.benchmark.bench import bench

    counts = list(chain(*threads))
    if self_test and (len(sources) != 1 or len(settings["runtimes"]) > 1 or len(counts) > 1):
        raise click.UsageError("--self-test takes one file, one --runtime and one number of --threads")
    outputs = _Outputs(json_file, html, csv, markdown, plots)
    outputs.check(sources if baseline is None else (*sources, baseline))
    before = None if baseline is None else _read_baseline(baseline, any_machine)
    with progress_bar("Starting", refreshes_a_second=1) as update, PoliteStop() as stop:
        report = bench(
            sources * 2 if self_test else sources,
            batch_sizes=list(chain(*batch_sizes)) or [1],
            threads=counts,
            device=device or "",
            should_stop=stop,
            progress=update,
            **settings,
        )
    judged = outputs.write(report, before, any_machine)
    if report.interrupted:
        raise SystemExit(TERMINATED if stop.signal == signal.SIGTERM else INTERRUPTED)
    raise SystemExit(_outcome(report, judged, self_test))


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Where a report goes, beside the terminal; ``json_file`` may be ``-``."""

    json_file: str | None
    html: Path | None
    csv: Path | None
    markdown: Path | None
    plots: Path | None

    def check(self, inputs: tuple[Path, ...]) -> None:
        """Find out before the work what would keep its report from being written."""
        from cnndeploy.files import check_writable, make_folder

        json_file = None if self.json_file in (None, "-") else Path(self.json_file)
        files = [file for file in (json_file, self.html, self.csv, self.markdown) if file]
        if len({file.absolute() for file in files}) < len(files):
            raise click.UsageError("two reports are to be written to the same file")
        if self.html or self.plots:
            importlib.import_module("cnndeploy.display.plots")  # it needs matplotlib
        for file in files:
            check_writable(file, *inputs)
        if self.plots is not None:
            make_folder(self.plots)

    def write(
        self, report: BenchmarkReport, before: BenchmarkReport | None, any_machine: bool
    ) -> Comparison | None:
        """Write the JSON before all else, then what is made of it; raise the first error once all was tried."""
        from cnndeploy.benchmark.baseline import compare

        judged, errors = None, list[Exception]()
        try:
            if before is not None and not report.interrupted:
                judged = compare(report, before, any_machine=any_machine)
        except CnndeployError as error:
            errors.append(error)
        for step in self._steps(report, judged):
            try:
                step()
            except (CnndeployError, OSError) as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return judged

    def _steps(self, report: BenchmarkReport, judged: Comparison | None) -> Iterator[Callable[[], None]]:
        if (json_file := self.json_file) is not None:
            comparison = {} if judged is None else {"comparison": judged.to_dict()}
            yield lambda: write_json(json_file, report.to_dict() | comparison)
        yield lambda: self._print(report, judged)
        if (csv := self.csv) is not None:
            from cnndeploy.display.rows import as_csv

            yield lambda: _write_text(csv, as_csv(report))
        if (markdown := self.markdown) is not None:
            from cnndeploy.display.benchmark_tables import benchmark_markdown

            yield lambda: _write_text(markdown, benchmark_markdown(report))
        if (html := self.html) is not None:
            from cnndeploy.display.page import render_benchmark

            command = shlex.join(["cnndeploy", *sys.argv[1:]])
            yield lambda: _write_text(html, render_benchmark(report, command))
        if (plots := self.plots) is not None:
            yield lambda: _write_plots(plots, report)

    def _print(self, report: BenchmarkReport, judged: Comparison | None) -> None:
        from cnndeploy.display.benchmark_tables import benchmark_table, comparison_table

        console = console_for(self.json_file)
        console.print(benchmark_table(report))
        if judged is not None:
            console.print(comparison_table(judged))


def _write_text(path: Path, text: str) -> None:
    from cnndeploy.files import write_file

    write_file(path, text.encode("utf-8", "backslashreplace"))


def _write_plots(folder: Path, report: BenchmarkReport) -> None:
    from cnndeploy.display.plots import benchmark_plots
    from cnndeploy.files import make_folder, write_file

    make_folder(folder)
    for name, plot in benchmark_plots(report).items():
        write_file(folder / f"{name}.svg", plot.svg())
        write_file(folder / f"{name}.png", plot.png())


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
        second = report.results[-1]
        if second.verdict in ("FASTER", "SLOWER"):
            noisy = "this machine is too noisy now for a benchmark to be believed"
            click.echo(f"Error: a file was found to be {second.verdict} than itself: {noisy}.", err=True)
            return 1
        click.echo(
            f"Self-test passed: no winner between a file and itself in {second.rounds} rounds.", err=True
        )
    if report.failures or (judged is not None and judged.undecided):
        return 1
    return _REGRESSED if judged is not None and judged.slower else 0
