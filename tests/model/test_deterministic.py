"""Deterministic arithmetic: the same bits of keys, values and logits in any company and however prompts are cut.

Small models of every family; every step runs over memory that held NaN.
"""

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from twinpool.core.errors import SpecError
from twinpool.kernels import linear
from twinpool.model.runner import TorchRunner

from .conftest import Driver
from .family_builders import save_family

FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 20},
    "qwen2": {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "tie_word_embeddings": True},
    "qwen3": {"num_attention_heads": 6, "use_sliding_window": True, "sliding_window": 30, "max_window_layers": 2},
}
WIDE = {"intermediate_size": 1003, "hidden_size": 56, "head_dim": 18}  # nothing that vectors divide
WORKERS = [  # each family and each dtype once; the others are slow
    pytest.param(family, dtype, marks=() if (dtype == "float32") == (family == "mistral") else pytest.mark.slow)
    for family in FAMILIES
    for dtype in ("float32", "bfloat16")
]
NUM_ANSWERED, BLOCKS_EACH = 5, 16


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        family: save_family(tmp_path_factory.mktemp(family), family, max_position_embeddings=256, **WIDE, **changes)
        for family, changes in FAMILIES.items()
    }


class RecordingDecoder:
    """A decoder that keeps the logits it made, row by row."""

    def __init__(self, decoder):
        self._decoder = decoder
        self.rows = []
        self.compute = decoder.compute

    def logits(self, hidden):
        made = self._decoder.logits(hidden)
        self.rows += list(made.clone())
        return made


class World:
    """A worker's runner, and sequences of random prompts on it."""

    def __init__(self, folder, dtype, threads):
        options = {"max_model_len": 256, "kv_bytes": 1 << 22, "block_tokens": 8}
        runner = TorchRunner.load(str(folder), dtype=dtype, threads=threads, deterministic=True, **options)
        self.decoder = runner._decoder = RecordingDecoder(runner._decoder)
        self.driver = Driver(runner)
        self.runner = runner

    def start(self, prompts):
        self.runner.cache.tensor.fill_(torch.nan)
        order = np.random.default_rng(len(prompts)).permutation(BLOCKS_EACH * len(prompts))
        return [
            self.driver.sequence(prompt, table)
            for prompt, table in zip(prompts, np.split(order, len(prompts)), strict=True)
        ]

    def step(self, *work):
        """One step; returns (sequence, its logits) of those that sampled."""
        self.decoder.rows.clear()
        before = [len(sequence.answer) for sequence, _ in work]
        self.driver.step(*work)
        sampled = [s for (s, _), count in zip(work, before, strict=True) if len(s.answer) > count]
        return list(zip(sampled, self.decoder.rows, strict=True))

    def kv(self, sequence):
        """Bytes of its keys and values ``[tokens, ...]``, all layers."""
        blocks = self.runner.cache.tensor[torch.from_numpy(np.array(sequence.table))]
        rows = blocks.permute(0, 4, 1, 2, 3, 5).flatten(0, 1)[: sequence.computed]
        return rows.contiguous().view(torch.uint8)

    def alone(self, prompt):
        """Tokens, logits and keys and values of one prompt by itself, whole, then token by token."""
        (sequence,) = self.start([prompt])
        logits = []
        while len(sequence.answer) < NUM_ANSWERED:
            logits += [row for _, row in self.step((sequence, len(sequence.tokens) - sequence.computed))]
        return sequence.tokens, torch.stack(logits), self.kv(sequence)


@pytest.fixture
def one_thread_after():
    yield
    torch.set_num_threads(1)


