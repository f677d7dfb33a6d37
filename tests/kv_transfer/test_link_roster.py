"""Which links give way when too many are open."""

from hypothesis import given
from hypothesis import strategies as st

from twinpool.kv_transfer.link_roster import LinkRoster


class FakeLink:
    def __init__(self, roster: LinkRoster, *, is_idle: bool = True) -> None:
        self.is_idle = is_idle
        self.gave_way = False
        self._roster = roster

    def give_way(self) -> None:
        assert self.is_idle
        self.gave_way = True
        self._roster.drop(self)


def test_the_one_unused_for_longest_gives_way() -> None:
    roster = LinkRoster(3)
    links = [FakeLink(roster) for _ in range(3)]
    for link in (*links, links[0], FakeLink(roster)):
        roster.touch(link)
    assert [link.gave_way for link in links] == [False, True, False]


def test_a_link_in_use_never_gives_way_and_room_is_made_when_one_falls_idle() -> None:
    roster = LinkRoster(2)
    links = [FakeLink(roster, is_idle=False) for _ in range(4)]
    for link in links:
        roster.touch(link)
    assert len(roster) == 4
    links[2].is_idle = True
    roster.shrink()
    assert [link.gave_way for link in links] == [False, False, True, False]


def test_a_link_that_was_just_opened_stays() -> None:
    roster = LinkRoster(1)
    busy, fresh = FakeLink(roster, is_idle=False), FakeLink(roster)
    roster.touch(busy)
    roster.touch(fresh)
    assert not fresh.gave_way


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from("tisd"), st.integers(0, 7)), max_size=60))
def test_only_as_many_as_are_needed_give_way(max_open: int, steps: list[tuple[str, int]]) -> None:
    roster = LinkRoster(max_open)
    links = [FakeLink(roster) for _ in range(8)]
    opened: list[FakeLink] = []
    for step, index in steps:
        link = links[index]
        link.gave_way = False
        match step:
            case "t":
                roster.touch(link)
                opened = [*(other for other in opened if other is not link), link]
            case "i":
                link.is_idle = not link.is_idle
            case "s":
                roster.shrink()
            case "d":
                roster.drop(link)
                opened = [other for other in opened if other is not link]
        gone = [other for other in opened if other.gave_way]
        opened = [other for other in opened if not other.gave_way]
        for other in gone:
            other.gave_way = False
        assert len(roster) == len(opened)
        assert not gone or len(opened) >= max_open
        if step in "ts":
            assert len(opened) <= max_open or not any(other.is_idle for other in opened[:-1])
