"""Which KV of a prompt is in place, as spans that can be sent while the rest is computed.

Knows no target and moves nothing.
"""

from collections.abc import Callable, Iterable

from twinpool.kv_transfer.plan import Span, layer_groups, spans_of_chunk
from twinpool.model.kv_layout import KVLayout
from twinpool.model.sequence import Key, Sequence
from twinpool.prefill_worker.service import Prompt

Tell = Callable[[Key, Span], None]


class SpanReports:
    """Tells of spans in the order in which their KV is there: layer group by layer group of a chunk."""

    def __init__(self, layout: KVLayout, layers_per_group: int, chunk_tokens: int, tell: Tell) -> None:
        self._block_tokens = layout.block_tokens
        self._groups = layer_groups(layout.num_layers, layers_per_group)
        self._step = max(1, chunk_tokens // layout.block_tokens) * layout.block_tokens
        self._tell = tell

    def cached(self, sequence: Sequence) -> None:
        """KV that was here before, in spans of about the size that a step computes."""
        for before in range(0, sequence.cached_tokens, self._step):
            after = min(before + self._step, sequence.cached_tokens)
            for span in spans_of_chunk(before, after, False, self._block_tokens, self._groups):
                self._tell(sequence.key, span)

    def computed(self, prompts: Iterable[Prompt], first_layer: int, end_layer: int) -> None:
        """The step under way has computed these layers of its chunks."""
        for prompt in prompts:
            before = prompt.sequence.num_computed
            after, layers = before + prompt.chunk_tokens, ((first_layer, end_layer),)
            for span in spans_of_chunk(before, after, prompt.is_last_chunk, self._block_tokens, layers):
                self._tell(prompt.sequence.key, span)
