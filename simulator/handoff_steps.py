"""What may happen next to a modelled handoff, and what it makes of it: progress, timers, the gateway's options, faults.

Knows no policy of exploring; tests walk all of it or some of it.
"""

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from twinpool.kv_transfer import events as ev
from twinpool.kv_transfer.phases import SourcePhase, TargetPhase
from twinpool.simulator.handoff_model import LATER, Blocks, Lane, Model, Scene, UnsafeError, with_lane


class Kind(Enum):
    """What brings a step about."""

    PROGRESS = 0  # comes by itself, in some order
    TIMER = 1  # comes by itself when nothing else does; earlier, if somebody is slow
    OPTION = 2  # the gateway may; it need not
    FAULT = 3


class Step(NamedTuple):
    """One thing that may happen, to one epoch's lane or (lane 0) to the source; ``at`` picks a message."""

    kind: Kind
    name: str
    lane: int = 0
    at: int = 0


def steps(model: Model, scene: Scene) -> Iterator[Step]:
    """Everything that may happen next, in a fixed order, progress first."""
    if scene.script:
        yield Step(Kind.PROGRESS, "compute")
    for number, lane in enumerate(scene.lanes):
        for name in _progress(model, scene, lane):
            yield Step(Kind.PROGRESS, name, number)
    if scene.source is not None and scene.source.next_deadline is not None:
        yield Step(Kind.TIMER, "tick source")
    for number, lane in enumerate(scene.lanes):
        if lane.target is not None and lane.target.next_deadline is not None:
            yield Step(Kind.TIMER, "tick target", number)
        if not lane.is_broken and bool(lane.wire) != bool(lane.posted):
            yield Step(Kind.TIMER, "link deadline", number)
    if scene.source is not None and scene.source.can_retarget and len(scene.lanes) < model.max_lanes:
        is_due = scene.lanes[-1].target is None or any(epoch == len(scene.lanes) for _, epoch, _ in scene.reports)
        yield Step(Kind.OPTION if is_due else Kind.FAULT, "retarget")
    if scene.source is None and len(scene.lanes) < model.max_lanes:
        yield Step(Kind.OPTION, "restart source")
    yield from _faults(scene)


def _progress(model: Model, scene: Scene, lane: Lane) -> Iterator[str]:
    if not lane.is_ordered and lane.target is not None:
        yield "order"
    if lane.to_target and lane.target is not None:
        yield "to target"
    if lane.to_source and scene.source is not None:
        yield "to source"
    if lane.blocks is Blocks.ASKED:
        yield "bind"
    if lane.is_bound and not lane.is_bound_told:
        yield "tell bound"
    if lane.wire and lane.posted and (not lane.is_broken or lane.wire[0][0] == lane.posted[0].seq):
        yield "move"
    on_wire = {seq for seq, _, _ in lane.wire}
    if lane.unsent and (model.is_buffered or lane.unsent[0] not in on_wire):
        yield "tell sent"
    if lane.is_broken and not lane.source_told:
        yield "close source"
    if lane.is_broken and not lane.target_told:
        yield "close target"
    if lane.source_mourns:
        yield "mourn target"
    if lane.target_mourns:
        yield "mourn source"


def _faults(scene: Scene) -> Iterator[Step]:
    if scene.source is not None:
        for name in ("crash source", "cancel source", "demote"):
            yield Step(Kind.FAULT, name)
        if scene.source.phase is SourcePhase.WAITING:
            yield Step(Kind.FAULT, "ask again")
        if scene.script:
            yield Step(Kind.FAULT, "fail compute")
    for number, lane in enumerate(scene.lanes):
        for where, messages in (("target", lane.to_target), ("source", lane.to_source)):
            for index in range(len(messages)):
                yield Step(Kind.FAULT, f"drop to {where}", number, index)
                yield Step(Kind.FAULT, f"double to {where}", number, index)
                if index:
                    yield Step(Kind.FAULT, f"early to {where}", number, index)
        if lane.wire:
            yield Step(Kind.FAULT, "corrupt", number)
        if not lane.is_broken:
            yield Step(Kind.FAULT, "break link", number)
        if lane.target is not None:
            if not lane.is_parted:
                yield Step(Kind.FAULT, "part", number)
            yield Step(Kind.FAULT, "crash target", number)
            yield Step(Kind.FAULT, "cancel target", number)


