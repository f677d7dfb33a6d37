"""Step times computed from a model's shape and a GPU's sheet: what a worker should take that nobody measured.

Knows arithmetic, bytes and how much of the sheet's rates engines reach; no worker and no measurement.
"""

import math
from dataclasses import dataclass
from typing import Self

from twinpool.model.config import ModelConfig
from twinpool.router.estimate import Numbers, larger
from twinpool.router.hardware import Gpu


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a decoder's cost depends on."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of one expert
    vocab: int
    mlp_matrices: int = 3  # gate, up and down; 2 without a gate
    experts: int = 1
    active_experts: int = 1
    item_bytes: int = 2  # of weights, activations and KV

    @classmethod
    def of(cls, config: ModelConfig, item_bytes: int = 2) -> Self:
        """The size of a model of ours; sliding windows are not counted."""
        return cls(
            layers=config.num_layers,
            hidden=config.hidden_size,
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate=config.intermediate_size,
            vocab=config.vocab_size,
            item_bytes=item_bytes,
        )

    @property
    def attention_parameters(self) -> int:
        """Of one layer: queries, keys, values and the output."""
        return self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)

    @property
    def expert_parameters(self) -> int:
        """Of one layer's one expert, or of its MLP."""
        return self.mlp_matrices * self.hidden * self.intermediate

    @property
    def weight_bytes(self) -> int:
        """All weights; embedding and head are two matrices."""
        layer = self.attention_parameters + self.experts * self.expert_parameters
        return self.item_bytes * (self.layers * layer + 2 * self.vocab * self.hidden)

    @property
    def kv_token_bytes(self) -> int:
        """One token's KV over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.item_bytes


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Which share of the sheet's rates an engine reaches, and what it takes beside; docs/latency.md has the fits.

    The defaults are those of DistServe's engine, the leanest that published its times.
    """

    compute: float = 0.739  # of FLOP/s, in matrix products
    attention: float = 0.379  # of FLOP/s, in attention of prefill
    weights: float = 1.0  # of memory bandwidth, reading weights
    kv: float = 0.687  # of memory bandwidth, reading KV
    peers: float = 0.277  # of bandwidth between GPUs, in all-reduces
    overlap: float = 0.0729  # of the shorter of arithmetic and reading weights, hidden behind the longer
    layer_s: float = 1.7e-4  # a layer's launches
    hop_s: float = 5.48e-6  # an all-reduce's latency, for each doubling of the ranks
    sequence_s: float = 1e-7  # what each decoded sequence costs the engine


DISTSERVE_A100 = Efficiency()
SPLITWISE_A100 = Efficiency(0.713, 1.0, 1.0, 1.0, 0.386, 0.588, 1.99e-4, 3.77e-5, 3.03e-4)
SPLITWISE_H100 = Efficiency(0.751, 0.042, 0.888, 1.0, 0.411, 0.388, 9.52e-5, 3.5e-5, 2.41e-4)


@dataclass(frozen=True, slots=True)
class RooflineForm:
    """Step times of one model on one shape of worker; made by `roofline_form`.

    The matrix products take as long as their arithmetic or their weights, whichever is longer (roofline; GenZ, arXiv
    2406.01698), and what engines do not overlap of the other. Attention adds its own: arithmetic in prefill, reading KV
    in decode. With tensor parallelism each layer has two ring all-reduces; a step passes all pipeline stages one after
    another, with a hop between each two.
    """

    token_s: float  # matrix products of one token, by arithmetic
    square_s: float  # attention of one pair of tokens in prefill
    context_s: float  # reading one token's KV
    dense_s: float  # reading the weights that are no expert's
    experts_s: float  # reading all experts' weights, or the MLP's
    idle_share: float  # experts that one token leaves alone
    head_s: float  # the output head's arithmetic, for one sequence
    exposed_share: float  # of the shorter of arithmetic and reading weights
    wire_s: float  # collectives and hops, for one token
    sequence_s: float
    fixed_s: float

    def seconds(
        self, prefill_tokens: Numbers, prefill_squares: Numbers, context_tokens: Numbers, batch: Numbers
    ) -> Numbers:
        tokens = prefill_tokens + batch
        outputs = batch + 1.0 * (prefill_tokens > 0)  # of the prompts' chunks about one ends
        weights_s = self.dense_s + self.experts_s * (1 - self.idle_share**tokens)
        arithmetic_s = self.token_s * tokens + self.head_s * outputs
        longer_s = larger(arithmetic_s, weights_s)
        products_s = longer_s + (arithmetic_s + weights_s - longer_s) * self.exposed_share
        attention_s = self.square_s * prefill_squares + self.context_s * context_tokens
        rest_s = self.wire_s * tokens + self.sequence_s * batch + self.fixed_s
        result: Numbers = (products_s + attention_s + rest_s) * (tokens > 0)
        return result

    def decode_seconds(self, context_tokens: float, batch: int, num_steps: int) -> float:
        grown = context_tokens + batch * (num_steps - 1) / 2  # mean over the steps
        return num_steps * self.seconds(0.0, 0.0, grown, float(batch))


