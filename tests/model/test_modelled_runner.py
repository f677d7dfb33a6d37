import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.core.errors import SpecError
from twinpool.core.sampling import SamplingParams
from twinpool.model.batch import Batch, Runner, SampleRow
from twinpool.model.host_pool import map_pool
from twinpool.model.modelled_kv import oracle_tokens
from twinpool.model.modelled_runner import ModelledRunner, load_modelled
from twinpool.model.modelled_shape import ModelledShape, StepLatency

BLOCK_TOKENS = 4
SHAPE = ModelledShape(StepLatency(), num_layers=3, layer_groups=(2, 3), num_kv_heads=2, head_dim=2, vocab_size=500)
GREEDY = SamplingParams(temperature=0)
SEEDED = SamplingParams(temperature=0.7, seed=11)
PROMPT = [7, 7, 8, 9, 7, 7, 8, 9, 3, 1]  # two blocks of the same tokens, and a part of one


class FakeClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.now_s += duration_s


def make_runner(shape: ModelledShape = SHAPE, num_blocks: int = 40) -> tuple[ModelledRunner, FakeClock]:
    clock = FakeClock()
    runner = ModelledRunner(
        shape,
        model="modelled:test",
        max_model_len=64,
        kv_bytes=num_blocks * BLOCK_TOKENS * shape.kv_token_bytes,
        block_tokens=BLOCK_TOKENS,
        clock=clock,
        sleep=clock.sleep,
    )
    assert runner.cache.num_blocks == num_blocks
    runner.cache.scatter(0, shape.num_layers, np.arange(num_blocks), garbage(runner, num_blocks))
    return runner, clock


def garbage(runner: Runner, num_blocks: int) -> np.ndarray:
    """What is left of requests before."""
    return np.random.default_rng(0).integers(0, 256, num_blocks * runner.cache.layout.block_bytes, np.uint8)


def make_batch(
    rows: Sequence[tuple[Sequence[int], int, Sequence[int]]], sampling: SamplingParams = GREEDY, index: int = 0
) -> Batch:
    """Of sequences as (all token ids, how many have KV already, block table); every row samples."""
    new = [np.array(ids[start:], np.int64) for ids, start, _ in rows]
    return Batch(
        token_ids=np.concatenate(new),
        cu_seqlens=np.cumsum([0, *map(len, new)], dtype=np.int32),
        context_lens=np.array([len(ids) for ids, _, _ in rows], np.int32),
        block_tables=tuple(np.array(table, np.int64) for _, _, table in rows),
        samples=tuple(SampleRow(row, sampling, index) for row in range(len(rows))),
    )


def decode(runner: Runner, ids: Sequence[int], table: Sequence[int], num_tokens: int, *, start: int = 0) -> list[int]:
    """Greedy continuation of one sequence, of which ``start`` tokens have KV."""
    ids = list(ids)
    num_prompt = len(ids)
    for _ in range(num_tokens):
        (token,) = runner.run(make_batch([(ids, start, table)])).token_ids
        start = len(ids)
        ids.append(int(token))
    return ids[num_prompt:]


@settings(max_examples=40)
@given(
    prompts=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=14), min_size=1, max_size=4),
    chunk_tokens=st.integers(1, 15),
    sampling=st.sampled_from([GREEDY, SEEDED]),
    seed=st.integers(0, 9),
)
def test_answers_do_not_depend_on_chunks_batches_or_blocks(
    prompts: list[list[int]], chunk_tokens: int, sampling: SamplingParams, seed: int
) -> None:
    runner, _ = make_runner()
    tables = np.random.default_rng(seed).permutation(40).reshape(4, 10)
    computed, ids = [0] * len(prompts), [list(prompt) for prompt in prompts]
    for _ in range(20):  # one step of a worker that mixes prefill and decode
        ends = [min(len(row), done + chunk_tokens) for row, done in zip(ids, computed, strict=True)]
        index = [len(row) - len(prompt) for row, prompt in zip(ids, prompts, strict=True)]
        rows = [(row[:end], done, table) for row, end, done, table in zip(ids, ends, computed, tables, strict=False)]
        batch = make_batch(rows)
        samples = [SampleRow(row, sampling, index[row]) for row in range(len(ids)) if ends[row] == len(ids[row])]
        tokens = runner.run(
            Batch(batch.token_ids, batch.cu_seqlens, batch.context_lens, batch.block_tables, tuple(samples))
        ).token_ids
        for sample, token in zip(samples, tokens, strict=True):
            ids[sample.row].append(int(token))
        computed = ends
    for row, prompt in zip(ids, prompts, strict=True):
        answer = row[len(prompt) :]
        assert answer == oracle_tokens(SHAPE, prompt, sampling, len(answer))
        assert len(answer) >= 6


