from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from cnndeploy.architectures._recipe import Recipe
from cnndeploy.datasets.fashion_mnist import Images
from cnndeploy.preprocessing import Preprocessing
from cnndeploy.training.batches import Batches, generator
from cnndeploy.training.distributed import Processes

CPU = torch.device("cpu")
DRAW = np.random.default_rng(0)
IMAGES = Images(
    DRAW.integers(1, 256, (50, 28, 28), dtype=np.uint8), np.arange(50, dtype=np.uint8) % 10, {"file": "0"}
)
PLAIN = Recipe(epochs=1, batch_size=8, learning_rate=0.001)


def _batches(recipe: Recipe = PLAIN, seed: int = 0, processes: Processes = Processes()) -> Batches:  # noqa: B008
    return Batches(IMAGES, Preprocessing(size=(28, 28)), recipe, seed, CPU, processes)


def _epoch(batches: Batches, epoch: int, first_step: int = 0) -> list[torch.Tensor]:
    return [images for images, _, _ in batches.epoch(epoch, first_step)]


def _bytes(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in (images[:, 0] * 255).round().to(torch.uint8)]


def test_an_epoch_has_every_image_once_and_its_own_order() -> None:
    first, second = (_bytes(torch.cat(_epoch(_batches(), epoch))) for epoch in (1, 2))
    assert first != second
    assert sorted(first) == sorted(second) == sorted(image.tobytes() for image in IMAGES.images)


def test_labels_stay_with_their_images() -> None:
    by_image = {
        image.tobytes(): int(label) for image, label in zip(IMAGES.images, IMAGES.labels, strict=True)
    }
    for images, labels, size in _batches().epoch(1):
        assert size == len(images) == len(labels)
        assert [by_image[image] for image in _bytes(images)] == labels.tolist()


@pytest.mark.parametrize("recipe", [PLAIN, dataclasses.replace(PLAIN, flip=True, shift=2)])
def test_what_is_left_of_an_epoch_is_what_it_would_have_been(recipe: Recipe) -> None:
    whole, rest = _epoch(_batches(recipe), 3), _epoch(_batches(recipe), 3, first_step=4)
    assert len(whole) == len(_batches()) == 7
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


@pytest.mark.parametrize("count", [2, 3])
def test_the_shares_of_several_processes_make_up_the_batch(count: int) -> None:
    recipe = dataclasses.replace(PLAIN, flip=True, shift=2)
    alone = _epoch(_batches(recipe), 1)
    shares = [_epoch(_batches(recipe, processes=Processes(rank, count)), 1) for rank in range(count)]
    for step, batch in enumerate(alone):
        rebuilt = torch.empty_like(batch)
        for rank in range(count):
            rebuilt[rank::count] = shares[rank][step]
        assert torch.equal(rebuilt, batch)


def test_flips_and_shifts_move_pixels_and_nothing_else() -> None:
    recipe = dataclasses.replace(PLAIN, batch_size=50, flip=True, shift=2)
    (varied,), (plain,) = (
        _epoch(_batches(each), 1) for each in (recipe, dataclasses.replace(recipe, flip=False, shift=0))
    )
    found = set()
    for after, before in zip(varied[:, 0], plain[:, 0], strict=True):
        framed = torch.nn.functional.pad(before, (2,) * 4), torch.nn.functional.pad(before.flip(1), (2,) * 4)
        found.add(
            next(
                (flip, row, column)
                for flip in (0, 1)
                for row in range(5)
                for column in range(5)
                if torch.equal(framed[flip][row : row + 28, column : column + 28], after)
            )
        )
    assert {flip for flip, _, _ in found} == {0, 1}
    assert {row for _, row, _ in found} == {column for _, _, column in found} == set(range(5))


def test_the_seed_decides() -> None:
    assert torch.equal(_epoch(_batches(seed=5), 1)[0], _epoch(_batches(seed=5), 1)[0])
    assert not torch.equal(_epoch(_batches(seed=5), 1)[0], _epoch(_batches(seed=6), 1)[0])


@pytest.mark.parametrize("size", [(28, 28), (96, 96), (224, 224), (20, 31)])
def test_preprocessing_is_that_of_deployment(size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(size=size, mean=0.3, std=0.4)
    batches = Batches(IMAGES, preprocessing, PLAIN, 0, CPU, Processes())
    order = torch.randperm(len(IMAGES), generator=generator("order", 0, 1))[: PLAIN.batch_size]
    np.testing.assert_allclose(_epoch(batches, 1)[0], preprocessing(IMAGES.images[order.numpy()]), atol=1e-5)


def test_one_cycle_rises_and_falls() -> None:
    recipe = dataclasses.replace(PLAIN, schedule="one-cycle")
    rates = [recipe.learning_rate_at(step, 1000) for step in range(1000)]
    torch_rates = _of_torch(1000)
    np.testing.assert_allclose(rates, torch_rates, rtol=1e-2, atol=1e-8)
    assert PLAIN.learning_rate_at(0, 1000) == PLAIN.learning_rate_at(999, 1000) == 0.001


def _of_torch(steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.001)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.001, total_steps=steps, cycle_momentum=False, final_div_factor=400
    )
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        if len(rates) < steps:
            schedule.step()
    return rates
