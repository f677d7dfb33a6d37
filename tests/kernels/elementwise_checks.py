"""Checks of the kernels that touch each number once, to be run in the interpreter (see interpreter.py)."""

import torch
from paged_case import DTYPES

from twinpool.kernels.add_rms_norm import add_rms_norm, add_rms_norm_reference
from twinpool.kernels.rope_kv_write import rope_kv_write, rope_kv_write_reference
from twinpool.kernels.silu_mul import silu_mul, silu_mul_reference

TOLERANCES = {"fp16": 2e-3, "bf16": 3e-2, "fp32": 1e-5}  # the interpreter cuts bfloat16 off instead of rounding it


def random(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])


def close(found, expected, dtype):
    torch.testing.assert_close(found.double(), expected, atol=TOLERANCES[dtype], rtol=TOLERANCES[dtype])


def check_norm(tokens, width, dtype, is_added, is_aliased):
    residual, weight = random(tokens, width, dtype=dtype), random(width, dtype=dtype, seed=1)
    added = random(tokens, width, dtype=dtype, seed=2) if is_added else None
    wide = (residual.double(), None if added is None else added.double(), weight.double())
    total, normed = add_rms_norm_reference(*wide, 1e-6)
    out = added if is_aliased else torch.full_like(residual, torch.nan)
    add_rms_norm(residual, added, weight, 1e-6, out)
    close(residual, total, dtype)
    close(out, normed, dtype)


def check_gate(tokens, inner, dtype):
    gate_up = 3 * random(tokens, 2 * inner, dtype=dtype)
    out = torch.full((tokens, inner), torch.nan, dtype=gate_up.dtype)
    silu_mul(gate_up, out)
    close(out, silu_mul_reference(gate_up.double()), dtype)


def check_rope(heads, dtype, block_tokens, is_normed):
    num_heads, num_kv_heads, head_dim = heads
    slots = torch.tensor([3 * block_tokens + 1, -1, 0, 2 * block_tokens - 1, 4 * block_tokens - 1])
    qkv = random(len(slots), num_heads + 2 * num_kv_heads + 1, head_dim, dtype=dtype)[:, :-1]
    angles = torch.outer(torch.arange(9.0), 0.5 ** torch.arange(head_dim // 2))
    cos = torch.cat((angles.cos(), angles.cos()), 1).to(qkv.dtype)
    signed_sin = torch.cat((-angles.sin(), angles.sin()), 1).to(qkv.dtype)
    norm = random(num_heads + num_kv_heads, head_dim, dtype=dtype, seed=3) if is_normed else None
    pool = torch.full((5, 3, 2, num_kv_heads, block_tokens, head_dim), torch.nan, dtype=qkv.dtype)
    positions = torch.tensor([8, 10**9, 0, 3, 5])
    wide = [qkv.double(), cos.double(), signed_sin.double(), positions, slots, pool[:, 1].double()]
    rope_kv_write_reference(*wide, None if norm is None else norm.double(), 1e-6)
    rope_kv_write(qkv, cos, signed_sin, positions, slots, pool[:, 1], norm, 1e-6)
    close(qkv, wide[0], dtype)
    written = ~wide[5].isnan()
    assert written.sum() == 4 * 2 * num_kv_heads * head_dim
    close(pool[:, 1][written], wide[5][written], dtype)
    pool[:, 1][written] = torch.nan
    assert pool.isnan().all()


def check_no_norm():
    nothing = torch.empty(0, 64)
    add_rms_norm(nothing, None, torch.ones(64), 1e-6, nothing)


def check_no_gate():
    silu_mul(torch.empty(0, 128), torch.empty(0, 64))


def check_no_rope():
    table, ids = torch.ones(1, 64), torch.empty(0, dtype=torch.int64)
    rope_kv_write(torch.empty(0, 4, 64), table, table, ids, ids, torch.ones(1, 2, 1, 16, 64))
