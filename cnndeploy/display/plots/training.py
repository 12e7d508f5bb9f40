"""Plots of a training: its curves, and the confusion matrix at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cnndeploy.display.plots.figure import COLOURS, INK, Plot, machine_context
from cnndeploy.specs import Manifest

_SHADES = LinearSegmentedColormap.from_list("shades", [f"{COLOURS[0]}00", COLOURS[0]])  # on any background
# More cannot be read in a matrix of this size.
_MOST_CLASSES = 20


def training_plots(manifest: Manifest, environment: Mapping[str, Any]) -> dict[str, Plot]:
    """Return plots by name of what a checkpoint's manifest records of its training; none for untrained weights.

    ``environment`` is that of the machine that trained it.
    """
    training = manifest.training
    images = training.get("train_images", training.get("images"))
    on = f"{manifest.architecture}, trained on {images:,} images" if images else manifest.architecture
    context = machine_context(environment, on)
    plots = {}
    if epochs := training.get("epochs"):
        plots["curves"] = _curves(epochs, context)
    if (confusion := training.get("confusion")) and len(confusion) <= _MOST_CLASSES:
        plots["confusion"] = _confusion(confusion, manifest.labels, context)
    return plots


def _curves(epochs: Sequence[Mapping[str, Any]], context: str) -> Plot:
    numbers = [epoch["epoch"] for epoch in epochs]
    lines = {
        "train_loss": ("training loss", None),
        "train_accuracy": ("accuracy in training", COLOURS[0]),
        "test_accuracy": ("accuracy on test images", COLOURS[1]),
    }

    def draw(figure: Figure) -> None:
        loss, accuracy = figure.subplots(2, 1, sharex=True)
        for key, (label, colour) in lines.items():
            axes = accuracy if colour else loss
            values = [epoch[key] for epoch in epochs]
            axes.plot(numbers, values, marker=".", color=colour or COLOURS[2], label=label)
        for axes, title in ((loss, "cross-entropy"), (accuracy, "accuracy")):
            axes.set_ylabel(title)
            axes.grid(alpha=0.25)
            axes.legend(frameon=False)
        loss.yaxis.set_major_locator(MaxNLocator(5))
        accuracy.yaxis.set_major_locator(MaxNLocator(5))
        accuracy.yaxis.set_major_formatter(PercentFormatter(1))
        accuracy.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        accuracy.set_xlabel("epoch")

    note = "Accuracy in training is counted while the network still learns, that on test images after each epoch."
    return Plot("Training curves", note, draw, height=4.4, context=context)


def _confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], context: str) -> Plot:
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    places = range(len(labels))

    def draw(figure: Figure) -> None:
        axes: Any = figure.subplots()
        axes.imshow(shares, cmap=_SHADES, vmin=0, vmax=1)
        for row, counts in enumerate(confusion):
            for column, count in enumerate(counts):
                if count:
                    colour = "white" if shares[row][column] > 0.5 else INK
                    axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9.5)
        axes.set_xticks(places, labels, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, [f"{label} {shares[at][at]:.1%}" for at, label in enumerate(labels)])
        axes.set(xlabel="label given", ylabel="label of the image, share right")
        axes.spines[["top", "right"]].set_visible(True)

    images, right = sum(map(sum, confusion)), sum(confusion[at][at] for at in places)
    note = f"Accuracy {right / images:.2%} on {images:,} test images. A row: how the images of one class were labelled."
    return Plot("Confusion matrix", note, draw, height=4.9, context=context)
