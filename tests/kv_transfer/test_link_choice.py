"""Which kinds of link two workers try, in which order, and what is said of the others."""

import pytest

from twinpool.kv_transfer.link_choice import LinkChoice, LinkOffer, NoLink, choose_links

BOTH = ("shm", "gloo")
HERE, THERE = "boot/net:1", "boot/net:2"


def kinds_of(ours: LinkOffer, theirs: LinkOffer) -> list[str]:
    choices = choose_links(ours, theirs, "auto")
    assert not isinstance(choices, NoLink)
    return [choice.kind for choice in choices]


def test_workers_on_one_host_share_memory_and_may_fall_back() -> None:
    assert kinds_of(LinkOffer(BOTH, HERE), LinkOffer(BOTH, HERE)) == ["shm", "gloo"]


@pytest.mark.parametrize(("ours", "theirs"), [(HERE, THERE), ("", HERE), (HERE, ""), ("", "")])
def test_workers_that_may_be_apart_do_not_try_to_share_memory(ours: str, theirs: str) -> None:
    assert choose_links(LinkOffer(BOTH, ours), LinkOffer(BOTH, theirs), "auto") == (
        LinkChoice("gloo", "auto: shm needs both workers on one host, in one network namespace; both workers have it"),
    )


def test_the_sources_order_counts() -> None:
    assert kinds_of(LinkOffer(BOTH, HERE), LinkOffer(("gloo", "shm"), HERE)) == ["shm", "gloo"]
    assert kinds_of(LinkOffer(("gloo", "shm"), HERE), LinkOffer(BOTH, HERE)) == ["gloo", "shm"]


@pytest.mark.parametrize(
    ("kinds", "host", "why"),
    [
        (("gloo",), HERE, "auto: the peer receives over gloo, not over shm"),
        (BOTH, THERE, "auto: shm needs both workers on one host"),
        ((), HERE, "auto: the peer receives over nothing, not over shm"),
    ],
)
def test_a_kind_that_cannot_be_used_is_refused_with_the_reason(kinds: tuple[str, ...], host: str, why: str) -> None:
    refused = choose_links(LinkOffer(("shm",), HERE), LinkOffer(kinds, host), "auto")
    assert isinstance(refused, NoLink)
    assert refused.why.startswith(why)


def test_a_peer_may_say_anything() -> None:
    heard = LinkOffer.heard(["x" * 10_000] * 10_000, "y" * 10_000)
    assert len(heard.kinds) <= 16
    assert max(len(text) for text in (*heard.kinds, heard.host)) <= 200
    assert isinstance(choose_links(LinkOffer(BOTH, HERE), heard, "auto"), NoLink)
