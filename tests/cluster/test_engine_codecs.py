"""Whose KV a request may be given when KV crosses links in a lossy codec: what came lossy is never taken for exact."""

from dataclasses import replace

import pytest

from tests.cluster.engine_builders import BLOCK_TOKENS, Recorder, make_config, make_request, make_sequence
from twinpool.cluster.engine import Engine
from twinpool.cluster.engine_events import Destination
from twinpool.decode_worker.service import Sealed
from twinpool.kv_transfer.codec import CodecName, quality
from twinpool.model.modelled_runner import ModelledRunner
from twinpool.model.modelled_shape import modelled_shape

SHAPE = replace(modelled_shape("modelled:instant"), head_dim=16)  # which codecs fit
PROMPT = range(5, 40)  # four full blocks and a partial one
NUM_FULL = len(PROMPT) // BLOCK_TOKENS


class CodedEngine:
    """An engine whose cluster moves KV in one codec, or several."""

    def __init__(self, codec: str) -> None:
        self.events = Recorder()
        runner = ModelledRunner(SHAPE, model="m", max_model_len=256, kv_bytes=1 << 20, block_tokens=BLOCK_TOKENS)
        self.engine = Engine(make_config(codec=codec), runner, self.events, lambda: 0.0)

    def receive(self, name: str, codec: CodecName, prompt: range = PROMPT, *, lossless: bool = False) -> int:
        """Be the target of a handoff from beginning to end; how many blocks were held already."""
        engine = self.engine
        sequence = make_sequence(replace(make_request(name, prompt, max_tokens=2), lossless_kv=lossless))
        engine.want(sequence)
        engine.step()
        key, _, skip_blocks = self.events.bindings[-1]
        assert key == sequence.key
        engine.adopt(key, Sealed(7, 0.0, 0.0, 0.0, 0, 0.0, quality(codec)))
        while engine.step():
            engine.pool.check()
        assert engine.pool.is_idle
        return skip_blocks

    def prefill(self, name: str, destination: Destination, *, lossless: bool = False) -> int:
        """Compute a prompt; how many blocks of it came from the cache."""
        sequence = make_sequence(replace(make_request(name, PROMPT, max_tokens=2), lossless_kv=lossless))
        self.engine.submit(sequence, destination)
        while self.engine.step():
            self.engine.pool.check()
        self.engine.release_source(sequence.key)
        return sequence.cached_tokens // BLOCK_TOKENS


@pytest.mark.parametrize("codec", ["int8", "fp8", "int4", "int2"])
def test_blocks_that_came_lossy_are_for_requests_that_allow_loss(codec: str) -> None:
    worker = CodedEngine(codec)
    assert worker.receive("first", CodecName(codec)) == 0
    assert worker.receive("same", CodecName(codec)) == NUM_FULL
    assert worker.receive("exact", CodecName.RAW, lossless=True) == 0
    assert worker.receive("exact again", CodecName.RAW, lossless=True) == NUM_FULL


def test_a_prompt_that_is_handed_off_is_computed_from_exact_kv_only() -> None:
    worker = CodedEngine("int8")
    worker.receive("lossy", CodecName.INT8)
    assert worker.prefill("handoff", Destination.HANDOFF) == 0
    assert worker.prefill("handoff again", Destination.HANDOFF) == NUM_FULL


@pytest.mark.parametrize("destination", [Destination.LOCAL, Destination.NOWHERE])
def test_a_local_prompt_takes_lossy_blocks_only_if_it_allows_loss_and_what_it_adds_is_lossy(
    destination: Destination,
) -> None:
    worker = CodedEngine("int8")
    worker.receive("beginning", CodecName.INT8, PROMPT[: 2 * BLOCK_TOKENS])
    assert worker.prefill("exact", destination, lossless=True) == 0
    worker.engine.pool.clear_cache()
    worker.receive("beginning", CodecName.INT8, PROMPT[: 2 * BLOCK_TOKENS])
    assert worker.prefill("lossy", destination) == 2
    assert worker.prefill("lossy again", destination) == NUM_FULL
    assert worker.prefill("exact", destination, lossless=True) == 0


def test_exact_blocks_are_for_everybody_and_the_rest_of_a_mixed_sequence_counts_as_lossy() -> None:
    worker = CodedEngine("int4")
    worker.receive("exact", CodecName.RAW, PROMPT[: 2 * BLOCK_TOKENS], lossless=True)
    assert worker.receive("mixed", CodecName.INT4) == 2
    assert worker.receive("mixed again", CodecName.INT4) == NUM_FULL
    assert worker.receive("exact again", CodecName.RAW, lossless=True) == 2


def test_what_came_raw_behind_a_lossy_beginning_is_not_exact() -> None:
    """Under auto a handoff may be raw for a request that allows loss; its own skipped blocks need not be."""
    worker = CodedEngine("auto")
    worker.receive("beginning", CodecName.FP8, PROMPT[: 2 * BLOCK_TOKENS])
    assert worker.receive("raw behind it", CodecName.RAW) == 2
    assert worker.receive("exact", CodecName.RAW, lossless=True) == 0


def test_with_raw_kv_nothing_is_told_apart() -> None:
    worker = CodedEngine("raw")
    assert worker.prefill("local", Destination.LOCAL) == 0
    assert worker.receive("exact", CodecName.RAW, lossless=True) == NUM_FULL
    assert worker.receive("any", CodecName.RAW) == NUM_FULL


def test_a_sequence_is_not_given_kv_of_a_quality_that_it_may_not_have() -> None:
    worker = CodedEngine("int8")
    with pytest.raises(ValueError, match="may not be given KV of quality 'int8/"):
        worker.receive("exact", CodecName.INT8, lossless=True)
