"""How much of a worker's KV may wait for decode workers with room: ``kv.parked_share``, whatever they do."""

from tests.cluster.engine_builders import BLOCK_TOKENS, Recorder, make_engine, make_request, make_sequence
from twinpool.cluster.engine import Engine
from twinpool.cluster.engine_events import Destination
from twinpool.model.modelled_shape import modelled_shape
from twinpool.model.sequence import Key

SHAPE = modelled_shape("modelled:instant")
NUM_BLOCKS, LIMIT, EACH = 40, 12, 4


def prefilled(num_requests: int, first: int = 0, engine: Engine | None = None) -> tuple[Engine, Recorder]:
    """A worker that was sent so many prompts of four blocks, for decode workers that grant nothing."""
    events = Recorder()
    if engine is None:
        kv_bytes = NUM_BLOCKS * BLOCK_TOKENS * SHAPE.kv_token_bytes
        engine = make_engine(events, kv_bytes=kv_bytes, parked_share=LIMIT / NUM_BLOCKS, prefix_cache=False)
    for number in range(first, first + num_requests):
        prompt = range(100 * number, 100 * number + EACH * BLOCK_TOKENS)
        engine.submit(make_sequence(make_request(f"r{number:02}", prompt)), Destination.HANDOFF)
    run(engine)
    return engine, events


def run(engine: Engine) -> None:
    while engine.step():
        assert engine.prefill.parked_blocks <= LIMIT


def test_prompts_beyond_the_share_wait_and_say_why_until_something_is_granted() -> None:
    engine, events = prefilled(8)
    assert [key.request_id for key, _ in events.done] == ["r00", "r01", "r02"]
    assert engine.load().parked_blocks == LIMIT
    assert "parked" in engine.load().cause
    engine.granted(Key("r00", 1))
    run(engine)
    assert [key.request_id for key, _ in events.done] == ["r00", "r01", "r02", "r03"]
    engine.release_source(Key("r00", 1))
    assert engine.load().parked_blocks == LIMIT


def test_grants_that_are_lost_do_not_make_room_for_more_the_youngest_give_way() -> None:
    engine, events = prefilled(3)
    for number in range(3):
        engine.granted(Key(f"r{number:02}", 1))
    prefilled(3, first=3, engine=engine)
    assert engine.load().parked_blocks == LIMIT
    for number in range(3):
        engine.ungranted(Key(f"r{number:02}", 1))
    assert [key.request_id for key in events.demoted] == ["r05", "r04", "r03"]
    for key in list(events.demoted):
        engine.release_source(key)
    assert engine.load().parked_blocks == LIMIT
    run(engine)


def test_one_prompt_larger_than_the_share_is_let_through_alone() -> None:
    """It could never run otherwise."""
    engine, events = prefilled(0)
    for number in range(2):
        prompt = range(1000 * number, 1000 * number + 20 * BLOCK_TOKENS)
        engine.submit(make_sequence(make_request(f"big{number}", prompt)), Destination.HANDOFF)
    while engine.step():
        pass
    assert [key.request_id for key, _ in events.done] == ["big0"]
    assert engine.load().parked_blocks == 20
