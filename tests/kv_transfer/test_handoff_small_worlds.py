"""Every future of small handoffs: all orders of events, with up to N faults or early timers anywhere in between."""

from collections import Counter

import pytest

from twinpool.kv_transfer.events import Action, Release
from twinpool.kv_transfer.phases import SourcePhase, TargetPhase
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.target import TargetHandoff
from twinpool.simulator.handoff_model import Blocks, Model, Scene, UnsafeError
from twinpool.simulator.handoff_steps import Kind, Step, check_at_rest, check_bounded, steps, take

ONE = (Span(0, 1, 0, 1),)
TWO_BLOCKS = (Span(0, 1, 0, 1), Span(0, 1, 1, 2))
TWO_LAYERS = (Span(0, 1, 0, 1), Span(1, 2, 0, 1))


class Walk:
    """Visits every scene within a budget of faults, and every step from it."""

    def __init__(self, model: Model, budget: int) -> None:
        self.model = model
        start = model.start()
        self.left = {start: budget}  # the most faults left with which a scene was reached
        self.came_by: dict[Scene, tuple[Scene, Step]] = {}
        self.free: dict[Scene, list[Scene]] = {}  # what follows without any fault
        self.at_rest: list[Scene] = []
        todo = [start]
        while todo:
            todo += self.visit(todo.pop())

    def visit(self, scene: Scene) -> list[Scene]:
        options = list(steps(self.model, scene))
        lowest = options[0].kind if options else Kind.FAULT
        reached: list[Scene] = []
        self.free[scene] = []
        with self.told(scene):
            check_bounded(scene)
            if lowest not in (Kind.PROGRESS, Kind.TIMER):
                check_at_rest(scene)
                self.at_rest.append(scene)
        for step in options:
            is_free = step.kind is lowest and lowest in (Kind.PROGRESS, Kind.TIMER)
            left = self.left[scene] - (0 if is_free or step.kind is Kind.OPTION else 1)
            if left < 0:
                continue
            with self.told(scene, step):
                after = take(self.model, scene, step)
            if is_free:
                self.free[scene].append(after)
            if self.left.get(after, -1) < left:
                self.left[after] = left
                self.came_by[after] = (scene, step)
                reached.append(after)
        return reached

    def told(self, scene: Scene, *last: Step) -> "Told":
        return Told(self, scene, last)

    def story(self, scene: Scene) -> list[Step]:
        story: list[Step] = []
        while scene in self.came_by:
            scene, step = self.came_by[scene]
            story.insert(0, step)
        return story

    def crashed(self, scene: Scene) -> str:
        """Which end died on the way to the scene; empty: none did."""
        return next((step.name for step in self.story(scene) if step.name.startswith("crash")), "")

    def num_unending(self) -> int:
        """Scenes from which events could go round for ever without a fault (those a topological sort cannot reach)."""
        num_causes = Counter(after for follows in self.free.values() for after in follows)
        todo = [scene for scene in self.free if not num_causes[scene]]
        num_sorted = 0
        while todo:
            num_sorted += 1
            for after in self.free[todo.pop()]:
                num_causes[after] -= 1
                if not num_causes[after]:
                    todo.append(after)
        return len(self.free) - num_sorted


class Told:
    """Adds the story so far to what goes wrong inside."""

    def __init__(self, walk: Walk, scene: Scene, last: tuple[Step, ...]) -> None:
        self.walk, self.scene, self.last = walk, scene, last

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            story = [*self.walk.story(self.scene), *self.last]
            error.add_note("\n".join(f"{step.kind.name} {step.name} lane {step.lane}" for step in story))


WORLDS = {
    "one group": Model(ONE),
    "one group, buffered link": Model(ONE, is_buffered=True),
    "two blocks": Model(TWO_BLOCKS, num_blocks=2),
    "two blocks at once": Model(TWO_BLOCKS, num_blocks=2, window=2, is_buffered=True),
    "one of two blocks skipped": Model(TWO_BLOCKS, num_blocks=2, skip_blocks=1),
    "two layer groups": Model(TWO_LAYERS, num_layers=2, window=2),
    "a second target": Model(ONE, max_lanes=2),
}
SMALL = [name for name, model in WORLDS.items() if model.max_lanes == 1]


@pytest.mark.parametrize("name", WORLDS)
def test_without_faults_every_order_of_events_ends_in_a_commit(name):
    model = WORLDS[name]
    walk = Walk(model, budget=0)
    for scene in walk.at_rest:
        assert scene.source is not None
        assert scene.source.phase is SourcePhase.COMMITTED
        assert scene.lanes[0].blocks is Blocks.ADOPTED
        assert not scene.reports
    assert walk.at_rest


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SMALL, "a second target"])
def test_with_one_fault_anywhere_nothing_is_lost_leaked_or_hangs(name):
    walk = Walk(WORLDS[name], budget=1)
    assert walk.num_unending() == 0
    assert len(walk.free) > 1000


@pytest.mark.slow
def test_either_end_may_die_at_any_step_and_the_request_arrives_from_or_at_another() -> None:
    walk = Walk(WORLDS["a second target"], budget=1)
    came_by = Counter(step.name for _, step in walk.came_by.values())
    assert all(came_by[name] for name in ("crash source", "restart source", "crash target", "retarget"))
    again = [scene for scene in walk.at_rest if len(scene.lanes) == 2 and scene.lanes[1].blocks is Blocks.ADOPTED]
    assert {walk.crashed(scene) for scene in again} >= {"crash source", "crash target"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["one group", "one group, buffered link", "one of two blocks skipped", "two blocks"])
def test_with_two_faults_anywhere_nothing_is_lost_leaked_or_hangs(name):
    walk = Walk(WORLDS[name], budget=2)
    assert walk.num_unending() == 0


def test_the_walk_notices_a_target_that_frees_before_the_source_has_stopped(monkeypatch):
    def finish_drain(target: TargetHandoff) -> list[Action]:
        target._enter(TargetPhase.ENDED)
        return [Release()]

    monkeypatch.setattr(TargetHandoff, "_finish_drain", finish_drain)
    with pytest.raises(UnsafeError, match=r"posted receive may write|written into"):
        Walk(Model(ONE, is_buffered=True), budget=1)
