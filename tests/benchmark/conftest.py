"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cnndeploy.benchmark import engine


@pytest.fixture(scope="module", autouse=True)
def quick_blocks() -> Iterator[None]:
    """Benchmarks pause and measure for a moment only, because no test asks how fast anything is."""
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in (("PAUSE_S", 0.0), ("WARM_UP_S", 0.005), ("_AIM_S", 0.004), ("BLOCK_S", 0.002)):
            patch.setattr(engine, name, seconds)
        patch.setattr("cnndeploy.benchmark.conditions._LISTEN_S", 0.05)
        yield
