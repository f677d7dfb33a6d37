"""Kernels that touch each number once: add_rms_norm, silu_mul and rope_kv_write."""

import pytest
import torch

from twinpool.kernels.add_rms_norm import add_rms_norm, add_rms_norm_reference
from twinpool.kernels.rope_kv_write import rope_kv_write, rope_kv_write_reference
from twinpool.kernels.silu_mul import silu_mul, silu_mul_reference
from twinpool.kernels.swiglu import swiglu
from twinpool.model.decoder import rms_norm
from twinpool.model.rope import rotate

MODULE = "elementwise_checks"


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("width", [16, 512, 528, 1040])
@pytest.mark.parametrize(("is_added", "is_aliased"), [(False, False), (True, False), (True, True)])
def test_a_row_is_added_and_normed(interpreter, dtype, width, is_added, is_aliased):
    interpreter.run(MODULE, "check_norm", 3, width, dtype, is_added, is_aliased)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("inner", [16, 1024, 1040])
def test_a_row_is_gated(interpreter, dtype, inner):
    interpreter.run(MODULE, "check_gate", 3, inner, dtype)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("is_normed", [False, True])
def test_keys_and_values_reach_their_slots_and_queries_stay(interpreter, dtype, head_dim, is_normed):
    interpreter.run(MODULE, "check_rope", (4, 2, head_dim), dtype, 16, is_normed)


@pytest.mark.parametrize(("heads", "block_tokens"), [((1, 1, 64), 128), ((16, 1, 64), 32), ((6, 3, 64), 64)])
def test_any_ratio_of_heads_and_block_size_is_written(interpreter, heads, block_tokens):
    interpreter.run(MODULE, "check_rope", heads, "fp32", block_tokens, True)


def test_no_rows_launch_nothing(interpreter):
    interpreter.run(MODULE, "check_nothing")


def test_the_references_are_what_the_decoder_computes_on_a_cpu():
    torch.manual_seed(0)
    x, weight, qkv = torch.randn(5, 64), torch.randn(64), torch.randn(5, 8, 64)
    for dtype in (torch.float32, torch.bfloat16):
        rows, weights, heads = x.to(dtype), weight.to(dtype), qkv.to(dtype)
        total, normed = add_rms_norm_reference(rows, rows, weights, 1e-6)
        torch.testing.assert_close(total, rows + rows)
        torch.testing.assert_close(normed, rms_norm(rows + rows, weights, 1e-6))
        torch.testing.assert_close(silu_mul_reference(rows), swiglu(rows))
        cos, signed_sin, norm = (torch.randn(shape).to(dtype) for shape in ((9, 64), (9, 64), (6, 64)))
        position, slot = torch.tensor([4, 0, 8, 1, 1]), torch.tensor([17, 3, 0, 31, 16])
        expected = rotate(rms_norm(heads[:, :6], norm, 1e-6), cos[position][:, None], signed_sin[position][:, None])
        values, pool = heads[:, 6:].clone(), torch.zeros(2, 2, 2, 16, 64, dtype=dtype)
        rope_kv_write_reference(heads, cos, signed_sin, position, slot, pool, norm, 1e-6)
        torch.testing.assert_close(heads[:, :4], expected[:, :4])
        torch.testing.assert_close(pool[slot // 16, 0, :, slot % 16], expected[:, 4:])
        torch.testing.assert_close(pool[slot // 16, 1, :, slot % 16], values)


def rows(*shape, dtype=torch.float16):
    return torch.zeros(shape, dtype=dtype)


NORMS = [
    ((rows(2, 3, 16), None, rows(16), 1e-6, rows(2, 16)), r"must be \[T, C\]"),
    ((rows(2, 16, dtype=torch.float64), None, rows(16), 1e-6, rows(2, 16)), "float64"),
    ((rows(2, 24), None, rows(24), 1e-6, rows(2, 24)), "width 24"),
    ((rows(2, 16400), None, rows(16400), 1e-6, rows(2, 16400)), "width 16400"),
    ((rows(2, 16), rows(3, 16), rows(16), 1e-6, rows(2, 16)), "added is"),
    ((rows(2, 16), None, rows(32), 1e-6, rows(2, 16)), "weight is"),
    ((rows(2, 16), None, rows(16).float(), 1e-6, rows(2, 16)), "weight is torch.float32"),
    ((rows(2, 16), None, rows(16), 1e-6, rows(2, 16).to("meta")), "on meta"),
    ((rows(2, 16), None, rows(16), 1e-6, rows(16, 2).T), "out must be contiguous"),
    ((rows(2, 16), None, rows(17)[1:], 1e-6, rows(2, 16)), "weight must be contiguous, its address"),
]
GATES = [
    ((rows(2, 16), rows(2, 16)), r"\[T, 2I\] and \[T, I\]"),
    ((rows(2, 32), rows(2, 16).float()), "must be one of"),
    ((rows(2, 48), rows(2, 24)), "inner width 24"),
    ((rows(32, 2).T, rows(2, 16)), "gate_up must be contiguous"),
]
IDS, TABLE, POOL = torch.zeros(2, dtype=torch.int64), rows(9, 64), rows(3, 2, 2, 16, 64)
ROPES = [
    ((rows(2, 4, 64), TABLE, TABLE, IDS, IDS, POOL), r"\[T, H \+ 2K, D\]"),
    ((rows(2, 7, 64), TABLE, TABLE, IDS, IDS, POOL), "3 heads over 2 KV heads"),
    ((rows(2, 6, 64), TABLE[:, :32], TABLE, IDS, IDS, POOL), "tables"),
    ((rows(2, 6, 64), TABLE.float(), TABLE, IDS, IDS, POOL), "cos is torch.float32"),
    ((rows(2, 6, 64), TABLE, rows(64, 9).T, IDS, IDS, POOL), "signed_sin must be contiguous"),
    ((rows(2, 6, 64), TABLE, TABLE, IDS[:1], IDS, POOL), "position"),
    ((rows(2, 6, 64), TABLE, TABLE, IDS, IDS.int(), POOL), "slot"),
    ((rows(2, 6, 64), TABLE, TABLE, IDS, IDS, POOL, TABLE), "qk_norm"),
]


@pytest.mark.parametrize(
    ("wrapper", "arguments", "complaint"),
    [(add_rms_norm, *case) for case in NORMS]
    + [(silu_mul, *case) for case in GATES]
    + [(rope_kv_write, *case) for case in ROPES],
)
def test_arguments_that_no_variant_takes_are_refused(wrapper, arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        wrapper(*arguments)
