"""Which layers and KV heads of a model each rank of a worker holds, from the worker's shape alone.

Pure. Knows no peer, no block and no memory.
"""

from dataclasses import dataclass, replace

from twinpool.kv_transfer.plan import Span
from twinpool.model.kv_layout import KVLayout


@dataclass(frozen=True, slots=True, order=True)
class WorkerShape:
    """Tensor-parallel ranks of each stage, times pipeline stages. Rank ``stage * tensor_parallel + tensor_rank``."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "pipeline_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and must be at least 1")

    @property
    def num_ranks(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True, slots=True, order=True)
class RankShare:
    """What one rank holds of every block: layers ``[first_layer, end_layer)`` x KV heads ``[first_head, end_head)``.

    Where there are more tensor-parallel ranks than KV heads, ``num_copies`` neighbours hold the same head; this rank
    has copy number ``copy`` of it, counted from 0.
    """

    rank: int
    first_layer: int
    end_layer: int
    first_head: int
    end_head: int
    copy: int = 0
    num_copies: int = 1

    @property
    def num_layers(self) -> int:
        return self.end_layer - self.first_layer

    @property
    def num_heads(self) -> int:
        return self.end_head - self.first_head

    def layout(self, model: KVLayout) -> KVLayout:
        """How this rank's own pool lies in memory; ``model`` has all layers and all KV heads."""
        return replace(model, num_layers=self.num_layers, num_kv_heads=self.num_heads)

    def to_model(self, span: Span) -> Span:
        """A span of this rank's own layers, which count from 0, in the layers of the model.

        Raises:
            ValueError: the rank has no such layers.
        """
        if not 0 <= span.first_layer < span.end_layer <= self.num_layers:
            raise ValueError(f"{span}: rank {self.rank} holds {self.num_layers} layers, counted from 0")
        return replace(
            span, first_layer=span.first_layer + self.first_layer, end_layer=span.end_layer + self.first_layer
        )


@dataclass(frozen=True, slots=True)
class RankLayout:
    """What a peer must know of one rank's KV: which model, the same for workers of any shape, and which part of it.

    Raises:
        ValueError: the model does not go into the shape, or the shape has no such rank.
    """

    model: KVLayout  # all layers and all KV heads
    shape: WorkerShape = WorkerShape()
    rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < len(shares_of(self.shape, self.model)):
            raise ValueError(f"rank {self.rank} is none of the {self.shape.num_ranks} of {self.shape}")

    @property
    def model_digest(self) -> str:
        """Equal for all workers of the model whose KV can be exchanged, whatever their shapes."""
        return self.model.digest()

    @property
    def share(self) -> RankShare:
        """The layers and heads this rank holds."""
        return shares_of(self.shape, self.model)[self.rank]

    @property
    def pool(self) -> KVLayout:
        """How this rank's own pool lies in memory."""
        return self.share.layout(self.model)

    def peer(self, model_digest: str, shape: WorkerShape, rank: int) -> "RankLayout":
        """The layout of a rank that says this of itself.

        Raises:
            ValueError: its KV is not of our model, or it cannot be as it says.
        """
        if model_digest != self.model_digest:
            raise ValueError("the KV of the peer is of another model, layout, codec or protocol")
        return RankLayout(self.model, shape, rank)

    def describe(self) -> str:
        """In words, for people."""
        share, shape = self.share, self.shape
        return (
            f"{self.model.describe()}; rank {self.rank} of {shape.tensor_parallel} x {shape.pipeline_parallel}: "
            f"layers {share.first_layer} to {share.end_layer - 1}, KV heads {share.first_head} to {share.end_head - 1}"
        )


def stage_layers(num_layers: int, pipeline_parallel: int, stage: int) -> tuple[int, int]:
    """The layers ``[first, end)`` of one stage: as even as can be, and the first stages have one more than the last.

    Raises:
        ValueError: there are more stages than layers.
    """
    if num_layers < pipeline_parallel:
        raise ValueError(
            f"{num_layers} layers cannot fill pipeline_parallel {pipeline_parallel}: a stage would be empty"
        )
    each, extra = divmod(num_layers, pipeline_parallel)
    first = stage * each + min(stage, extra)
    return first, first + each + (stage < extra)


def check_heads(num_kv_heads: int, tensor_parallel: int) -> None:
    """Raise ValueError unless the KV heads can be divided, or each be copied equally often."""
    if num_kv_heads < 1 or (num_kv_heads % tensor_parallel and tensor_parallel % num_kv_heads):
        raise ValueError(
            f"{num_kv_heads} KV heads and tensor_parallel {tensor_parallel}: one must be a multiple of the other"
        )


def shares_of(shape: WorkerShape, model: KVLayout) -> tuple[RankShare, ...]:
    """What each rank of a worker of this shape holds, by rank; ``model`` has all layers and all KV heads.

    Raises:
        ValueError: the model's layers or KV heads do not go into that shape; both numbers are named.
    """
    check_heads(model.num_kv_heads, shape.tensor_parallel)
    num_copies = max(1, shape.tensor_parallel // model.num_kv_heads)
    heads_each = max(1, model.num_kv_heads // shape.tensor_parallel)
    shares = []
    for rank in range(shape.num_ranks):
        stage, tensor_rank = divmod(rank, shape.tensor_parallel)
        first_layer, end_layer = stage_layers(model.num_layers, shape.pipeline_parallel, stage)
        share, copy = divmod(tensor_rank, num_copies)
        first_head = share * heads_each
        shares.append(RankShare(rank, first_layer, end_layer, first_head, first_head + heads_each, copy, num_copies))
    return tuple(shares)
