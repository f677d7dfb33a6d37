"""Which KV of a prompt is in place, as spans that can be sent while the rest is computed.

Owns the layer groups in which a runner reports. Knows no target and moves nothing.
"""

from collections.abc import Callable, Iterable

from twinpool.kv_transfer.plan import Span, spans_of_chunk
from twinpool.model.batch import Runner
from twinpool.model.layer_groups import UNMEASURED, StreamRates, choose_layer_groups, group_ranges
from twinpool.model.sequence import Key, Sequence
from twinpool.prefill_worker.service import Prompt

Tell = Callable[[Key, Span], None]


class SpanReports:
    """Tells of spans in the order in which their KV is there: layer group by layer group of a chunk."""

    def __init__(self, runner: Runner, chunk_tokens: int, tell: Tell) -> None:
        self._runner = runner
        self._layout = runner.cache.layout
        self._chunk_blocks = max(1, chunk_tokens // self._layout.block_tokens)
        self._tell = tell
        self.stream_at(UNMEASURED)

    def stream_at(self, rates: StreamRates) -> None:
        """Choose the layer groups of the steps to come by what was measured; between two steps."""
        layer_bytes = self._chunk_blocks * self._layout.block_layer_bytes
        self._runner.layer_groups = choose_layer_groups(self._layout.num_layers, layer_bytes, rates)

    def cached(self, sequence: Sequence) -> None:
        """KV that was here before, in spans of about the size that a step computes."""
        layers, block_tokens = group_ranges(self._runner.layer_groups), self._layout.block_tokens
        step = self._chunk_blocks * block_tokens
        for before in range(0, sequence.cached_tokens, step):
            after = min(before + step, sequence.cached_tokens)
            for span in spans_of_chunk(before, after, False, block_tokens, layers):
                self._tell(sequence.key, span)

    def computed(self, prompts: Iterable[Prompt], first_layer: int, end_layer: int) -> None:
        """The step under way has computed these layers of its chunks."""
        for prompt in prompts:
            before = prompt.sequence.num_computed
            after, layers = before + prompt.chunk_tokens, ((first_layer, end_layer),)
            for span in spans_of_chunk(before, after, prompt.is_last_chunk, self._layout.block_tokens, layers):
                self._tell(prompt.sequence.key, span)
