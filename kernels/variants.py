"""Lists every variant of every Triton kernel that may be launched, so that all of them can be compiled ahead of time.

Knows the kernels' signatures and which tiles the launching code would choose; compiles nothing. What a wrapper passes
and what is listed here must agree: arguments that vary from call to call are no constants, so the list is complete.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from twinpool.kernels import (
    add_rms_norm,
    decode_attention,
    decode_plan,
    merge_partials,
    prefill_attention,
    rope_kv_write,
    silu_mul,
)
from twinpool.kernels.ahead_of_time import TARGETS, Variant
from twinpool.kernels.paged_kv import BLOCK_TOKENS, DTYPES, HEAD_DIMS, power_of_two
from twinpool.kernels.tiles import Gpu, Tiles, choose_decode_tiles, choose_prefill_tiles, decode_rows

NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
INT, POINTER = "i32", "*i32"


def gpu_of_target(target_name: str) -> Gpu:
    """The kind of GPU that a target's code is for."""
    target = TARGETS[target_name]
    return Gpu(target.backend, target.arch)


def list_variants(target_name: str) -> Iterator[Variant]:
    """Every variant that may be launched on a target."""
    gpu = gpu_of_target(target_name)
    yield from decode_plans()
    for dtype in DTYPES:
        yield from norms(dtype)
        yield gate(dtype)
    for head_dim, dtype in product(HEAD_DIMS, DTYPES):
        yield merge(head_dim, dtype)
        for normed in (False, True):
            yield rope(head_dim, dtype, normed=normed)
        for rows in decode_rows(dtype):
            tiles = choose_decode_tiles(gpu, head_dim, dtype, rows)
            for gather in gathers(tiles):
                yield decode(head_dim, dtype, tiles, gather=gather)
        tiles = choose_prefill_tiles(gpu, head_dim, dtype)
        for gather, windowed in product(gathers(tiles), (False, True)):
            yield prefill(head_dim, dtype, tiles, gather=gather, windowed=windowed)


def gathers(tiles: Tiles) -> list[bool]:
    """Whether a tile may span blocks, and whether it may lie in one."""
    return sorted({block_tokens < tiles.block_n for block_tokens in BLOCK_TOKENS})


def decode(head_dim: int, dtype: torch.dtype, tiles: Tiles, *, gather: bool) -> Variant:
    """Decode attention, or the short sequences of a mixed batch."""
    data = f"*{NAMES[dtype]}"
    signature = {"q_ptr": data, "kv_ptr": data, "out_ptr": data, "partial_ptr": "*fp32", "lse_ptr": "*fp32"}
    pointers = ("table_ptr", "cu_ptr", "context_ptr", "first_item_ptr", "sequence_ptr", "chunk_ptr")
    strides = ("q_stride", "out_stride", "block_stride", "value_offset", "head_stride")
    signature |= dict.fromkeys(pointers, POINTER) | dict.fromkeys(strides, INT)
    aligned = frozenset(signature)
    signature |= dict.fromkeys(decode_attention.UNSPECIALISED, INT) | {"scale_log2": "fp32"}
    constants = _tile_constants(head_dim, tiles, gather=gather)
    name = f"d{head_dim}-{NAMES[dtype]}-rows{tiles.block_m}{'-gather' if gather else ''}"
    kernel = decode_attention._decode_attention_kernel
    return Variant(kernel, name, signature, aligned, constants, tiles.num_warps, tiles.num_stages)


def prefill(head_dim: int, dtype: torch.dtype, tiles: Tiles, *, gather: bool, windowed: bool) -> Variant:
    """Attention of long runs of new tokens."""
    data = f"*{NAMES[dtype]}"
    pointers = ("table_ptr", "cu_ptr", "context_ptr", "tiles_ptr")
    strides = ("q_stride", "out_stride", "block_stride", "value_offset", "head_stride")
    signature = dict.fromkeys(("q_ptr", "kv_ptr", "out_ptr"), data) | dict.fromkeys(pointers, POINTER)
    signature |= dict.fromkeys(strides, INT)
    aligned = frozenset(signature)
    signature |= dict.fromkeys(prefill_attention.UNSPECIALISED, INT) | {"scale_log2": "fp32"}
    constants = _tile_constants(head_dim, tiles, gather=gather) | {"WINDOW": windowed}
    name = f"d{head_dim}-{NAMES[dtype]}{'-gather' if gather else ''}{'-window' if windowed else ''}"
    kernel = prefill_attention._prefill_attention_kernel
    return Variant(kernel, name, signature, aligned, constants, tiles.num_warps, tiles.num_stages)


