"""``cnndeploy bench``: time model files side by side."""

from __future__ import annotations

import importlib
import shlex
import signal
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
    device_option,
    json_file_option,
    progress_bar,
    write_json,
)

if TYPE_CHECKING:
    from cnndeploy.benchmark.baseline import Comparison
    from cnndeploy.benchmark.report import BenchmarkReport

_REGRESSED = 4
_RAW = ("raw-onnxruntime", "raw-openvino")


class _Threads(click.ParamType[int | str]):
    name = "threads"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        return "auto" if value == "auto" else click.IntRange(min=1, max=256).convert(value, param, ctx)


@click.command()
@click.argument("targets", type=PATH, nargs=-1, required=True, metavar="FILES...")
@click.option(
    "--target",
    "runtimes",
    type=RegisteredName("runtimes", *_RAW),
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
    help="CPU threads; auto takes one where more are no faster.  [default: all usable CPUs]",
)
@device_option
@click.option("--end-to-end", is_flag=True, help="From raw uint8 images to labels, not the model alone.")
@click.option(
    "--precision",
    type=POSITIVE_NUMBER,
    default=0.02,
    show_default=True,
    help="Stop when every ratio is known to this share.",
)
@click.option(
    "--budget",
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
    targets: tuple[Path, ...],
    batch_sizes: tuple[tuple[int, ...], ...],
    threads: tuple[tuple[Any, ...], ...],
    budget: float,
    timeout: float,
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
    SLOWER are said where the 95% interval of the ratio lies wholly beyond 2%, SAME where it lies within.

    \b
    Example:
      cnndeploy bench lenet.pt lenet.onnx lenet.torchscript --batch-size 1,64 --html bench.html
      cnndeploy bench lenet.pt lenet.onnx --target eager --target onnxruntime --target openvino --threads 1,2
      cnndeploy bench lenet.onnx --compare baseline.json
    """
    from cnndeploy.benchmark.baseline import compare
    from cnndeploy.benchmark.bench import bench
    from cnndeploy.display.tables import benchmark_table, comparison_table

    counts = list(chain(*threads))
    if self_test and (len(targets) != 1 or len(settings["runtimes"]) > 1 or len(counts) > 1):
        raise click.UsageError("--self-test takes one file, one --target and one number of --threads")
    written = [
        file for file in (None if json_file in (None, "-") else Path(json_file), html, csv, markdown) if file
    ]
    if len({file.absolute() for file in written}) < len(written):
        raise click.UsageError("two reports are to be written to the same file")
    before = _before_the_work([*targets], baseline, any_machine, written, plots, bool(html or plots))
    with progress_bar("Starting", refreshes_a_second=1) as update, PoliteStop() as stop:
        report = bench(
            targets * 2 if self_test else targets,
            batch_sizes=list(chain(*batch_sizes)) or [1],
            threads=counts,
            budget_s=budget,
            timeout_s=timeout,
            should_stop=stop,
            on_progress=lambda text, done, total: update(done, total, text),
            **settings,
        )
    console = console_for(json_file)
    console.print(benchmark_table(report))
    _write(report, html, csv, markdown, plots)
    judged = None
    try:
        if before is not None and not report.interrupted:
            judged = compare(report, before, any_machine=any_machine)
            console.print(comparison_table(judged))
    finally:  # what was measured is kept, also where it does not compare
        if json_file is not None:
            write_json(
                json_file, report.to_dict() | ({} if judged is None else {"comparison": judged.to_dict()})
            )
    if report.interrupted:
        raise SystemExit(TERMINATED if stop.signal == signal.SIGTERM else INTERRUPTED)
    raise SystemExit(_outcome(report, judged, self_test))


def _before_the_work(
    targets: list[Path],
    baseline: Path | None,
    any_machine: bool,
    files: list[Path],
    plots: Path | None,
    needs_plots: bool,
) -> BenchmarkReport | None:
    """The baseline, if there is one, once all is known to be there that is needed after the work."""
    from cnndeploy.benchmark.baseline import check_machine
    from cnndeploy.files import check_writable, make_folder
    from cnndeploy.machine import environment

    if needs_plots:
        importlib.import_module("cnndeploy.display.plots")  # it needs matplotlib
    if baseline is not None:
        targets = [*targets, baseline]
    for file in files:
        check_writable(file, *targets)
    if plots is not None:
        make_folder(plots)
    if baseline is None:
        return None
    before = _read(baseline)
    check_machine(environment(), before, any_machine=any_machine)
    return before


def _outcome(report: BenchmarkReport, judged: Comparison | None, self_test: bool) -> int:
    """The exit code."""
    if self_test and not report.failures:
        found = report.results[-1]
        if found.verdict in ("FASTER", "SLOWER"):
            noisy = "this machine is too noisy now for a benchmark to be believed"
            click.echo(f"Error: a file was found to be {found.verdict} than itself: {noisy}.", err=True)
            return 1
        click.echo(
            f"Self-test passed: no winner between a file and itself in {found.rounds} rounds.", err=True
        )
    if report.failures or (judged is not None and judged.undecided):
        return 1
    return _REGRESSED if judged is not None and judged.slower else 0


def _read(path: Path) -> BenchmarkReport:
    from cnndeploy.benchmark.report import BenchmarkReport
    from cnndeploy.errors import BenchmarkError

    try:
        return BenchmarkReport.from_json(path.read_text())
    except (OSError, UnicodeDecodeError, BenchmarkError) as error:
        raise BenchmarkError(f"{path} cannot be compared with: {error}") from error


def _write(
    report: BenchmarkReport, html: Path | None, csv: Path | None, markdown: Path | None, plots: Path | None
) -> None:
    from cnndeploy.display.rows import as_csv
    from cnndeploy.display.tables import benchmark_markdown
    from cnndeploy.files import make_folder, write_file

    if csv is not None:
        write_file(csv, as_csv(report).encode("utf-8", "backslashreplace"))
    if markdown is not None:
        write_file(markdown, benchmark_markdown(report).encode("utf-8", "backslashreplace"))
    if html is None and plots is None:
        return
    from cnndeploy.display.benchmark_page import render_benchmark
    from cnndeploy.display.plots import benchmark_plots

    if html is not None:
        page = render_benchmark(report, shlex.join(["cnndeploy", *sys.argv[1:]]))
        write_file(html, page.encode("utf-8", "backslashreplace"))
    if plots is not None:
        make_folder(plots)
        for name, plot in benchmark_plots(report).items():
            write_file(plots / f"{name}.svg", plot.svg())
            write_file(plots / f"{name}.png", plot.png())
