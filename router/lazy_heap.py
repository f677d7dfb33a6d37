"""Names in order of their keys, of which any may be taken out or given another key at any time.

Knows nothing of what the names stand for.
"""

from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

Name = TypeVar("Name")

_SLACK = 16  # entries that may be stale in a heap however small


class LazyHeap(Generic[Name]):
    """Owns names, each once, with one key; ties go to the smaller name. Every change takes O(log n), amortised.

    What is dropped stays in the heap until it comes up or until half of the entries are such; so memory is O(n).
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Any, Name]] = []
        self._keys: dict[Name, Any] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: Name) -> bool:
        return name in self._keys

    def push(self, name: Name, key: Any) -> None:
        """Add a name, or give one that is there another key."""
        self._keys[name] = key
        heappush(self._entries, (key, name))
        self._tidy()

    def drop(self, name: Name) -> None:
        """Take a name out. One that is not there changes nothing."""
        if self._keys.pop(name, None) is not None:
            self._tidy()

    def first(self) -> Name | None:
        """The name with the least key. None: there is none."""
        entries, keys = self._entries, self._keys
        while entries:
            key, name = entries[0]
            if keys.get(name) == key:
                return name
            heappop(entries)
        return None

    def first_key(self) -> Any:
        """The least key. None: there is no name."""
        name = self.first()
        return None if name is None else self._keys[name]

    def _tidy(self) -> None:
        if len(self._entries) > 2 * len(self._keys) + _SLACK:
            self._entries = [(key, name) for name, key in self._keys.items()]
            heapify(self._entries)
