"""Which kinds of link two workers try, in which order, and what is said of the others."""

import pytest

from twinpool.kv_transfer.link_choice import (
    UNSAID_CHUNK_BYTES,
    LinkChoice,
    LinkOffer,
    NoLink,
    agreed_chunk_bytes,
    choose_links,
)

BOTH = ("shm", "gloo")
ON_GPU = ("cuda_ipc", "nccl", "gloo")
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
    sizes = {f"{number}": number for number in range(10_000)} | {"gloo": 2**64 - 1}
    heard = LinkOffer.heard(["gloo", *["x" * 10_000] * 10_000], "y" * 10_000, "z" * 10_000, sizes)
    assert len(heard.kinds) <= 16
    assert max(len(text) for text in (*heard.kinds, heard.host, heard.device)) <= 200
    assert heard.chunk_bytes == {"gloo": 2**64 - 1}
    heard = LinkOffer.heard(["x" * 10_000] * 10_000, "y" * 10_000)
    assert isinstance(choose_links(LinkOffer(BOTH, HERE), heard, "auto"), NoLink)


# --- GPUs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "device", "kinds", "why"),
    [
        (HERE, "GPU-0", ["cuda_ipc", "gloo"], "auto: both workers are on one GPU"),
        (HERE, "GPU-1", ["cuda_ipc", "nccl", "gloo"], "auto: both workers are on one host, each on its GPU"),
        (THERE, "GPU-1", ["nccl", "gloo"], "; each worker has a GPU of its own"),
        (
            HERE,
            "",
            ["gloo"],
            "auto: cuda_ipc needs a GPU at both ends; nccl needs a GPU at both ends; both workers have",
        ),
    ],
)
def test_gpu_workers_take_the_fastest_that_both_can_use(host: str, device: str, kinds: list[str], why: str) -> None:
    ours, theirs = LinkOffer(ON_GPU, HERE, "GPU-0"), LinkOffer(ON_GPU, host, device)
    assert kinds_of(ours, theirs) == kinds
    choices = choose_links(ours, theirs, "auto")
    assert not isinstance(choices, NoLink)
    assert why in choices[0].why


def test_two_workers_on_one_gpu_are_never_paired_over_nccl_and_hear_why() -> None:
    ours = theirs = LinkOffer(("nccl",), HERE, "H100 GPU-77")
    assert choose_links(ours, theirs, "transfer.link: nccl") == NoLink(
        "transfer.link: nccl: nccl cannot link two workers on one GPU (H100 GPU-77)"
    )


# --- Chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"),
    [
        ({"gloo": 100}, {"gloo": 200}, 100),
        ({"gloo": 200}, {"gloo": 100}, 100),
        ({"gloo": 1 << 30, "shm": 5}, {"shm": 7}, UNSAID_CHUNK_BYTES),
        ({"gloo": 100}, {}, 100),
    ],
)
def test_both_ends_take_the_smaller_chunk_and_agree_whoever_asks(
    ours: dict[str, int], theirs: dict[str, int], agreed: int
) -> None:
    ends = LinkOffer(BOTH, chunk_bytes=ours), LinkOffer(BOTH, chunk_bytes=theirs)
    assert agreed_chunk_bytes("gloo", *ends) == agreed_chunk_bytes("gloo", *reversed(ends)) == agreed


def test_chunks_of_no_bytes_are_refused_with_the_reason() -> None:
    theirs = LinkOffer(("gloo",), HERE, chunk_bytes={"gloo": 0})
    refused = choose_links(LinkOffer(("gloo",), HERE), theirs, "auto")
    assert refused == NoLink("auto: the peer cuts what goes over gloo into chunks of no bytes")
