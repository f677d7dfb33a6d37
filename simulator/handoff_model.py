"""One request's handoff with both ends, its links and all that may befall them, as a value whose futures can be walked.

Time is left out: it is always 0, and a timer is one more thing that may happen at any moment. Checks safety at each
step. Knows nothing of how long things take; simulator/world.py does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from twinpool.core.messages import FailureKind
from twinpool.kv_transfer import events as ev
from twinpool.kv_transfer import handoff as msg
from twinpool.kv_transfer.plan import Span
from twinpool.kv_transfer.source import SourceHandoff
from twinpool.kv_transfer.target import TargetHandoff
from twinpool.model.kv_layout import KVLayout

NO_TIME = msg.Limits(lease_s=1, park_s=0, ask_s=0, announce_s=0, commit_s=0, verify_s=0, stop_s=0, joined_bytes=0)
LATER = 1.0  # when every deadline has passed; everything else happens at 0


class UnsafeError(AssertionError):
    """The model did what must never happen."""


class Blocks(Enum):
    """What the target's engine thinks of the blocks of one epoch."""

    NONE = 0
    ASKED = 1
    HELD = 2
    ADOPTED = 3
    FREE = 4


class Lane(NamedTuple):
    """One epoch: the target, the stream of messages each way, the link, and the target's memory."""

    target: TargetHandoff | None
    to_target: tuple[msg.Message, ...] = ()
    to_source: tuple[msg.Message, ...] = ()
    is_ordered: bool = False  # the gateway's Reserve has arrived
    is_parted: bool = False  # the stream is broken for good
    source_mourns: bool = False  # PeerLost is on its way to it
    target_mourns: bool = False
    wire: tuple[tuple[int, Span, bool], ...] = ()  # (seq, span, intact) not yet received
    unsent: tuple[int, ...] = ()  # groups whose end the source was not told
    posted: tuple[ev.Receive, ...] = ()
    is_broken: bool = False
    source_told: bool = False  # of the broken link
    target_told: bool = False
    blocks: Blocks = Blocks.NONE
    is_bound: bool = False
    is_bound_told: bool = False
    written: frozenset[tuple[int, int]] = frozenset()


class Scene(NamedTuple):
    """Everything at one moment. ``reports`` is what the gateway was told: (end, epoch, kind)."""

    source: SourceHandoff | None
    lanes: tuple[Lane, ...]
    script: tuple[ev.SourceEvent, ...]  # what the source's engine is still to say
    source_holds: bool = True
    reports: frozenset[tuple[str, int, str]] = frozenset()
    excused: bool = False  # the gateway itself crashed an end or cancelled: it waits for no report