def take(model: Model, scene: Scene, step: Step) -> Scene:
    """What the step makes of the scene.

    Raises:
        UnsafeError: what must never happen, happened.
    """
    number, lane = step.lane, scene.lanes[step.lane]
    match step.name.split(" ", 1):
        case ["compute"]:
            return model.tell_source(scene._replace(script=scene.script[1:]), scene.script[0])
        case ["order"]:
            scene = with_lane(scene, number, is_ordered=True)
            return model.tell_target(scene, number, ev.Reserve(model.num_blocks))
        case [("to" | "early" | "drop" | "double") as how, where]:
            return _carry(model, scene, step, how, where.removeprefix("to "))
        case ["tick", "source"]:
            return model.tell_source(scene, ev.Tick(), LATER)
        case ["tick", "target"]:
            return model.tell_target(scene, number, ev.Tick(), LATER)
        case ["bind"]:
            return with_lane(scene, number, blocks=Blocks.HELD, is_bound=True)
        case ["tell", "bound"]:
            return model.tell_target(with_lane(scene, number, is_bound_told=True), number, ev.Bound(model.skip_blocks))
        case ["tell", "sent"]:
            scene = with_lane(scene, number, unsent=lane.unsent[1:])
            return model.tell_source(scene, ev.LinkSent(number + 1, lane.unsent[0], 0.0, 0.0))
        case ["move"]:
            return _move(model, scene, number)
        case ["corrupt"]:
            return with_lane(scene, number, wire=tuple((seq, span, False) for seq, span, _ in lane.wire))
        case ["link" | "break", _]:
            return with_lane(scene, number, is_broken=True)
        case ["close", "source"]:
            scene = with_lane(scene, number, source_told=True, unsent=())
            return model.tell_source(scene, ev.LinkClosed(number + 1, "closed"))
        case ["close", "target"]:
            scene = with_lane(scene, number, target_told=True, wire=(), posted=())
            return model.tell_target(scene, number, ev.LinkClosed(number + 1, "closed"))
        case ["restart", "source"]:
            return model.restart(scene)
        case ["retarget"]:
            epoch = len(scene.lanes) + 1
            scene = scene._replace(lanes=(*scene.lanes, model.new_lane(epoch)))
            return model.tell_source(scene, ev.Retarget(epoch))
        case _:
            return _befall(model, scene, step)


def _carry(model: Model, scene: Scene, step: Step, how: str, where: str) -> Scene:
    queue = scene.lanes[step.lane].to_target if where == "target" else scene.lanes[step.lane].to_source
    message, rest = queue[step.at], (*queue[: step.at], *queue[step.at + 1 :])
    left = (*queue, message) if how == "double" else rest
    scene = with_lane(scene, step.lane, **{f"to_{where}": left})
    if how in ("drop", "double"):
        return scene
    if where == "target":
        return model.tell_target(scene, step.lane, message)  # type: ignore[arg-type]
    return model.tell_source(scene, message)  # type: ignore[arg-type]


