"""Plots of a training: loss and accuracy over epochs, and the confusion matrix of what came out."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from cnndeploy.files import write_file


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


def plot_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], target: Path) -> None:
    """Draw a confusion matrix, rows what is shown, columns what was said, into a PNG."""
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in confusion]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, counts in enumerate(confusion):
        for column, count in enumerate(counts):
            if count:
                color = "white" if shares[row][column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, [f"{label} ({shares[at][at]:.1%})" for at, label in enumerate(labels)])
    axes.set(xlabel="label given", ylabel="shown (share right)")
    images, right = sum(map(sum, confusion)), sum(confusion[at][at] for at in places)
    axes.set_title(f"Accuracy {right / images:.4f} on {images:,} test images")
    _save(figure, target)


def _save(figure: Figure, target: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_file(target, image.getvalue())
