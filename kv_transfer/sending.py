"""What one epoch of a handoff has sent: a value that the source's end replaces as groups go out and complete.

Pure arithmetic. Knows no phase, no message and no link.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twinpool.kv_transfer.events import LinkSent
from twinpool.kv_transfer.plan import Span, clip
from twinpool.model.kv_layout import KVLayout


@dataclass(frozen=True, slots=True)
class Sending:
    """How far the spans of a request have gone to one target, and what that took."""

    skip_blocks: int = 0  # leading blocks the target holds
    window: int = 0  # groups outstanding at most; 0: nothing is granted
    cursor: int = 0  # spans announced or skipped
    num_groups: int = 0
    outstanding: frozenset[int] = frozenset()  # groups announced and not link-complete
    kv_bytes: int = 0
    wire_s: float = 0.0  # some group was on the link
    exposed_s: float = 0.0  # of that, after the end of compute
    wire_until: float = 0.0

    def take(self, spans: Sequence[Span], layout: KVLayout) -> tuple["Sending", list[tuple[int, Span]]]:
        """Announce what the window has room for, as (group, span), clipped to what the target lacks."""
        cursor, outstanding, kv_bytes = self.cursor, self.outstanding, self.kv_bytes
        groups: list[tuple[int, Span]] = []
        while cursor < len(spans) and len(outstanding) + len(groups) < self.window:
            span = clip(spans[cursor], self.skip_blocks)
            cursor += 1
            if span is not None:
                groups.append((self.num_groups + len(groups), span))
                kv_bytes += span.num_bytes(layout)
        taken = replace(
            self,
            cursor=cursor,
            num_groups=self.num_groups + len(groups),
            outstanding=outstanding | {group for group, _ in groups},
            kv_bytes=kv_bytes,
        )
        return taken, groups

    def with_sent(self, sent: LinkSent, computed_at: float | None) -> "Sending":
        """One group less outstanding. Groups of a window overlap in time, so their union counts, in order of ends."""
        begin = max(sent.started_at, self.wire_until)
        until = max(sent.ended_at, begin)
        exposed_s = 0.0 if computed_at is None else max(0.0, until - max(begin, computed_at))
        return replace(
            self,
            outstanding=self.outstanding - {sent.group},
            wire_s=self.wire_s + until - begin,
            exposed_s=self.exposed_s + exposed_s,
            wire_until=until,
        )
