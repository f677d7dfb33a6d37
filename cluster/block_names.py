"""The names of a request's full blocks, in each quality in which a worker may hold their KV.

Workers name their blocks by it, and gateways those that they look for. Knows no pool and computes no KV.
"""

from dataclasses import dataclass

from twinpool.core.messages import WorkerConfig
from twinpool.kv_transfer.codec import CodecName, quality
from twinpool.kv_transfer.codec_policy import possible_codecs
from twinpool.model.block_hash import TokenIds, block_hashes, root_hash
from twinpool.model.kv_layout import KVLayout
from twinpool.model.sequence import Chain, Sequence


@dataclass(frozen=True, slots=True)
class Naming:
    """What names depend on beside a request: the same for all workers of one model and one configuration."""

    model: str
    dtype: str
    block_tokens: int
    qualities: tuple[str, ...]  # in which KV may be held, best first

    @classmethod
    def of(cls, config: WorkerConfig, layout: KVLayout) -> "Naming":
        """A worker's own. Raises ValueError when KV of this layout cannot be coded as configured."""
        qualities = tuple(quality(codec) for codec in possible_codecs(config.codec, layout))
        return cls(layout.model, layout.dtype, layout.block_tokens, qualities)

    def chains(self, token_ids: TokenIds, tenant_salt: str, *, may_be_lossy: bool) -> tuple[Chain, ...]:
        """One chain for each quality that may be used, best first; without loss there is one."""
        qualities = self.qualities if may_be_lossy else (quality(CodecName.RAW),)
        return tuple(self._chain(token_ids, tenant_salt, each) for each in qualities)

    def _chain(self, token_ids: TokenIds, tenant_salt: str, of_quality: str) -> Chain:
        root = root_hash(tenant_salt=tenant_salt, model=self.model, dtype=self.dtype, codec=of_quality)
        return Chain(of_quality, root, block_hashes(token_ids, self.block_tokens, root))


class BlockNames:
    """Names blocks as one worker's pool does."""

    def __init__(self, config: WorkerConfig, layout: KVLayout) -> None:
        """Raises ValueError when KV of this layout cannot be coded as configured."""
        self._naming = Naming.of(config, layout)

    def chains(self, sequence: Sequence, *, may_be_lossy: bool) -> tuple[Chain, ...]:
        """One chain for each quality that the sequence may be given.

        What is computed for a handoff is not computed from lossy KV, so that a target knows what it gets by the codec.
        """
        request = sequence.request
        may_be_lossy = may_be_lossy and not request.lossless_kv
        return self._naming.chains(sequence.token_ids, request.tenant_salt, may_be_lossy=may_be_lossy)
