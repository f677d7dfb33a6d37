"""Finds out how fast simulated workers are, how much KV they hold, and what they draw and cost.

Knows where such numbers come from and which source goes before which; makes no worker.
"""

from dataclasses import dataclass, replace

from twinpool.core.errors import SpecError
from twinpool.core.limits import shown
from twinpool.core.messages import Role
from twinpool.core.spec import ClusterSpec
from twinpool.model.config import load_model_config
from twinpool.model.modelled_shape import PREFIX, modelled_shape
from twinpool.model.shape import ModelShape
from twinpool.router.estimate import LatencyModel, LinearForm, LinkCost, StepForm
from twinpool.router.hardware import GPUS, Gpu, UnknownNumber, power_form
from twinpool.router.latency_profile import LatencyProfile, kind_name
from twinpool.router.power import PowerForm
from twinpool.router.roofline import ModelSize, kv_capacity_tokens, roofline_form
from twinpool.simulator.scenario import WorkerKind

MAX_LAYER_GROUPS = 8
AUTO = "auto"
UNMEASURED_LINK = LinkCost(latency_s=1e-3, bytes_per_s=5e9)  # taken for one of which nothing is known
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class TruthOptions:
    """What is said beside the YAML about how fast workers are.

    Steps take what ``profile`` says, else what ``table`` says, else what a ``modelled:`` model's shape says, else what
    the GPU's sheet and the model's shape come to.
    """

    profile: LatencyProfile | None = None
    table: StepForm | None = None  # of all workers
    hardware: str | None = None  # of pools that name none
    tensor_parallel: int | None = None  # of all pools, instead of the YAML's
    kv_memory: int | str | None = None  # bytes of each worker, or AUTO: what its GPUs have room for


def find_gpu(name: str, where: str) -> Gpu:
    """A GPU by its name, or by the begin of it: ``h100``.

    Raises:
        SpecError: there is none of that name, or several; ``where`` names the key or option.
    """
    found = [gpu for gpu in GPUS.values() if gpu.name.lower() == name.lower()]
    found = found or [gpu for gpu in GPUS.values() if gpu.name.lower().startswith(name.lower())]
    if len(found) != 1 or not name:
        raise SpecError(f"{where}: {shown(name)} is no GPU of the sheets; known: {', '.join(GPUS)}")
    return found[0]


def make_kind(
    spec: ClusterSpec, role: Role, shape: ModelShape, options: TruthOptions
) -> tuple[WorkerKind, LatencyModel]:
    """The kind of one pool's workers, and what the router first believes of it.

    The belief is what a live gateway would start from, had it the same profile or the same `hardware:`; without either
    it is the router's own default, as it is there.

    Raises:
        SpecError: nothing says how fast these workers are, or their model does not fit them.
    """
    return _KindMaker(spec, role, shape, options).make()


