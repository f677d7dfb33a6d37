"""Chooses tile sizes, warps and pipeline stages of the attention kernels for a kind of GPU.

Knows devices and sizes; no tensor and no batch. Choices were made from registers, spills and shared memory of compiled
variants (docs/kernels.md), not from times: no GPU was there.
"""

from dataclasses import dataclass

import torch

SHORT_ROWS = (16, 64)  # rows (queries x query heads of a KV head) that the decode kernel takes, in one of these sizes


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the choice depends on."""

    backend: str  # cuda or hip
    arch: int | str  # 80, 90, 100; gfx942


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


def choose_decode_tiles(gpu: Gpu, head_dim: int, dtype: torch.dtype, rows: int) -> Tiles:
    """Tiles for at most ``rows`` rows a sequence.

    Raises:
        ValueError: more rows than the decode kernel takes.
    """
    if not 1 <= rows <= SHORT_ROWS[-1]:
        raise ValueError(f"{rows} rows: the decode kernel takes 1 to {SHORT_ROWS[-1]}")
    block_m = next(size for size in SHORT_ROWS if rows <= size)
    if dtype == torch.float32:
        return Tiles(block_m, 16, 4, 2, "ieee")
    wide = head_dim > 128
    stages = 2 if gpu.backend == "hip" else 3
    return Tiles(block_m, 32 if wide else 64, 4, stages, "ieee")


def choose_prefill_tiles(gpu: Gpu, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Tiles for long runs of queries."""
    if dtype == torch.float32:
        return Tiles(32, 16, 4, 2, "ieee")
    wide = head_dim > 128
    if gpu.backend == "hip":
        return Tiles(64 if wide else 128, 32 if wide else 64, 4, 2, "ieee")
    if wide:
        return Tiles(64, 32, 4, 2, "ieee")
    return Tiles(128, 64, 8, 3, "ieee")
