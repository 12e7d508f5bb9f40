"""Plots: of a benchmark, a tuning and a training, as files and as SVG that stands in a page."""

from cnndeploy.display.plots.benchmark import benchmark_plots
from cnndeploy.display.plots.figure import Plot
from cnndeploy.display.plots.training import training_plots
from cnndeploy.display.plots.tuning import tuning_plot

__all__ = ["Plot", "benchmark_plots", "training_plots", "tuning_plot"]