def check_same(world, prompts, alone, rng):
    """Random company, order and cuts; every bit as alone."""
    sequences = world.start(prompts)
    logits = {id(sequence): [] for sequence in sequences}
    while running := [s for s in sequences if len(s.answer) < NUM_ANSWERED]:
        chosen = rng.sample(running, rng.randint(1, len(running)))
        work = [(s, rng.randint(1, len(s.tokens) - s.computed)) for s in chosen]
        for sequence, row in world.step(*work):
            logits[id(sequence)].append(row)
    for sequence, (tokens, rows, kv) in zip(sequences, alone, strict=True):
        assert sequence.tokens == tokens
        assert torch.equal(torch.stack(logits[id(sequence)]), rows)
        assert torch.equal(world.kv(sequence), kv)


@pytest.mark.usefixtures("one_thread_after")
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("family", "dtype"), WORKERS)
def test_a_sequence_has_the_same_bits_in_any_company_and_on_any_worker(folders, family, dtype, threads):
    rng = random.Random(1)
    prompts = [[rng.randrange(131) for _ in range(length)] for length in (1, 70, 8, 41)]
    world, other = (World(folders[family], dtype, threads) for _ in range(2))
    alone = [other.alone(prompt) for prompt in prompts]
    for _ in range(2):
        check_same(world, prompts, alone, rng)


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=6), seed=st.integers(0, 10**6))
def test_any_mix_of_prompts_leaves_each_as_it_is_alone(folders, shared_world, lengths, seed):
    rng = random.Random(seed)
    prompts = [[rng.randrange(131) for _ in range(length)] for length in lengths]
    check_same(shared_world, prompts, [shared_world.alone(prompt) for prompt in prompts], rng)


@pytest.fixture(scope="module")
def shared_world(folders):
    return World(folders["qwen3"], "bfloat16", 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_token_has_the_same_bits_when_it_is_decoded_as_when_it_is_prefilled(folders, family):
    world = World(folders[family], "bfloat16", 1)
    prompt = [7 * i % 131 for i in range(45)]
    tokens, logits, kv = world.alone(prompt)
    (again,) = world.start([tokens[:-1]])
    ((_, row),) = world.step((again, len(again.tokens)))
    assert torch.equal(row, logits[-1])
    assert torch.equal(world.kv(again), kv)


def test_a_cached_prefix_gives_the_bits_that_computing_it_again_would(folders):
    world = World(folders["mistral"], "float32", 1)
    prompt = [5 * i % 131 for i in range(50)]
    expected = world.alone(prompt)
    (first,) = world.start([prompt[:32]])
    world.step((first, 32))
    reusing = world.driver.sequence(prompt, [*first.table[:4], *range(100, 110)])  # four blocks, and its own
    reusing.computed, logits = 32, []
    while len(reusing.answer) < NUM_ANSWERED:
        logits += [row for _, row in world.step((reusing, len(reusing.tokens) - reusing.computed))]
    assert reusing.tokens == expected[0]
    assert torch.equal(torch.stack(logits), expected[1])
    assert torch.equal(world.kv(reusing), expected[2])


def test_without_it_the_bits_do_depend_on_the_company(folders):
    """Else the tests above would prove nothing of the deterministic arithmetic."""
    options = {"max_model_len": 256, "kv_bytes": 1 << 22, "block_tokens": 8}
    runner = TorchRunner.load(str(folders["llama"]), **options)
    runner._decoder = RecordingDecoder(runner._decoder)
    rows = []
    for chunk in (90, 1):
        driver = Driver(runner)
        runner._decoder.rows.clear()
        driver.answer(driver.sequence([3 * i % 131 for i in range(90)], range(16)), 1, chunk)
        rows.append(runner._decoder.rows[-1].clone())
    assert not torch.equal(*rows)


def test_a_machine_that_cannot_keep_the_promise_says_so(folders, monkeypatch):
    monkeypatch.setattr(linear, "_orders", {})

    def numbers_its_rows(x, *_):
        return x[:, :1] + torch.arange(float(len(x)))[:, None]

    monkeypatch.setattr(linear, "_packed_product", numbers_its_rows)
    with pytest.raises(SpecError, match=r"model\.deterministic"):
        World(folders["llama"], "float32", 1)
