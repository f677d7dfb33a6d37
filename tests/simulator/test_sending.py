"""When a handoff's KV is there, against a pipeline of layer groups followed one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinpool.core.messages import Role
from twinpool.router.estimate import LinearForm
from twinpool.router.route import Disaggregate, PlacementSettings, Policy
from twinpool.simulator.observer import Transfer
from twinpool.simulator.scenario import Fault, FaultKind, PrefixCache, SimulatedWorker
from twinpool.simulator.trace import TraceRequest

from .builders import kind, scenario
from .cluster_worlds import assert_settled, watch

PAIRED = PlacementSettings(policy=Policy.LEAST_LOADED, disaggregate=Disaggregate.ALWAYS)
TOKEN_BYTES, LATENCY_S, STEP_S, TOKEN_S = 1000, 2e-3, 5e-3, 1e-4


def send(prompt_tokens: int, groups: int, bytes_per_s: float, chunk_tokens: int) -> Transfer:
    """The transfer of one request that has two workers to itself, with messages that take no time."""
    one = kind(
        truth=LinearForm(STEP_S, TOKEN_S, 0.0, 10e-3, 0.0, 0.0), kv_token_bytes=TOKEN_BYTES, layer_groups=groups,
        nic_bytes_per_s=bytes_per_s, link_latency_s=LATENCY_S, num_blocks=1000,
    )  # fmt: skip
    trace = [TraceRequest(0.0, prompt_tokens, 2)]
    seen, _ = watch(scenario(kind=one, placement=PAIRED, message_s=0.0, chunk_tokens=chunk_tokens), trace)
    return seen.transfers[0]


def pipeline_s(prompt_tokens: int, groups: int, bytes_per_s: float, chunk_tokens: int) -> float:
    """Each group leaves when it is computed and those before it are through."""
    now = through_s = 0.0
    for begin in range(0, prompt_tokens, chunk_tokens):
        tokens = min(chunk_tokens, prompt_tokens - begin)
        step_s, wire_s = STEP_S + TOKEN_S * tokens, tokens * TOKEN_BYTES / bytes_per_s
        for group in range(1, groups + 1):
            through_s = max(through_s, now + step_s * group / groups) + wire_s / groups
        now += step_s
    return through_s + LATENCY_S


@given(st.integers(1, 500), st.integers(1, 32), st.floats(1e5, 1e10))
def test_a_prompt_of_one_step_arrives_as_its_pipeline_does(tokens: int, groups: int, bytes_per_s: float):
    transfer = send(tokens, groups, bytes_per_s, 512)
    assert transfer.ended_s == pytest.approx(pipeline_s(tokens, groups, bytes_per_s, 512))
    computed_s = STEP_S + TOKEN_S * tokens
    assert transfer.exposed_s == pytest.approx(transfer.ended_s - computed_s)
    assert transfer.num_bytes == tokens * TOKEN_BYTES


@given(st.integers(100, 2000), st.integers(1, 32), st.floats(1e5, 1e10), st.sampled_from([64, 512]))
def test_one_of_several_steps_does_so_but_for_a_group(tokens: int, groups: int, bytes_per_s: float, chunk: int):
    """Bytes of a step may be counted as sent a little before they are computed, while later steps are to come."""
    group_s = min(tokens, chunk) * TOKEN_BYTES / bytes_per_s / groups
    exact_s = pipeline_s(tokens, groups, bytes_per_s, chunk)
    assert exact_s - group_s - 1e-9 <= send(tokens, groups, bytes_per_s, chunk).ended_s <= exact_s + 1e-9


def test_a_full_target_keeps_others_in_the_router():
    """The first answer takes all of the decode worker, so the second waits in the router."""
    small = kind(num_blocks=8, kv_token_bytes=1000, nic_bytes_per_s=1e6, link_latency_s=0.0)
    large = kind(num_blocks=100, kv_token_bytes=1000, nic_bytes_per_s=1e6, link_latency_s=0.0)
    workers = (SimulatedWorker("p", Role.PREFILL, large), SimulatedWorker("d", Role.DECODE, small))
    trace = [TraceRequest(0.0, 64, 60), TraceRequest(0.0, 64, 60)]
    seen, left = watch(scenario(workers=workers, placement=PAIRED), trace)
    assert_settled(seen, left)
    assert seen.outcomes[1].held_s > 0.4 * seen.outcomes[0].e2e_s


def test_what_the_target_has_cached_is_not_sent():
    one = kind(kv_token_bytes=1000, num_blocks=1000)
    trace = [
        TraceRequest(at_s, 200, 2, prefix_hashes=(1, 2, 3), hash_tokens=64) for at_s in (0.0, 5.0)
    ]  # fmt: skip
    seen, left = watch(
        scenario(kind=one, placement=PAIRED, prefix_cache=PrefixCache.HASHES, hash_tokens=64), trace
    )  # fmt: skip
    assert_settled(seen, left)
    assert [transfer.num_bytes for transfer in seen.transfers] == [200_000, 8_000]
    assert [seen.outcomes[index].cached_tokens for index in (0, 1)] == [0, 192]
    assert seen.outcomes[1].prefill_s < seen.outcomes[0].prefill_s


def test_a_send_whose_target_dies_frees_the_card_for_others():
    slow = kind(kv_token_bytes=100_000, nic_bytes_per_s=1e6, num_blocks=1000)
    workers = (
        SimulatedWorker("p", Role.PREFILL, slow),
        SimulatedWorker("d0", Role.DECODE, slow),
        SimulatedWorker("d1", Role.DECODE, slow),
    )
    faults = (Fault(FaultKind.CRASH, "d0", 1.0),)
    seen, left = watch(scenario(workers=workers, placement=PAIRED, faults=faults), [TraceRequest(0.0, 100, 5)])
    assert_settled(seen, left)
    (transfer,) = seen.transfers
    assert transfer.target == 2
    assert transfer.ended_s - transfer.started_s == pytest.approx(
        101 * 100_000 / 1e6, rel=0.01
    )  # and the first token, prefilled again
    assert all(not process.card.outgoing and not process.card.incoming for process in left.processes)
