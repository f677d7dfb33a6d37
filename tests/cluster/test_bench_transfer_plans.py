"""What `twinpool bench transfer` measures unasked, and what workers of several ranks look like to it."""

import itertools

import numpy as np
import pytest

from tests.kv_transfer.fakes import Ears
from twinpool.cluster.bench.transfer import TransferOptions, check_options
from twinpool.cluster.bench.transfer_case import Case, choose_cases
from twinpool.cluster.bench.transfer_links import make_links
from twinpool.cluster.bench.transfer_plans import default_plans, fitting_codecs, full_plans
from twinpool.cluster.bench.transfer_rank_links import RankLinks
from twinpool.cluster.bench.transfer_ranks import RankedPool
from twinpool.core.errors import SpecError
from twinpool.kv_transfer.link import Group, LinkError, LinkEvents, Ticket
from twinpool.kv_transfer.memory import MemoryLinks
from twinpool.kv_transfer.memory_network import Fault, MemoryNetwork
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.rank_groups import RankGroups
from twinpool.kv_transfer.rank_shape import WorkerShape
from twinpool.model.kv_layout import KVLayout

LAYOUT = KVLayout(num_layers=4, num_kv_heads=2, block_tokens=16, head_dim=64, dtype="bfloat16", model="bench")


def test_kv_in_several_ranks_takes_memory_beside_the_pools_and_has_to_be_divisible() -> None:
    def memory(*shapes: tuple[int, int]) -> int:
        return TransferOptions(LAYOUT, (100, 50), shapes=shapes).memory_bytes

    assert [memory((1, 1)), memory((1, 2)), memory((2, 2), (1, 1)), memory((4, 1))] == [200, 300, 400, 400]
    with pytest.raises(SpecError, match="--tp: 2 KV heads and tensor_parallel 3"):
        check_options(TransferOptions(LAYOUT, (LAYOUT.block_bytes,), shapes=((3, 1),)))


def test_without_being_told_a_little_of_everything_is_measured_and_nothing_twice() -> None:
    base = TransferOptions(LAYOUT, (), ("gloo", "shm"))
    for plans in (default_plans(base), full_plans(base)):
        found = [
            (case, size)
            for plan in plans
            for cases in choose_cases(plan.links, plan.codecs, plan.digests, plan.limits, plan.shapes)[0]
            for case, size in itertools.product(cases, plan.sizes)
        ]
        assert len(set(found)) == len(found)
        assert {case.codec for case, _ in found} == {"raw", "int8", "fp8", "int4", "int2"}
        assert {case.link for case, _ in found} == {"gloo", "shm"}
        assert {(case.source_tp, case.target_tp) for case, _ in found} >= {(1, 1), (1, 2), (2, 1), (2, 4), (4, 2)}
        assert len({case.limit_bytes_per_s for case, _ in found}) > 2
    assert max(size for plan in full_plans(base) for size in plan.sizes) == 1 << 30
    odd = TransferOptions(KVLayout(4, 3, 16, 7, "bfloat16", "bench"), (), ("shm",), digests=(False,))
    assert fitting_codecs(odd.layout) == ("raw",)
    assert [plan.shapes for plan in default_plans(odd)] == [((1, 1),), ()]


# --- Workers of several ranks -----------------------------------------------------------------------------------------


def block(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, LAYOUT.block_bytes, dtype=np.uint8)


def read(pool: RankedPool, number: int) -> np.ndarray:
    out = np.empty(LAYOUT.block_bytes, dtype=np.uint8)
    pool.gather(0, 4, np.array([number]), out)
    return out


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_pool_of_several_ranks_reads_as_what_was_written(ranks: int) -> None:
    pool = RankedPool(LAYOUT, ranks, 3)
    pool.write(1, block(7))
    assert np.array_equal(read(pool, 1), block(7))
    assert not read(pool, 0).any()
    assert sum(rank.tensor.nbytes for rank in pool.ranks) == max(1, ranks // 2) * 3 * LAYOUT.block_bytes
    pool.clear()
    assert not read(pool, 1).any()


class Two:
    """Two workers of several ranks in this process."""

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = RankedPool(LAYOUT, source, 3), RankedPool(LAYOUT, target, 3)
        self.source.write(2, block(5))
        self.network = MemoryNetwork()
        groups = RankGroups.between(LAYOUT, WorkerShape(source), WorkerShape(target))
        here, there = (
            RankLinks(groups, [MemoryLinks(self.network, rank) for rank in pool.ranks])
            for pool in (self.source, self.target)
        )
        self.sent, self.received = Ears(), Ears()
        self.receiver, ticket = there.listen(self.received)
        self.sender = here.dial(ticket, self.sent)

    def move(self, seq: int) -> None:
        self.receiver.receive(Group("r", 1, seq, Span(0, 4, 0, 1), np.array([0])))
        self.sender.send(Group("r", 1, seq, Span(0, 4, 0, 1), np.array([2])))


@pytest.mark.parametrize(("source", "target"), [(1, 2), (2, 1), (4, 2), (2, 4)])
def test_all_links_between_two_workers_act_as_one(source: int, target: int) -> None:
    two = Two(source, target)
    two.move(0)
    two.move(1)
    two.sender.close()
    two.receiver.close()
    assert two.sent.heard == [("open",), ("sent", 0), ("sent", 1), ("closed",)]
    lost = ("error", "closed by the other end")
    assert two.received.heard == [("open",), ("received", 0, True), ("received", 1, True), lost, ("closed",)]
    assert np.array_equal(read(two.target, 0), block(5))
    assert two.sender.join(1)
    assert two.receiver.join(1)


def test_damage_on_one_link_is_damage_of_the_group() -> None:
    two = Two(1, 2)
    two.network.inject(Fault.CORRUPT, after=1)
    two.move(0)
    two.move(1)
    assert two.received.heard == [("open",), ("received", 0, False), ("received", 1, True)]


def test_an_error_on_one_link_is_told_once_and_closing_closes_all() -> None:
    two = Two(2, 4)
    two.network.inject(Fault.MISLABEL)
    two.network.inject(Fault.MISLABEL, after=1)
    two.move(0)
    assert [event[0] for event in two.received.heard].count("error") == 1
    two.receiver.close()
    two.sender.close()
    assert two.received.heard[-1] == two.sent.heard[-1] == ("closed",)


def test_a_worker_that_cannot_listen_on_every_link_listens_on_none() -> None:
    class Refusing(MemoryLinks):
        def listen(self, events: LinkEvents) -> tuple[object, Ticket]:  # type: ignore[override]
            raise LinkError("no")

    groups, network = RankGroups.between(LAYOUT, WorkerShape(1), WorkerShape(2)), MemoryNetwork()
    first, second = RankedPool(LAYOUT, 2, 1).ranks
    with pytest.raises(LinkError, match="no"):
        RankLinks(groups, [MemoryLinks(network, first), Refusing(network, second)]).listen(Ears())
    assert not network._waiting


def test_all_links_of_a_limited_worker_share_its_limit() -> None:
    pool = RankedPool(LAYOUT, 2, 1)
    links = make_links(Case("gloo", limit_bytes_per_s=10**8, target_tp=2), pool)._links
    assert isinstance(links, RankLinks)
    assert len({id(link._bucket) for link in links._links}) == 1  # type: ignore[attr-defined]
    one = make_links(Case("gloo", limit_bytes_per_s=10**8), pool.ranks[0])._links
    assert not isinstance(one, RankLinks)
