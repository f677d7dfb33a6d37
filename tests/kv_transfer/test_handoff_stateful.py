"""Handoffs of any shape through up to three targets, under any number of faults, in orders that hypothesis chooses."""

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from twinpool.kv_transfer.plan import Span, layer_groups, spans_of_chunk
from twinpool.simulator.handoff_model import Model
from twinpool.simulator.handoff_steps import Kind, Step, check_at_rest, check_bounded, steps, take


@st.composite
def models(draw):
    num_layers, num_blocks = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    ends = sorted(draw(st.sets(st.integers(1, num_blocks))) | {num_blocks})
    layers = layer_groups(num_layers, draw(st.integers(1, 3)))
    spans: tuple[Span, ...] = ()
    for before, after in zip([0, *ends], ends, strict=False):
        spans += spans_of_chunk(before, after, after == num_blocks, 1, layers)
    return Model(
        spans,
        skip_blocks=draw(st.integers(0, num_blocks - 1)),
        window=draw(st.integers(1, 4)),
        max_lanes=3,
        is_buffered=draw(st.booleans()),
        num_layers=num_layers,
        num_blocks=num_blocks,
    )


class HandoffWorld(RuleBasedStateMachine):
    """Safety is checked by the model at each step; at the end, faults stop and everything must come to rest, clean."""

    @initialize(model=models(), count=st.integers(0, 40), seed=st.integers(0, 99))
    def begin(self, model, count, seed):
        self.model = model
        self.scene = model.start()
        self.progress(count, seed)

    def options(self, *kinds: Kind) -> list[Step]:
        return [step for step in steps(self.model, self.scene) if step.kind in kinds]

    def choose(self, number: int, *kinds: Kind, names: tuple[str, ...] = ("",)) -> None:
        options = [step for step in self.options(*kinds) if step.name.startswith(names)]
        if options:
            self.scene = take(self.model, self.scene, options[number % len(options)])
            check_bounded(self.scene)

    @rule(count=st.integers(1, 20), seed=st.integers(0, 99))
    def progress(self, count, seed):
        draw = Random(seed)
        for _ in range(count):
            self.choose(draw.randrange(60), Kind.PROGRESS)

    @rule(number=st.integers(0, 60))
    def fault(self, number):
        self.choose(number, Kind.FAULT)

    @rule(number=st.integers(0, 11))
    def mishap(self, number):
        self.choose(number, Kind.FAULT, names=("corrupt", "drop", "double", "early", "ask"))

    @rule(number=st.integers(0, 8))
    def early_timer(self, number):
        self.choose(number, Kind.TIMER)

    @rule()
    def another_target(self):
        self.choose(0, Kind.OPTION)

    def teardown(self):
        if not hasattr(self, "scene"):
            return
        for _ in range(2000):
            options = self.options(Kind.PROGRESS) or self.options(Kind.TIMER)
            if not options:
                check_at_rest(self.scene)
                return
            self.scene = take(self.model, self.scene, options[0])
        raise AssertionError("no rest after 2000 steps without a fault")


TestHandoffWorld = HandoffWorld.TestCase
TestHandoffWorld.settings = settings(max_examples=300, stateful_step_count=20, deadline=None)