def _move(model: Model, scene: Scene, number: int) -> Scene:
    """The link brings its oldest message to the oldest posted receive; it knows order only, and compares headers."""
    lane = scene.lanes[number]
    (seq, span, is_intact), receive = lane.wire[0], lane.posted[0]
    if receive.seq != seq:
        return with_lane(scene, number, is_broken=True)
    scene = with_lane(scene, number, wire=lane.wire[1:], posted=lane.posted[1:])
    if receive.discard:
        return scene
    if lane.blocks is not Blocks.HELD:
        raise UnsafeError(f"a group was written into blocks that are {lane.blocks}")
    if is_intact:
        pairs = {
            (layer, block)
            for layer in range(span.first_layer, span.end_layer)
            for block in range(span.first_block, span.end_block)
        }
        scene = with_lane(scene, number, written=lane.written | pairs)
    return model.tell_target(scene, number, ev.GroupReceived(seq, is_intact))


def _befall(model: Model, scene: Scene, step: Step) -> Scene:
    number = step.lane
    match step.name:
        case "mourn target":
            scene = with_lane(scene, number, source_mourns=False, to_source=())
            return model.tell_source(scene, ev.PeerLost(number + 1, "lost"))
        case "mourn source":
            scene = with_lane(scene, number, target_mourns=False, to_target=())
            return model.tell_target(scene, number, ev.PeerLost(number + 1, "lost"))
        case "ask again":
            return model.tell_source(scene, ev.Tick())
        case "part":
            return with_lane(scene, number, is_parted=True, source_mourns=True, target_mourns=True)
        case "cancel source":
            return model.tell_source(scene._replace(excused=True), ev.Cancel("cancelled"))
        case "cancel target":
            return model.tell_target(scene._replace(excused=True), number, ev.Cancel("cancelled"))
        case "demote":
            return model.tell_source(scene, ev.Demote("room for others"))
        case "fail compute":
            return model.tell_source(scene._replace(script=()), ev.ComputeFailed("failed"))
        case "crash source":
            return _crash_source(scene)
        case "crash target":
            gone = {
                "target": None,
                "to_target": (),
                "target_told": True,
                "wire": (),
                "posted": (),
                "blocks": Blocks.NONE,
            }
            parted = {"is_parted": True, "is_broken": True, "source_mourns": scene.source is not None}
            return with_lane(scene._replace(excused=True), number, **gone, **parted, is_bound_told=True)
        case _:
            raise ValueError(f"no such step: {step}")


def _crash_source(scene: Scene) -> Scene:
    gone = {"to_source": (), "unsent": (), "source_told": True, "source_mourns": False}
    scene = scene._replace(source=None, script=(), source_holds=False, excused=True)
    for number, lane in enumerate(scene.lanes):
        mourned = {"is_parted": True, "is_broken": True, "target_mourns": lane.target is not None}
        scene = with_lane(scene, number, **gone, **mourned)
    return scene


def check_bounded(scene: Scene) -> None:
    """Raise UnsafeError if an end waits for something without a deadline."""
    ends = [(scene.source, SourcePhase.QUEUED), *((lane.target, TargetPhase.NEW) for lane in scene.lanes)]
    for end, unstarted in ends:
        if end is not None and not end.is_over and end.phase is not unstarted and end.next_deadline is None:
            raise UnsafeError(f"an end waits for ever, {end.phase}")


def check_at_rest(scene: Scene) -> None:
    """Raise UnsafeError if something is left, or the gateway waits for ever, when nothing more will happen."""
    if scene.source is not None and not scene.source.is_over:
        raise UnsafeError(f"the source rests {scene.source.phase}")
    if scene.source_holds:
        raise UnsafeError("the source's blocks are left")
    for lane in scene.lanes:
        if lane.target is not None and not lane.target.is_over:
            raise UnsafeError(f"a target rests {lane.target.phase}")
        if lane.blocks in (Blocks.ASKED, Blocks.HELD) or lane.posted or lane.unsent:
            raise UnsafeError(f"a target's blocks are left {lane.blocks}")
    last = len(scene.lanes)
    is_told = any(epoch == last for _, epoch, _ in scene.reports)
    if not (is_told or scene.excused or scene.lanes[-1].blocks is Blocks.ADOPTED):
        raise UnsafeError(f"epoch {last} neither arrived nor failed: {scene.reports}")