def roofline_form(
    size: ModelSize,
    gpu: Gpu,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    efficiency: Efficiency = Efficiency(),
) -> RooflineForm:
    """The form for workers of ``tensor_parallel * pipeline_parallel`` GPUs.

    Pipelining makes room and lets several batches run at once; one step passes all stages, so it is not faster.

    Raises:
        UnknownNumber: the sheet lacks the arithmetic, or, for several stages, the network.
    """
    ranks, flops_per_s = tensor_parallel, gpu.known("flops_per_s")
    kv_ranks = min(ranks, size.kv_heads)  # more ranks than heads keep copies
    active = size.attention_parameters + size.active_experts * size.expert_parameters
    expert_bytes = size.layers * size.experts * size.expert_parameters * size.item_bytes
    read_bytes = size.weight_bytes - size.vocab * size.hidden * size.item_bytes - expert_bytes  # one row of embedding
    weights_per_s = ranks * gpu.memory_bytes_per_s * efficiency.weights
    hops = pipeline_parallel - 1
    return RooflineForm(
        token_s=2 * size.layers * active / (ranks * flops_per_s * efficiency.compute),
        square_s=2 * size.layers * size.heads * size.head_dim / (ranks * flops_per_s * efficiency.attention),
        context_s=size.kv_token_bytes / (kv_ranks * gpu.memory_bytes_per_s * efficiency.kv),
        dense_s=read_bytes / weights_per_s,
        experts_s=expert_bytes / weights_per_s,
        idle_share=1 - size.active_experts / size.experts,
        head_s=2 * size.vocab * size.hidden / (ranks * flops_per_s * efficiency.compute),
        exposed_share=1 - efficiency.overlap,
        wire_s=_wire_s(size, gpu, ranks, efficiency) + hops * _hop_s(size, gpu, hops),
        sequence_s=efficiency.sequence_s,
        fixed_s=size.layers * (efficiency.layer_s + 2 * efficiency.hop_s * math.log2(ranks)),
    )


def _wire_s(size: ModelSize, gpu: Gpu, ranks: int, efficiency: Efficiency) -> float:
    """Two all-reduces of one token's activations in each layer: a ring sends 2 (n - 1) / n of them."""
    sent_bytes = size.layers * 2 * 2 * (ranks - 1) / ranks * size.hidden * size.item_bytes
    return sent_bytes / (gpu.peer_bytes_per_s * efficiency.peers)


def _hop_s(size: ModelSize, gpu: Gpu, hops: int) -> float:
    """One token's activations to the next stage, over the network."""
    return size.hidden * size.item_bytes / gpu.known("nic_bytes_per_s") if hops else 0.0


def kv_capacity_tokens(
    size: ModelSize,
    gpu: Gpu,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    *,
    memory_share: float = 0.9,
    step_tokens: int = 2048,
) -> int:
    """Tokens of KV that a worker has room for beside weights and activations; 0 when the model does not fit.

    Args:
        memory_share: of each GPU's memory, that the engine takes.
        step_tokens: of the largest step: its hidden states and MLP activations are held, and one row of logits each
            for 256 sequences.
    """
    ranks = tensor_parallel * pipeline_parallel
    step_bytes = step_tokens * (4 * size.hidden + 2 * size.intermediate // tensor_parallel) * size.item_bytes
    logit_bytes = 256 * size.vocab * 4
    room = gpu.memory_bytes * memory_share - size.weight_bytes / ranks - step_bytes - logit_bytes
    rank_token_bytes = size.kv_token_bytes / (min(tensor_parallel, size.kv_heads) * pipeline_parallel)
    return max(0, int(room / rank_token_bytes))
