"""A heap whose names come and go as they like."""

from hypothesis import given
from hypothesis import strategies as st

from twinpool.router.lazy_heap import LazyHeap


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.booleans()), max_size=60))
def test_it_equals_a_dict_that_is_sorted(events: list[tuple[int, int, bool]]) -> None:
    heap, model = LazyHeap[str](), dict[str, int]()
    for number, key, drops in events:
        name = str(number)
        if drops:
            heap.drop(name)
            model.pop(name, None)
        else:
            heap.push(name, key)
            model[name] = key
        best = min(model, key=lambda name: (model[name], name), default=None)
        assert heap.first() == best
        assert heap.first_key() == (None if best is None else model[best])
        assert len(heap) == len(model)
        assert all((name in heap) == (name in model) for name in "012345")


def test_what_was_dropped_does_not_fill_the_memory() -> None:
    heap = LazyHeap[str]()
    heap.push("first", 0)
    for number in range(1000):
        heap.push("other", number + 1)
        heap.drop("other")
    assert len(heap._entries) < 40