@dataclass
class Model:
    """The request, and how the world takes what the two ends ask for. Scenes and machines are shared, never changed."""

    spans: tuple[Span, ...]
    skip_blocks: int = 0
    window: int = 1
    max_lanes: int = 1
    is_buffered: bool = False  # a send is over when the link has it, not when the target has
    num_layers: int = 1
    num_blocks: int = 1
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)
    _steps: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.layout = KVLayout(self.num_layers, 1, 1, 1, "float32", "model")

    def start(self) -> Scene:
        """The source computes for epoch 1; the target's order is on its way."""
        source, script = self._new_source(1)
        return Scene(source, (self.new_lane(1),), script)

    def restart(self, scene: Scene) -> Scene:
        """The source died; another one computes all anew, under the next epoch. What the old one said stays said."""
        epoch = len(scene.lanes) + 1
        source, script = self._new_source(epoch)
        lanes = (*scene.lanes, self.new_lane(epoch))
        return scene._replace(source=source, script=script, source_holds=True, lanes=lanes, excused=False)

    def _new_source(self, epoch: int) -> tuple[SourceHandoff, tuple[ev.SourceEvent, ...]]:
        source = SourceHandoff("r", epoch, self.num_blocks, self.layout, NO_TIME)
        script: list[ev.SourceEvent] = [ev.Admitted(), *(ev.GroupReady(span) for span in self.spans)]
        return self._share(source), (*script, ev.Computed(7, 0.0))

    def new_lane(self, epoch: int) -> Lane:
        """The lane of an epoch of which its target has heard nothing."""
        return Lane(self._share(TargetHandoff("r", epoch, self.layout, self.window, NO_TIME)))

    # --- Machines as shared values ------------------------------------------------------------------------------------

    def _share(self, machine: Any) -> Any:
        """The one machine of this state, so that equal states are the same object and hash by identity."""
        return self._known.setdefault((type(machine), *vars(machine).values()), machine)

    def _advance(
        self, machine: Any, event: ev.SourceEvent | ev.TargetEvent, now: float
    ) -> tuple[Any, Sequence[ev.Action]]:
        key = (machine, event, now)
        if key not in self._steps:
            moved = object.__new__(type(machine))
            vars(moved).update(vars(machine))
            actions = moved.advance(event, now)
            self._steps[key] = (self._share(moved), actions)
        result: tuple[Any, Sequence[ev.Action]] = self._steps[key]
        return result

    def tell_source(self, scene: Scene, event: ev.SourceEvent, now: float = 0.0) -> Scene:
        """The scene after the source took ``event`` and its actions were performed."""
        if scene.source is None:
            return scene
        source, actions = self._advance(scene.source, event, now)
        scene = scene._replace(source=source)
        for action in actions:
            scene = self._perform_source(scene, action)
        return scene

    def tell_target(self, scene: Scene, number: int, event: ev.TargetEvent, now: float = 0.0) -> Scene:
        """The same for the target of lane ``number``."""
        lane = scene.lanes[number]
        if lane.target is None:
            return scene
        target, actions = self._advance(lane.target, event, now)
        scene = with_lane(scene, number, target=target)
        for action in actions:
            scene = self._perform_target(scene, number, action)
        return scene

    # --- Performing actions -------------------------------------------------------------------------------------------

    def _perform_source(self, scene: Scene, action: ev.Action) -> Scene:
        match action:
            case ev.Send(message):
                number = message.epoch - 1
                lane = scene.lanes[number]
                if lane.is_parted:
                    return with_lane(scene, number, source_mourns=True)
                return with_lane(scene, number, to_target=(*lane.to_target, message))
            case ev.Transmit(epoch, group, span):
                return self._transmit(scene, epoch - 1, group, span)
            case ev.CloseLink(epoch):
                return with_lane(scene, epoch - 1, is_broken=True, source_told=False)
            case ev.Release():
                if not scene.source_holds:
                    raise UnsafeError("the source released twice")
                if any(lane.unsent for lane in scene.lanes):
                    raise UnsafeError("the source released blocks that a send still reads")
                return scene._replace(source_holds=False)
            case ev.Parked(epoch):
                return _report(scene, "source", epoch, FailureKind.TRANSFER_FAILED)
            case ev.Failed(epoch, kind):
                return _report(scene, "source", epoch, kind)
            case _:
                raise UnsafeError(f"no action of a source: {action}")

    def _transmit(self, scene: Scene, number: int, group: int, span: Span) -> Scene:
        lane = scene.lanes[number]
        if not scene.source_holds:
            raise UnsafeError("the source sends what it has released")
        if lane.source_told:  # opening another link fails too
            return with_lane(scene, number, source_told=False)
        unsent = (*lane.unsent, group)
        if len(unsent) > self.window:
            raise UnsafeError(f"{len(unsent)} groups outstanding, {self.window} granted")
        wire = lane.wire if lane.is_broken else (*lane.wire, (group, span, True))
        if lane.is_parted:
            return with_lane(scene, number, unsent=unsent, wire=wire, source_mourns=True)
        to_target = (*lane.to_target, msg.Next("r", number + 1, group, span))
        return with_lane(scene, number, unsent=unsent, wire=wire, to_target=to_target)

    def _perform_target(self, scene: Scene, number: int, action: ev.Action) -> Scene:
        lane = scene.lanes[number]
        match action:
            case ev.Send(message):
                if lane.is_parted:
                    return with_lane(scene, number, target_mourns=True)
                return with_lane(scene, number, to_source=(*lane.to_source, message))
            case ev.BindBlocks(num_blocks):
                if num_blocks != self.num_blocks or lane.blocks is not Blocks.NONE:
                    raise UnsafeError("the target asked for blocks it should not have")
                return with_lane(scene, number, blocks=Blocks.ASKED)
            case ev.Receive():
                posted = lane.posted if lane.target_told else (*lane.posted, action)
                return with_lane(scene, number, posted=posted)
            case ev.CloseLink():
                return with_lane(scene, number, is_broken=True, target_told=False)
            case ev.Adopt():
                return self._adopt(scene, number)
            case ev.Release():
                return self._release(scene, number)
            case ev.Failed(epoch, kind):
                return _report(scene, "target", epoch, kind)
            case _:
                raise UnsafeError(f"no action of a target: {action}")

    def _adopt(self, scene: Scene, number: int) -> Scene:
        lane = scene.lanes[number]
        needed = {(layer, b) for layer in range(self.num_layers) for b in range(self.skip_blocks, self.num_blocks)}
        if lane.blocks is not Blocks.HELD or lane.written != needed:
            raise UnsafeError(f"adopted {lane.blocks} with {set(lane.written)} written, not {needed}")
        return with_lane(scene, number, blocks=Blocks.ADOPTED)

    def _release(self, scene: Scene, number: int) -> Scene:
        lane = scene.lanes[number]
        if lane.blocks in (Blocks.FREE, Blocks.ADOPTED):
            raise UnsafeError(f"the target released blocks that are {lane.blocks}")
        if any(not receive.discard for receive in lane.posted):
            raise UnsafeError("the target released blocks that a posted receive may write")
        if lane.unsent and not lane.target_told:
            raise UnsafeError("the target released blocks before the source had stopped")
        return with_lane(scene, number, blocks=Blocks.FREE)


def with_lane(scene: Scene, number: int, **changes: Any) -> Scene:
    """The scene with some fields of one lane changed."""
    lane = scene.lanes[number]._replace(**changes)
    return scene._replace(lanes=(*scene.lanes[:number], lane, *scene.lanes[number + 1 :]))


def _report(scene: Scene, end: str, epoch: int, kind: FailureKind) -> Scene:
    report = (end, epoch, str(kind))
    if report in scene.reports:
        raise UnsafeError(f"reported twice: {report}")
    return scene._replace(reports=scene.reports | {report})
