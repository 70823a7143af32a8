"""Progress: bars on a terminal, elsewhere a line now and then."""

import io
import time

import pytest
from rich.console import Console

from detkit.runtime.progress import LINE_EVERY, Progress


class Clock:
    """Stands for time.monotonic."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def plain() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, width=100), text


def test_plain_lines_come_now_and_then_and_at_the_end(clock: Clock) -> None:
    console, text = plain()
    with Progress(console, unit="images") as bars:
        for done in range(1, 11):
            clock.now += 0.4 * LINE_EVERY
            bars.update("[red]pass", done, 10)
    # every third call is more than LINE_EVERY after the line before, or the start
    assert text.getvalue().splitlines() == [f"[red]pass: {done}/10 images" for done in (3, 6, 9, 10)]


def test_the_end_is_said_once_for_each_text(clock: Clock) -> None:
    console, text = plain()
    with Progress(console) as bars:
        for name in ("train a", "train a", "train b"):
            bars.update(name, 5, 5)
    assert text.getvalue().splitlines() == ["train a: 5/5", "train b: 5/5"]


def test_transfers_are_in_bytes(clock: Clock) -> None:
    console, text = plain()
    with Progress(console, transfer=True) as bars:
        bars.update("download a.zip", 1_500_000, 1_500_000)
    assert text.getvalue() == "download a.zip: 1.5 MB of 1.5 MB\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_moving_says_nothing_where_there_is_no_terminal(quiet: bool, clock: Clock) -> None:
    text = io.StringIO()
    with Progress(Console(file=text, quiet=quiet, force_terminal=quiet)) as bars:
        for done in range(3):
            clock.now += 2 * LINE_EVERY
            bars.move("clip.mp4", done, None, speed="3 images/s")
            bars.note("loss 1.5")
    assert text.getvalue() == ""


def test_a_terminal_shows_bars_with_speed_and_note() -> None:
    text = io.StringIO()
    with Progress(Console(file=text, force_terminal=True, width=100)) as bars:
        bars.note("loss 1.5")
        bars.move("[steps]", 3, 10, speed="7.0 images/s")
        bars.update("other", 10, 10)
        assert not bars.line_due(True)
    last = text.getvalue()[-800:]
    for shown in ("[steps]", "3/10", "7.0 images/s", "other", "10/10", "loss 1.5"):
        assert shown in last
    assert "images\n" not in text.getvalue()


def test_a_transient_bar_vanishes_and_nothing_is_shown_before_the_first_call() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    with Progress(console):
        pass
    assert text.getvalue() == ""
    with Progress(console, transient=True) as bars:
        bars.move("clip.mp4", 1, None)
    assert text.getvalue().endswith("\x1b[1A\x1b[2K")