@settings(max_examples=50)
@given(st.integers(0, len(PROMPT) - 2), st.integers(0, 2), st.integers(0, 31), st.integers(0, 7))
def test_any_flipped_bit_of_the_context_changes_the_answer(position: int, layer: int, byte: int, bit: int) -> None:
    runner, _ = make_runner()
    table = [5, 2, 30, 8, 9]
    runner.run(make_batch([(PROMPT, 0, table)]))
    block, slot = np.array(table[position // BLOCK_TOKENS : position // BLOCK_TOKENS + 1]), position % BLOCK_TOKENS
    data = np.empty(runner.cache.layout.block_layer_bytes, np.uint8)
    runner.cache.gather(layer, layer + 1, block, data)
    data.reshape(4, BLOCK_TOKENS, 8)[byte // 8, slot, byte % 8] ^= 1 << bit  # [2 x heads, tokens, bytes of a head]
    runner.cache.scatter(layer, layer + 1, block, data)
    assert decode(runner, PROMPT, table, 6, start=len(PROMPT) - 1) != oracle_tokens(SHAPE, PROMPT, GREEDY, 6)


@pytest.mark.parametrize("table", [[2, 5, 30, 8], [5, 5, 30, 8], [5, 1, 30, 8], [0, 2, 30, 8]], ids=str)
def test_swapped_doubled_and_stale_blocks_change_the_answer(table: list[int]) -> None:
    runner, _ = make_runner()
    runner.run(make_batch([(PROMPT, 0, [5, 2, 30, 8]), ([9] * 4 + PROMPT[4:8], 0, [0, 1])]))
    answer = oracle_tokens(SHAPE, PROMPT, GREEDY, 5)
    assert decode(runner, PROMPT, [5, 2, 30, 8], 5, start=9) == answer
    assert decode(runner, PROMPT, table, 5, start=9) != answer


def test_kv_moved_to_another_runner_goes_on_as_if_it_had_stayed() -> None:
    (source, _), (target, _) = make_runner(), make_runner()
    source.run(make_batch([(PROMPT, 0, [3, 1, 2])]))
    layout = source.cache.layout
    for first, end in ((0, 2), (2, 3)):
        data = np.empty(3 * (end - first) * layout.block_layer_bytes, np.uint8)
        source.cache.gather(first, end, np.array([3, 1, 2]), data)
        target.cache.scatter(first, end, np.array([9, 7, 8]), data)
    answer = oracle_tokens(SHAPE, PROMPT, GREEDY, 6)
    assert decode(target, [*PROMPT, answer[0]], [9, 7, 8, 4], 5, start=len(PROMPT)) == answer[1:]


def test_layers_are_reported_in_groups_each_when_its_share_of_the_time_is_over_and_its_kv_is_written() -> None:
    shape = ModelledShape(StepLatency(prefill_a_s=2.0, prefill_b_s=0.1), num_layers=3, layer_groups=(2, 3))
    runner, clock = make_runner(shape)
    expected, _ = make_runner(shape)
    expected.run(make_batch([(PROMPT, 0, [0, 1, 2])]))
    reports = []

    def on_layers(first: int, end: int) -> None:
        written = [np.empty(2 * (end - first) * runner.cache.layout.block_layer_bytes, np.uint8) for _ in range(2)]
        for cache, data in zip((runner.cache, expected.cache), written, strict=True):
            cache.gather(first, end, np.array([0, 1]), data)
        reports.append((first, end, clock.now_s - 100, np.array_equal(*written)))

    runner.run(make_batch([(PROMPT, 0, [0, 1, 2])]), on_layers)
    assert reports == [(0, 2, pytest.approx(2.0), True), (2, 3, pytest.approx(3.0), True)]


def test_slow_listeners_do_not_stretch_a_step() -> None:
    runner, clock = make_runner(ModelledShape(StepLatency(decode_alpha_s=1.0)))
    runner.run(make_batch([(PROMPT, 0, [0, 1, 2])]))
    before_s = clock.now_s
    runner.run(make_batch([([*PROMPT, 1], len(PROMPT), [0, 1, 2])]), lambda _first, _end: clock.sleep(0.2))
    assert clock.now_s - before_s == pytest.approx(1.2)


def test_rows_may_be_sampled_often_or_not_at_all() -> None:
    runner, _ = make_runner()
    batch = make_batch([(PROMPT, 0, [0, 1, 2]), (PROMPT[:3], 0, [3])])
    samples = (SampleRow(1, SEEDED, 0, 0), SampleRow(1, SEEDED, 0, 1))
    tokens = runner.run(
        Batch(batch.token_ids, batch.cu_seqlens, batch.context_lens, batch.block_tables, samples)
    ).token_ids
    assert tokens.tolist() == [oracle_tokens(SHAPE, PROMPT[:3], SEEDED, 1, choice=choice)[0] for choice in (0, 1)]
    assert runner.run(Batch(*[getattr(batch, name) for name in batch.__slots__[:4]], samples=())).token_ids.shape == (
        0,
    )


def test_memory_for_less_than_a_block_is_refused() -> None:
    with pytest.raises(SpecError, match="modelled:instant: 100 bytes of KV memory hold no block of 1024 bytes"):
        load_modelled("modelled:instant", max_model_len=64, kv_bytes=100, block_tokens=16)


def test_memory_that_cannot_be_had_is_refused() -> None:
    for shared_kv in (False, True):
        with pytest.raises(SpecError, match=r"kv\.memory"):
            load_modelled("modelled:instant", max_model_len=64, kv_bytes=1 << 50, block_tokens=16, shared_kv=shared_kv)


def test_kv_that_is_shared_is_the_runners_own() -> None:
    runner = load_modelled("modelled:instant", max_model_len=64, kv_bytes=1 << 20, block_tokens=16, shared_kv=True)
    layout, shared = runner.cache.layout, runner.cache.shared
    assert shared is not None
    runner.cache.scatter(0, layout.num_layers, np.array([3]), np.full(layout.block_bytes, 9, np.uint8))
    seen = map_pool(shared.fd).reshape(shared.blocks.shape)
    assert (seen[3] == 9).all()
    assert not np.delete(seen, 3, axis=0).any()


def test_torch_is_not_imported() -> None:
    code = "import sys, twinpool.model.modelled_runner\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\n"
