"""Plots of a training: loss and accuracy over epochs, and the confusion matrix of what came out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from cnndeploy.artifact import write_file
from cnndeploy.evaluation import Evaluation

mpl.rcParams["savefig.dpi"] = 120


def plot_curves(log: Path, target: Path) -> None:
    """Draw the epochs of a training's JSON-lines log into a PNG."""
    epochs = [json.loads(line) for line in log.read_text().splitlines()]
    numbers = [epoch["epoch"] for epoch in epochs]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    loss.plot(numbers, [epoch["train_loss"] for epoch in epochs], marker=".")
    loss.set(title="Training loss", xlabel="epoch", ylabel="cross-entropy")
    accuracy.plot(numbers, [epoch["train_accuracy"] for epoch in epochs], marker=".", label="training")
    accuracy.plot(numbers, [epoch["test_accuracy"] for epoch in epochs], marker=".", label="test")
    accuracy.set(title="Accuracy", xlabel="epoch", ylabel="share right")
    accuracy.legend()
    for axes in (loss, accuracy):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, target)


def plot_confusion(evaluation: Evaluation, target: Path) -> None:
    """Draw a confusion matrix, rows what is shown, columns what was said, into a PNG."""
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in evaluation.confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, counts in enumerate(evaluation.confusion):
        for column, count in enumerate(counts):
            if count:
                color = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    places = range(len(evaluation.labels))
    axes.set_xticks(places, evaluation.labels, rotation=45, ha="right")
    rows = [
        f"{each.label} ({each.accuracy:.1%})" if each.images else each.label for each in evaluation.per_class
    ]
    axes.set_yticks(places, rows)
    axes.set(xlabel="label given", ylabel="shown (share right)")
    axes.set_title(f"Accuracy {evaluation.accuracy:.4f} on {evaluation.images:,} test images")
    _save(figure, target)


def _save(figure: Figure, target: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_file(target, image.getvalue())
