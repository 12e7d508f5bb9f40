"""What long work says of itself where there is no terminal."""

from __future__ import annotations

import pytest

from cnndeploy.cli._progress import progress_bar


def test_a_log_gets_a_line_each_minute_and_one_at_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cnndeploy.cli._progress.time.monotonic", lambda: clock[0])
    stop = False
    with progress_bar("Starting", stop=lambda: stop) as update:
        for second in range(150):
            clock[0] = 1000.0 + second
            stop = second > 100
            update(second, 150, f"Timing {second}")
    first, signal, second_line = capsys.readouterr().err.splitlines()
    assert (first, second_line) == ("1 min: Timing 60 (60 of 150)", "2 min: Timing 120 (120 of 150)")
    assert signal.startswith("Stopping at the next step")
