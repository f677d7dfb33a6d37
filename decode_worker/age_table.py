"""Entries in order of age, with numbers about each that are kept as columns.

Pure. Knows neither what the entries are nor what the numbers mean.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Entry = TypeVar("Entry")
AgeOrder = tuple[int, float, str]

_FIRST_CAPACITY = 16


class AgeTable(Generic[Entry]):
    """Owns a sorted list of entries (compared by identity) and an int64 array [num_columns, N] beside it.

    A policy can so look at N entries without a loop over them. Ties of age stay in the order in which they came.
    """

    def __init__(self, num_columns: int) -> None:
        self._entries: list[Entry] = []
        self._ages: list[AgeOrder] = []
        self._numbers = np.zeros((num_columns, _FIRST_CAPACITY), np.int64)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __getitem__(self, index: int) -> Entry:
        return self._entries[index]

    @property
    def columns(self) -> NDArray[np.int64]:
        """The numbers [num_columns, N], oldest entry first; writable, and good until an entry comes or goes."""
        return self._numbers[:, : len(self._entries)]

    def add(self, entry: Entry, age: AgeOrder, numbers: Iterable[int]) -> None:
        """Put an entry in its place, with one number for each column."""
        index, count = bisect_right(self._ages, age), len(self._entries)
        if count == self._numbers.shape[1]:
            self._numbers = np.concatenate((self._numbers, np.zeros_like(self._numbers)), axis=1)
        if index < count:
            self._numbers[:, index + 1 : count + 1] = self._numbers[:, index:count].copy()
        self._numbers[:, index] = list(numbers)
        self._entries.insert(index, entry)
        self._ages.insert(index, age)

    def remove(self, entry: Entry) -> None:
        """Take an entry out; ValueError if it is not there."""
        index, count = self.index(entry), len(self._entries)
        if index < count - 1:
            self._numbers[:, index : count - 1] = self._numbers[:, index + 1 : count].copy()
        del self._entries[index]
        del self._ages[index]

    def index(self, entry: Entry) -> int:
        """Where an entry is now; ValueError if it is not there."""
        return self._entries.index(entry)

    def check(self) -> None:
        """AssertionError if the order does not hold."""
        assert self._ages == sorted(self._ages)
        assert len(self._ages) == len(self._entries) <= self._numbers.shape[1]
