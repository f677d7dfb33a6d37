"""The table of sequences by age, against a sorted list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.decode_worker.age_table import AgeTable

events = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=60)


@given(events)
def test_entries_and_their_numbers_stay_in_order_of_age(events: list[tuple[int, int, bool]]) -> None:
    table = AgeTable[list[int]](2)
    model: list[tuple[tuple[int, float, str], list[int]]] = []
    for number, (priority, arrived, comes) in enumerate(events):
        if comes or not model:
            entry, age = [number], (priority, float(arrived), str(number % 3))
            table.add(entry, age, (number, 7 * number))
            model.append((age, entry))
            model.sort(key=lambda pair: pair[0])
        else:
            table.remove(model.pop(number % len(model))[1])
        table.check()
        assert list(table) == [entry for _, entry in model]
        assert table.columns.T.tolist() == [[entry[0], 7 * entry[0]] for _, entry in model]
        assert [table.index(entry) for _, entry in model] == list(range(len(model)))


def test_entries_are_told_apart_by_identity() -> None:
    class Alike:
        pass

    table, first, second = AgeTable[Alike](1), Alike(), Alike()
    for number, entry in enumerate((first, second)):
        table.add(entry, (0, 0.0, "r"), (number,))
    table.remove(first)
    assert table[0] is second
    assert table.columns.tolist() == [[1]]
    with pytest.raises(ValueError, match="not in list"):
        table.remove(first)
