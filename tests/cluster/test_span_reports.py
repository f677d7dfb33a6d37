"""Spans of a prompt's KV: in the layer groups that the rates call for, every block of every layer once."""

from collections import Counter

from tests.cluster.engine_builders import BLOCK_TOKENS, Recorder, make_engine, make_request, make_sequence
from twinpool.cluster.engine_events import Destination
from twinpool.kv_transfer.plan import Span
from twinpool.model.layer_groups import StreamRates, choose_layer_groups

CHUNK_TOKENS = 16
FAST_COMPUTE, SLOW_COMPUTE = StreamRates(1e6, 1e9), StreamRates(1e9, 1e3)


def tiles(spans: list[Span]) -> Counter[tuple[int, int]]:
    return Counter(
        (layer, block)
        for span in spans
        for layer in range(span.first_layer, span.end_layer)
        for block in range(span.first_block, span.end_block)
    )


def test_groups_that_change_between_steps_still_send_every_block_of_every_layer_once() -> None:
    events = Recorder()
    engine = make_engine(events, chunk_tokens=CHUNK_TOKENS)
    request = make_request(prompt=range(5, 5 + 3 * CHUNK_TOKENS))
    engine.submit(make_sequence(request), Destination.HANDOFF)
    layout = engine._runner.cache.layout
    layer_bytes = layout.block_layer_bytes * CHUNK_TOKENS // BLOCK_TOKENS
    for rates in (FAST_COMPUTE, SLOW_COMPUTE, FAST_COMPUTE):
        engine.spans.stream_at(rates)
        assert engine._runner.layer_groups == choose_layer_groups(layout.num_layers, layer_bytes, rates)
        before = len(events.spans)
        engine.step()
        ends = tuple(span.end_layer for _, span in events.spans[before:])
        assert ends == engine._runner.layer_groups
    spans = [span for _, span in events.spans]
    assert set(tiles(spans).values()) == {1}
    assert len(tiles(spans)) == layout.num_layers * 3 * CHUNK_TOKENS // BLOCK_TOKENS


def test_cached_kv_leaves_in_the_same_groups_as_computed_kv() -> None:
    events = Recorder()
    engine = make_engine(events, chunk_tokens=CHUNK_TOKENS)
    for request_id in ("first", "again"):
        request = make_request(request_id, prompt=range(5, 6 + 2 * CHUNK_TOKENS))
        engine.submit(make_sequence(request), Destination.HANDOFF)
        while engine.step():
            pass
        engine.release_source(make_sequence(request).key)
    spans = [span for key, span in events.spans if key.request_id == "again"]
    assert set(tiles(spans).values()) == {1}
    assert {span.end_layer for span in spans} == set(engine._runner.layer_groups)
