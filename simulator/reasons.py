"""Counts why requests did not complete, those together whose words differ in their numbers only.

Knows text; nothing of what refuses.
"""

import re
from collections.abc import Iterator

MAX_REASONS = 100  # kept apart
OTHERS = "others"
_NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w-]|\.\d)")  # none of a name's, such as decode-0's


class Reasons:
    """Counts by reason. Of the numbers in it only the smallest and the largest are kept."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}  # by the words, with numbers left out
        self._ranges: dict[str, tuple[tuple[str, str], ...]] = {}  # smallest and largest of each number

    def add(self, why: str, count: int = 1) -> None:
        """Count one reason."""
        numbers = tuple((text, text) for text in _NUMBER.findall(why))
        self._add(_NUMBER.sub("\0", why), numbers, count)

    def merge(self, other: "Reasons") -> None:
        """Count all that another one has, too."""
        for words, count in other._counts.items():
            self._add(words, other._ranges[words], count)

    def _add(self, words: str, ranges: tuple[tuple[str, str], ...], count: int) -> None:
        if words not in self._counts and len(self._counts) >= MAX_REASONS:
            words, ranges = OTHERS, ()
        known = self._ranges.get(words, ranges)
        self._ranges[words] = tuple(
            (min(one[0], more[0], key=float), max(one[1], more[1], key=float))
            for one, more in zip(known, ranges, strict=True)
        )
        self._counts[words] = self._counts.get(words, 0) + count

    def most_common(self, most: int) -> dict[str, int]:
        """The most frequent, each with its numbers: as it was where all were alike, else ``smallest to largest``."""
        ordered = sorted(self._counts.items(), key=lambda item: -item[1])
        return {self._told(words): count for words, count in ordered[:most]}

    def _told(self, words: str) -> str:
        ranges: Iterator[tuple[str, str]] = iter(self._ranges[words])

        def filled(_: re.Match[str]) -> str:
            least, largest = next(ranges)
            return least if float(least) == float(largest) else f"{least} to {largest}"

        return re.sub("\0", filled, words)
