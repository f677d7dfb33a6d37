"""A timed engine computes what any engine does, and tells each step once."""

from itertools import count

from tests.cluster.engine_builders import Recorder, make_config, make_engine, make_request, make_sequence
from twinpool.cluster.engine_events import Destination
from twinpool.cluster.profile.rows import TimedStep
from twinpool.cluster.profile.timed_engine import TimedEngine
from twinpool.model.modelled_runner import load_modelled


def run_all(engine: TimedEngine) -> list[TimedStep]:
    while engine.step():
        pass
    return engine.take_steps()


def make_timed(events: Recorder, **changes: object) -> TimedEngine:
    """Its clock moves on by a second whenever it is read."""
    config = make_config(**changes)
    runner = load_modelled(
        config.model, max_model_len=config.max_model_len, kv_bytes=config.kv_bytes, block_tokens=config.block_tokens
    )
    ticks = count()
    return TimedEngine(config, runner, events, lambda: float(next(ticks)))


def test_each_step_is_told_once_with_what_it_was_made_of() -> None:
    events = Recorder()
    engine = make_timed(events, chunk_tokens=32)
    engine.submit(make_sequence(make_request(prompt=range(5, 45), max_tokens=3)), Destination.LOCAL)
    steps = run_all(engine)
    made = [(s.prefill_tokens, s.prefill_squares, s.num_prompts, s.context_tokens, s.batch) for s in steps]
    assert made == [
        (32, 32**2, 1, 0, 0),
        (8, 40**2 - 32**2, 1, 0, 0),
        (0, 0, 0, 41, 1),
        (0, 0, 0, 42, 1),
    ]
    assert engine.take_steps() == []
    assert all(0 < step.run_s < step.seconds for step in steps)
    assert [step.started_s for step in steps] == sorted(step.started_s for step in steps)


def test_its_answers_are_an_engine_s() -> None:
    answers = []
    for make in (make_timed, make_engine):
        events = Recorder()
        engine = make(events)
        engine.submit(make_sequence(make_request()), Destination.LOCAL)
        while engine.step():
            pass
        answers.append(events.answer("r"))
    assert answers[0] == answers[1]
    assert len(answers[0]) == 8


def test_a_step_that_computes_nothing_is_not_told() -> None:
    assert run_all(make_timed(Recorder())) == []
