"""What two workers make sure of before KV moves between them: one protocol, one layout, and what links can do."""

from dataclasses import replace

import pytest

from twinpool.core.messages import WorkerAddress
from twinpool.kv_transfer.link_choice import LinkOffer
from twinpool.kv_transfer.pair import Introduction, PairRefused
from twinpool.model.kv_layout import PROTOCOL_VERSION
from twinpool.protos.twinpool.v1 import worker_pb2 as pb

from .fakes import LAYOUT

OURS = Introduction(WorkerAddress("d", "1", "127.0.0.1:1"), LAYOUT)
THEIRS = Introduction(WorkerAddress("p", "2", "127.0.0.1:2"), LAYOUT)


def refusal(envelope: pb.PeerMessage) -> str:
    with pytest.raises(PairRefused) as refused:
        OURS.check(envelope)
    return str(refused.value)


def test_workers_of_one_protocol_and_layout_pair() -> None:
    assert OURS.check(THEIRS.hello()) == THEIRS.address


def test_workers_of_other_layouts_are_refused_with_both() -> None:
    other = replace(THEIRS, layout=replace(LAYOUT, num_layers=7)).hello()
    assert "KV layouts differ: p has " in refusal(other)
    assert "7 layers" in refusal(other)
    assert "d has " in refusal(other)


@pytest.mark.parametrize("version", [1, PROTOCOL_VERSION + 1, 2**32 - 1])
def test_a_peer_of_another_protocol_is_refused_by_its_number(version: int) -> None:
    hello = THEIRS.hello()
    hello.hello.protocol_version = version
    assert refusal(hello) == (
        f"p speaks protocol {version}, d protocol {PROTOCOL_VERSION}: "
        "workers that hand KV over must run the same version of twinpool"
    )


def test_a_peer_from_before_the_protocol_had_a_field_is_told_apart_by_its_layout() -> None:
    hello = THEIRS.hello()
    hello.hello.protocol_version = 0
    assert OURS.check(hello) == THEIRS.address
    hello.hello.layout, hello.hello.layout_hash = "protocol 1, model test, 3 layers", "0"
    assert refusal(hello).startswith("p speaks protocol 1, d protocol")


@pytest.mark.parametrize("layout", ["", "protocol", "protocol x, model", "protocol " + "9" * 500, "\n" * 10_000])
def test_a_peer_may_say_anything_of_its_layout(layout: str) -> None:
    hello = THEIRS.hello()
    hello.hello.protocol_version, hello.hello.layout = 0, layout
    assert "p speaks a protocol that this worker does not know" in refusal(hello)


def test_a_hello_says_what_links_can_do() -> None:
    offer = LinkOffer(("cuda_ipc", "nccl"), "here", "GPU-7", {"nccl": 8 << 20, "cuda_ipc": 16 << 20})
    hello = replace(THEIRS, offer=offer).hello().hello
    assert LinkOffer.heard(hello.link_kinds, hello.host, hello.device, hello.chunk_bytes) == offer
