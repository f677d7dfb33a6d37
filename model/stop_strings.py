"""Watches a text as it grows for strings that end it, and holds back what could be the beginning of one.

Pure. Knows characters only: neither tokens nor who reads the text.
"""

from collections.abc import Sequence


class StopStrings:
    """The watch over one text. What ``push`` and ``finish`` return, joined, is the text before the first stop string.

    The string whose last character comes first wins, and of several that end there the longest; so the result depends
    on the text alone, not on the pieces it came in, and no string has to wait for a longer one around it. Each
    character costs about one step for each string, whatever the text (Knuth, Morris, Pratt, 1977).
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """``stops``: none of them empty."""
        self._patterns = [_Pattern(stop) for stop in stops]
        self._held = ""
        self._is_complete = False

    @property
    def is_complete(self) -> bool:
        """Whether a stop string has come: the text is over."""
        return self._is_complete

    def push(self, text: str) -> str:
        """Take in more of the text; return what of it, and of what was held back, is certain to stay."""
        if self._is_complete:
            return ""
        before, self._held = self._held, ""
        for position, character in enumerate(text, start=1):
            ended = [len(pattern.text) for pattern in self._patterns if pattern.step(character)]
            if ended:
                self._is_complete = True
                seen = before + text[:position]
                return seen[: len(seen) - max(ended)]
        seen = before + text
        end = len(seen) - max((pattern.num_matched for pattern in self._patterns), default=0)
        self._held = seen[end:]
        return seen[:end]

    def finish(self) -> str:
        """The text is over: return what was held back, which turned out to be no stop string."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """One stop string, and how many of its characters the text ends with."""

    __slots__ = ("_shorter", "num_matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.num_matched = 0
        # shorter[i]: the longest proper beginning of the string that its first i characters also end with.
        self._shorter = [0, 0]
        for character in text[1:]:
            self._shorter.append(self._next(self._shorter[-1], character))

    def step(self, character: str) -> bool:
        """Take in one character; True when the string is complete."""
        self.num_matched = self._next(self.num_matched, character)
        return self.num_matched == len(self.text)

    def _next(self, matched: int, character: str) -> int:
        while matched and self.text[matched] != character:
            matched = self._shorter[matched]
        return matched + (self.text[matched] == character)