class _KindMaker:
    """One pool's numbers, found one after another."""

    def __init__(self, spec: ClusterSpec, role: Role, shape: ModelShape, options: TruthOptions) -> None:
        pool = spec.pools.by_role()[role]
        self._spec, self._role, self._shape, self._options = spec, role, shape, options
        self._tensor_parallel = options.tensor_parallel or pool.tensor_parallel
        self._pipeline_parallel = pool.pipeline_parallel
        self._name = kind_name(role, self._tensor_parallel, self._pipeline_parallel)
        self._profile = None if options.profile is None else options.profile.of_kind(self._name)
        named = getattr(pool, "hardware", None)
        self._where = f"pools.{role}.hardware" if named or not options.hardware else "--hardware"
        hardware = named or options.hardware
        self._gpu = find_gpu(hardware, self._where) if hardware else None

    @property
    def _gpus(self) -> int:
        return self._tensor_parallel * self._pipeline_parallel

    def make(self) -> tuple[WorkerKind, LatencyModel]:
        steps, link = self._steps(), self._link()
        kind = WorkerKind(
            name=self._name,
            truth=steps,
            kv_token_bytes=self._kv_token_bytes,
            num_blocks=self._num_blocks(),
            block_tokens=self._spec.kv.block_tokens,
            gpus=self._gpus,
            nic_bytes_per_s=link.bytes_per_s,
            link_latency_s=link.latency_s,
            layer_groups=max(1, min(MAX_LAYER_GROUPS, self._shape.kv_layout.num_layers)),
            power=self._power(),
            price_per_hour=self._gpus * ((self._gpu and self._gpu.price_per_hour) or 0.0),
        )
        chunk_tokens = self._spec.batching.chunk_tokens
        is_known = self._profile is not None or self._options.table is not None or self._is_computed
        believed = (steps, link) if is_known else (LinearForm(), LinkCost())
        return kind, LatencyModel(*believed, kind.kv_token_bytes, chunk_tokens)

    @property
    def _kv_token_bytes(self) -> int:
        return self._shape.kv_token_bytes

    @property
    def _is_modelled(self) -> bool:
        return self._spec.model.path.startswith(PREFIX)

    @property
    def _is_computed(self) -> bool:
        """Whether steps take what a GPU's sheet says."""
        return self._profile is None and self._options.table is None and not self._is_modelled

    def _steps(self) -> StepForm:
        if self._profile is not None:
            return self._profile.steps.steps()
        if self._options.profile is not None:
            kinds = ", ".join(sorted(self._options.profile.kinds))
            raise SpecError(f"--latency: the profile has nothing about {self._name}; it has {kinds}")
        if self._options.table is not None:
            return self._options.table
        if self._is_modelled:
            latency = modelled_shape(self._spec.model.path).latency
            names = ("prefill_a_s", "prefill_b_s", "prefill_c_s", "decode_alpha_s", "decode_beta_s", "decode_gamma_s")
            return LinearForm(*(getattr(latency, name) for name in names))
        gpu = self._known_gpu()
        try:
            return roofline_form(self._size(), gpu, self._tensor_parallel, self._pipeline_parallel)
        except UnknownNumber as error:
            raise SpecError(f"{self._where}: {error}; give --latency FILE") from None

    def _known_gpu(self) -> Gpu:
        if self._gpu is None:
            raise SpecError(
                f"pools.{self._role}.hardware: say which GPU here or with --hardware, or give --latency FILE; "
                f"known: {', '.join(GPUS)}"
            )
        return self._gpu

    def _size(self) -> ModelSize:
        return ModelSize.of(load_model_config(self._spec.model.path), _BYTES[self._shape.kv_layout.dtype])

    def _link(self) -> LinkCost:
        """What a handoff's bytes take when they have the network card to themselves."""
        if self._profile is not None:
            return self._profile.link.cost()
        card = self._gpu and self._gpu.nic_bytes_per_s
        return replace(UNMEASURED_LINK, bytes_per_s=card * self._gpus) if card else UNMEASURED_LINK

    def _power(self) -> PowerForm | None:
        return None if self._gpu is None else power_form(self._gpu, self._gpus)

    def _num_blocks(self) -> int:
        block_tokens, memory = self._spec.kv.block_tokens, self._options.kv_memory
        room = self._room_tokens()
        if memory == AUTO:
            if room is None:
                raise SpecError(f"--kv-memory: {AUTO} needs to know the GPU: pools.{self._role}.hardware or --hardware")
            tokens = room
        else:
            tokens = (self._spec.kv.memory if memory is None else int(memory)) // self._kv_token_bytes
        where = "kv.memory" if memory is None else "--kv-memory"
        if room is not None and tokens > room:
            raise SpecError(f"{where}: {self._told_gpus} have room for {room:,} tokens of KV, not for {tokens:,}")
        if tokens < block_tokens:
            raise SpecError(f"{where}: has no room for one block of {block_tokens} tokens")
        return tokens // block_tokens

    def _room_tokens(self) -> int | None:
        """Tokens of KV that the GPUs have room for beside the model; None where GPU or model is not real."""
        if self._gpu is None or self._is_modelled:
            return None
        chunk_tokens = self._spec.batching.chunk_tokens
        size = self._size()
        room = kv_capacity_tokens(
            size, self._gpu, self._tensor_parallel, self._pipeline_parallel, step_tokens=chunk_tokens
        )
        if not room:
            weights = f"{size.weight_bytes / 1e9:.0f} GB of weights"
            raise SpecError(f"{self._where}: {weights} do not fit {self._told_gpus}; try --tensor-parallel")
        return room

    @property
    def _told_gpus(self) -> str:
        assert self._gpu is not None, "asked only where it is known"
        return f"{self._gpus} x {self._gpu.name}"
