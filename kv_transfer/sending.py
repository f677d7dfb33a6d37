"""What one epoch of a handoff has sent: a value that the source's end replaces as groups go out and complete.

Pure arithmetic. Knows no phase and no link.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from twinpool.kv_transfer.coding import RAW, Coding
from twinpool.kv_transfer.events import Computed, LinkSent
from twinpool.kv_transfer.handoff import Seal, Started
from twinpool.kv_transfer.plan import Span, clip, join
from twinpool.model.kv_layout import KVLayout


@dataclass(frozen=True, slots=True)
class Sending:
    """How far the spans of a request have gone to one target, and what that took."""

    coding: Coding = RAW
    skip_blocks: int = 0  # leading blocks the target holds
    window: int = 0  # groups outstanding at most; 0: nothing is granted
    cursor: int = 0  # spans announced or skipped
    num_groups: int = 0
    outstanding: frozenset[int] = frozenset()  # groups announced and not link-complete
    kv_bytes: int = 0
    wire_s: float = 0.0  # some group was on the link
    exposed_s: float = 0.0  # of that, after the end of compute
    wire_until: float = 0.0

    def take(
        self, spans: Sequence[Span], layout: KVLayout, joined_bytes: int
    ) -> tuple["Sending", list[tuple[int, Span]]]:
        """Announce what the window has room for, as (group, span), clipped to what the target lacks.

        Spans that wait together and lie side by side go as one group of ``joined_bytes`` at most: fewer messages, and
        longer runs of bytes.
        """
        cursor, outstanding, kv_bytes = self.cursor, self.outstanding, self.kv_bytes
        groups: list[tuple[int, Span]] = []
        while cursor < len(spans) and len(outstanding) + len(groups) < self.window:
            span = clip(spans[cursor], self.skip_blocks)
            cursor += 1
            while span is not None and cursor < len(spans):
                joined = join(span, clip(spans[cursor], self.skip_blocks))
                if joined is None or joined.num_bytes(layout) > joined_bytes:
                    break
                span = joined
                cursor += 1
            if span is not None:
                groups.append((self.num_groups + len(groups), span))
                kv_bytes += self.coding.num_bytes(span, layout)
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

    def seal(self, started: Started, result: Computed, now: float) -> Seal:
        """What to say behind the last group."""
        return Seal(
            started.request_id,
            started.epoch,
            num_tokens=started.num_tokens,
            num_groups=self.num_groups,
            first_token=result.first_token,
            since_computed_s=now - result.at,
            wire_s=self.wire_s,
            exposed_s=self.exposed_s,
            kv_bytes=self.kv_bytes,
        )