def merge(head_dim: int, dtype: torch.dtype) -> Variant:
    """The merge of partial results."""
    signature = {"partial_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": f"*{NAMES[dtype]}", "out_stride": INT}
    signature |= {"first_item_ptr": POINTER, "cu_ptr": POINTER}
    aligned = frozenset(signature)
    signature |= {"group": INT, "most_queries": INT}
    constants = {"HEAD_DIM": head_dim, "BLOCK_D": power_of_two(head_dim), "RUNS": merge_partials.runs_at_once(head_dim)}
    name = f"d{head_dim}-{NAMES[dtype]}"
    return Variant(merge_partials._merge_partials_kernel, name, signature, aligned, constants, 4)


def decode_plans() -> Iterator[Variant]:
    """The work-list for so many sequences."""
    pointers = ("cu_ptr", "context_ptr", "first_item_ptr", "sequence_ptr", "chunk_ptr")
    signature = dict.fromkeys(pointers, POINTER)
    aligned = frozenset(signature)
    signature |= dict.fromkeys((*decode_plan.UNSPECIALISED, "block_n", "least_chunk"), INT)
    lanes = decode_plan.LEAST_LANES
    while lanes <= decode_plan.MOST_SEQUENCES:
        kernel = decode_plan._plan_decode_kernel
        yield Variant(kernel, f"sequences{lanes}", signature, aligned, {"LANES": lanes}, 4)
        lanes *= 2


def norms(dtype: torch.dtype) -> Iterator[Variant]:
    """Norms of rows up to some width, with and without an addition."""
    data = f"*{NAMES[dtype]}"
    signature = dict.fromkeys(("residual_ptr", "added_ptr", "weight_ptr", "out_ptr"), data) | {"width": INT}
    aligned = frozenset(signature)
    signature |= {"eps": "fp32"}
    block = add_rms_norm.LEAST_WIDTH
    while block <= add_rms_norm.MOST_WIDTH:
        for add in (False, True):
            name = f"width{block}-{NAMES[dtype]}{'-add' if add else ''}"
            constants = {"ADD": add, "BLOCK": block}
            warps = add_rms_norm.norm_warps(block)
            yield Variant(add_rms_norm._add_rms_norm_kernel, name, signature, aligned, constants, warps)
        block *= 2


def gate(dtype: torch.dtype) -> Variant:
    """SwiGLU's gate."""
    signature = dict.fromkeys(("gate_up_ptr", "out_ptr"), f"*{NAMES[dtype]}") | {"inner": INT}
    constants = {"BLOCK": silu_mul.CHUNK}
    return Variant(silu_mul._silu_mul_kernel, NAMES[dtype], signature, frozenset(signature), constants, 4)


def rope(head_dim: int, dtype: torch.dtype, *, normed: bool) -> Variant:
    """Rotation and writing of KV."""
    pointers = ("qkv_ptr", "cos_ptr", "signed_sin_ptr", "norm_ptr", "kv_ptr")
    signature = dict.fromkeys(pointers, f"*{NAMES[dtype]}") | dict.fromkeys(("position_ptr", "slot_ptr"), "*i64")
    signature |= dict.fromkeys(("qkv_stride", "block_stride", "value_offset", "head_stride"), INT)
    aligned = frozenset(signature)
    signature |= dict.fromkeys(rope_kv_write.UNSPECIALISED, INT) | {"eps": "fp32"}
    constants = {"HEAD_DIM": head_dim, "HALF": power_of_two(head_dim // 2), "NORM": normed}
    name = f"d{head_dim}-{NAMES[dtype]}{'-norm' if normed else ''}"
    return Variant(rope_kv_write._rope_kv_write_kernel, name, signature, aligned, constants, 1)


def _tile_constants(head_dim: int, tiles: Tiles, *, gather: bool) -> dict[str, Any]:
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": power_of_two(head_dim),
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "GATHER": gather,
        "UPCAST": False,
        "PRECISION": tiles.precision,
    }
