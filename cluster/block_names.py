"""The names of a sequence's full blocks, in each quality in which a worker may hold their KV.

Knows no pool and computes no KV.
"""

from twinpool.core.messages import WorkerConfig
from twinpool.kv_transfer.codec import CodecName, quality
from twinpool.kv_transfer.codec_policy import possible_codecs
from twinpool.model.block_hash import block_hashes, root_hash
from twinpool.model.kv_layout import KVLayout
from twinpool.model.sequence import Chain, Sequence


class BlockNames:
    """Names blocks as one worker's pool does."""

    def __init__(self, config: WorkerConfig, layout: KVLayout) -> None:
        """Raises ValueError when KV of this layout cannot be coded as configured."""
        self._codecs = possible_codecs(config.codec, layout)
        self._layout = layout

    def chains(self, sequence: Sequence, *, may_be_lossy: bool) -> tuple[Chain, ...]:
        """One chain for each quality that the sequence may be given.

        What is computed for a handoff is not computed from lossy KV, so that a target knows what it gets by the codec.
        """
        codecs = self._codecs if may_be_lossy and not sequence.request.lossless_kv else (CodecName.RAW,)
        return tuple(self._chain(sequence, quality(codec)) for codec in codecs)

    def _chain(self, sequence: Sequence, of_quality: str) -> Chain:
        layout, salt = self._layout, sequence.request.tenant_salt
        root = root_hash(tenant_salt=salt, model=layout.model, dtype=layout.dtype, codec=of_quality)
        return Chain(of_quality, root, block_hashes(sequence.token_ids, layout.block_tokens, root))
