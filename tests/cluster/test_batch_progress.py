"""What a batch shows while it runs: a bar on a terminal, lines elsewhere, with every text as it is."""

import asyncio
import io
from contextlib import suppress

import pytest

from twinpool.cluster.batch.progress import show_progress
from twinpool.cluster.batch.tally import Tally

NOTE = "waiting for the cluster: at [/x] and [field:lookup]"


class Stream(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


async def shown(tally: Tally, *, is_terminal: bool) -> str:
    stream = Stream(is_terminal=is_terminal)
    progress = asyncio.ensure_future(show_progress(tally, stream, every_s=0.001))
    await asyncio.sleep(0.02)
    progress.cancel()
    with suppress(asyncio.CancelledError):
        await progress
    return stream.getvalue()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_what_is_waited_for_is_shown_letter_for_letter(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    tally = Tally(total=5, before=0, failed=1, started_at=0.0, answered=2, note=NOTE)
    text = asyncio.run(shown(tally, is_terminal=is_terminal))
    assert NOTE in text
    assert "2/5" in text
    assert "1 with an error" in text
