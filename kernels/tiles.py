"""Chooses tile sizes, warps and pipeline stages of the attention kernels for a kind of GPU.

Knows devices and sizes; no tensor and no batch. Choices were made from registers, spills and shared memory of compiled
variants (docs/kernels.md), not from times: no GPU was there.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the choice depends on."""

    backend: str  # cuda or hip
    arch: int | str  # 80, 90, 100; gfx942

    @property
    def is_ampere(self) -> bool:
        """Whether matrix products read registers only, so that large tiles want more warps. Ada is no different."""
        return self.backend == "cuda" and int(self.arch) < 90

    def stages(self, head_dim: int) -> int:
        """Of loads in flight: two buffers where shared memory has room, and one where it has 64 or 99 KiB."""
        narrow = self.is_ampere and self.arch != 80
        return 2 if self.backend == "hip" or (narrow and head_dim > 128) else 3


@dataclass(frozen=True, slots=True)
class Tiles:
    """One variant's sizes."""

    block_m: int  # rows: queries x query heads of one KV head
    block_n: int  # keys
    num_warps: int
    num_stages: int
    precision: str  # of tl.dot; only float32 has a choice


def interpreting() -> bool:
    """Whether Triton's interpreter runs the kernels, which multiplies bfloat16 as if it were integers: kernels are then
    told to widen what they load."""
    try:
        from triton import knobs
    except ImportError:
        return False
    return bool(knobs.runtime.interpret)


def gpu_of(device: torch.device) -> Gpu:
    """The kind of a device. On a CPU, where only the interpreter runs kernels, it is Hopper."""
    if device.type != "cuda":
        return Gpu("cuda", 90)
    if torch.version.hip:
        return Gpu("hip", torch.cuda.get_device_properties(device).gcnArchName.split(":")[0])
    major, minor = torch.cuda.get_device_capability(device)
    return Gpu("cuda", major * 10 + minor)


def decode_rows(dtype: torch.dtype) -> tuple[int, ...]:
    """Sizes of the decode kernel's tiles, in rows (queries x query heads of a KV head); the last bounds what is short.

    float32 has the small one only: without matrix units, a large one does not fit the registers.
    """
    return (16,) if dtype == torch.float32 else (16, 64)


def choose_decode_tiles(gpu: Gpu, head_dim: int, dtype: torch.dtype, rows: int) -> Tiles:
    """Tiles for at most ``rows`` rows a sequence.

    Raises:
        ValueError: more rows than the decode kernel takes.
    """
    sizes = decode_rows(dtype)
    if not 1 <= rows <= sizes[-1]:
        raise ValueError(f"{rows} rows of {dtype}: the decode kernel takes 1 to {sizes[-1]}")
    block_m = next(size for size in sizes if rows <= size)
    if dtype == torch.float32:
        return Tiles(block_m, 16, 4, 2, "ieee")
    is_heavy = gpu.is_ampere or (head_dim > 128 and gpu.backend == "cuda")
    warps = 8 if block_m > 16 and is_heavy else 4
    return Tiles(block_m, 32 if head_dim > 128 else 64, warps, gpu.stages(head_dim), "ieee")


def choose_prefill_tiles(gpu: Gpu, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Tiles for long runs of queries."""
    wide = head_dim > 128
    if dtype == torch.float32:  # without matrix units: these, and not their neighbours, spill on no target
        return Tiles(32, 16, 8, 2, "ieee") if 64 < head_dim <= 128 else Tiles(16, 16, 4, 2, "ieee")
    if gpu.backend == "hip":
        return Tiles(64 if wide else 128, 32 if wide else 64, 4, 2, "ieee")
    if gpu.is_ampere:
        return Tiles(64 if wide else 128, 32 if head_dim > 64 else 64, 8, gpu.stages(head_dim), "ieee")
    return Tiles(128, 32 if wide else 64, 8, 2 if wide else 3, "ieee")
