"""The engine against the modelled runner's oracle: local plans, prefix reuse, cancels, crashes."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.cluster.engine_builders import (
    BLOCK_TOKENS,
    Recorder,
    make_config,
    make_engine,
    make_request,
    make_sequence,
)
from twinpool.cluster.engine import Engine
from twinpool.cluster.engine_events import Destination
from twinpool.core.messages import FinishReason, Request
from twinpool.model.batch import NO_TOKEN, Batch, OnLayers, StepResult
from twinpool.model.modelled_kv import oracle_tokens
from twinpool.model.modelled_runner import ModelledRunner
from twinpool.model.modelled_shape import modelled_shape

SHAPE = modelled_shape("modelled:instant")


def oracle(request: Request) -> list[int]:
    return oracle_tokens(SHAPE, request.token_ids, request.sampling, request.sampling.max_tokens)


def test_local_requests_together_answer_as_alone() -> None:
    events = Recorder()
    engine = make_engine(events)
    requests = [make_request(f"r{i}", range(5 + i, 30 + 9 * i), temperature=i % 2, seed=i) for i in range(6)]
    for request in requests:
        engine.submit(make_sequence(request), Destination.LOCAL)
    while engine.step():
        engine.pool.check()
    assert {r.request_id: events.answer(r.request_id) for r in requests} == {r.request_id: oracle(r) for r in requests}
    assert engine.pool.is_idle


def test_a_second_prompt_that_begins_alike_reuses_full_blocks_and_answers_right() -> None:
    events = Recorder()
    engine = make_engine(events)
    for name in ("first", "second"):
        engine.submit(make_sequence(make_request(name, range(5, 40))), Destination.LOCAL)
        while engine.step():
            pass
    cached = {token.key.request_id: token.cached_tokens for token in events.tokens if token.prefill_s is not None}
    assert cached == {"first": 0, "second": (35 - 1) // BLOCK_TOKENS * BLOCK_TOKENS}
    assert events.answer("second") == events.answer("first") == oracle(make_request("x", range(5, 40)))


def test_spans_of_a_handoff_tile_every_layer_of_every_block_once() -> None:
    events = Recorder()
    engine = make_engine(events)
    for name in ("warm", "sent"):  # the second finds its prefix cached, and must report that too
        engine.submit(make_sequence(make_request(name, range(5, 76))), Destination.HANDOFF)
        while engine.step():
            pass
        engine.release_source(make_sequence(make_request(name)).key)
    for name in ("warm", "sent"):
        spans = [span for key, span in events.spans if key.request_id == name]
        cells = [
            (block, layer)
            for span in spans
            for block in range(span.first_block, span.end_block)
            for layer in range(span.first_layer, span.end_layer)
        ]
        assert sorted(cells) == list(product(range(-(-71 // BLOCK_TOKENS)), range(SHAPE.num_layers)))
    assert engine.pool.is_idle


def test_a_first_token_that_ends_the_answer_is_not_handed_off() -> None:
    events = Recorder()
    engine = make_engine(events)
    first = oracle(make_request())[0]
    request = make_request(stop_token_ids=(first,))
    engine.submit(make_sequence(request), Destination.HANDOFF)
    while engine.step():
        pass
    assert [token.finish for token in events.tokens] == [FinishReason.STOP]
    assert events.done == []
    assert events.cancelled == [make_sequence(request).key]


@pytest.mark.parametrize("steps_before", range(6))
@pytest.mark.parametrize("destination", [Destination.LOCAL, Destination.HANDOFF])
def test_cancel_at_any_step_gives_every_block_back(steps_before: int, destination: Destination) -> None:
    events = Recorder()
    engine = make_engine(events)
    sequence = make_sequence(make_request())
    engine.submit(sequence, destination)
    for _ in range(steps_before):
        engine.step()
    engine.cancel(sequence.key)
    engine.release_source(sequence.key)
    assert not engine.step()
    assert engine.pool.is_idle
    engine.pool.check()


def test_an_answer_stops_at_the_end_of_the_context() -> None:
    events = Recorder()
    engine = make_engine(events, max_model_len=40)
    engine.submit(make_sequence(make_request(max_tokens=100)), Destination.LOCAL)
    while engine.step():
        pass
    assert [token.finish for token in events.tokens][-1] is FinishReason.LENGTH
    assert len(events.tokens) == 40 - 35


def test_a_step_that_raises_reports_a_crash() -> None:
    class Crash(Recorder):
        error: Exception | None = None

        def crashed(self, error: Exception) -> None:
            self.error = error

    events = Crash()
    engine = make_engine(events)
    engine.post(lambda: (_ for _ in ()).throw(ZeroDivisionError("a bug")))
    engine.start()
    engine.stop()
    assert isinstance(events.error, ZeroDivisionError)


def test_a_grant_leaves_the_blocks_that_decoding_rows_need() -> None:
    """A parked handoff, a row at a block's end, and a handoff that wants all the rest."""
    events = Recorder()
    engine = make_engine(events, kv_bytes=8 * BLOCK_TOKENS * SHAPE.kv_token_bytes, max_model_len=64, parked_share=0.9)
    engine.submit(make_sequence(make_request("parked", range(24))), Destination.HANDOFF)
    engine.step()
    engine.step()
    engine.submit(make_sequence(make_request("local", range(30, 38), max_tokens=9)), Destination.LOCAL)
    engine.step()
    engine.want(make_sequence(make_request("wanted", range(50, 82), max_tokens=2)))
    engine.step()
    assert events.demoted == [make_sequence(make_request("parked")).key]
    assert events.bindings == []
    engine.release_source(events.demoted[0])
    while engine.step():
        engine.pool.check()
    assert [key.request_id for key, _, _ in events.bindings] == ["wanted"]
    assert len(events.answer("local")) == 9


class SickRunner(ModelledRunner):
    """Gives no token at one index of the answer."""

    sick_index = 0

    def run(self, batch: Batch, on_layers: OnLayers | None = None) -> StepResult:
        result = super().run(batch, on_layers)
        is_sick = [row.index == self.sick_index and row.sampling.seed == 666 for row in batch.samples]
        return replace(result, token_ids=np.where(is_sick, NO_TOKEN, result.token_ids))


@pytest.mark.parametrize("sick_index", [0, 1, 3])
@pytest.mark.parametrize("destination", [Destination.LOCAL, Destination.HANDOFF])
def test_logits_that_are_not_finite_fail_their_own_request_only(sick_index: int, destination: Destination) -> None:
    events = Recorder()
    runner = SickRunner(SHAPE, model="sick", max_model_len=256, kv_bytes=1 << 20, block_tokens=BLOCK_TOKENS)
    runner.sick_index = sick_index
    engine = Engine(make_config(), runner, events, lambda: 0.0)
    sick, well = make_request("sick", seed=666), make_request("well", range(50, 70))
    engine.submit(make_sequence(sick), destination)
    engine.submit(make_sequence(well), Destination.LOCAL)
    while engine.step():
        engine.pool.check()
    assert events.answer("well") == oracle(well)
    if sick_index == 0 or destination is Destination.LOCAL:
        assert [key.request_id for key, _ in events.failures] == ["sick"]
        assert len(events.answer("sick")) == sick_index
    for key in events.cancelled:
        engine.release_source(key)
    engine.release_source(make_sequence(sick).key)
    assert engine.pool.is_idle
