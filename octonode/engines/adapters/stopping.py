"""Stop strings over a stream of pieces. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Lets pieces through until a stop string is complete, and holds back those that may be the start of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would stop everything"
        self._stops = tuple(stops)
        self._held: list[str] = []
        self.stopped = False

    def feed(self, piece: str) -> list[str]:
        """The pieces that may go out now. Once `stopped` is set, the text before the stop string has been given."""
        assert not self.stopped
        if not self._stops:
            return [piece]
        self._held.append(piece)
        text = "".join(self._held)
        found = [position for position in (text.find(stop) for stop in self._stops) if position >= 0]
        if found:
            self.stopped = True
            return self._release(min(found))
        return self._release(len(text) - self._overlap(text))

    def finish(self) -> list[str]:
        """What was held back, when the stream ends without a stop string."""
        held, self._held = self._held, []
        return held

    def _overlap(self, text: str) -> int:
        """The longest end of `text` that is the beginning of a stop string."""
        longest = max(map(len, self._stops)) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0

    def _release(self, characters: int) -> list[str]:
        """Whole pieces within the first `characters`; a piece that is cut there goes out in part only at a stop."""
        out: list[str] = []
        while self._held and len(self._held[0]) <= characters:
            piece = self._held.pop(0)
            characters -= len(piece)
            out.append(piece)
        if self.stopped and characters and self._held:
            out.append(self._held[0][:characters])
        return out
