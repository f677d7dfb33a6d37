import pytest
import torch

from twinpool.kernels.rope_kv_write import rope_kv_write, rope_kv_write_reference
from twinpool.model.decoder import rms_norm
from twinpool.model.rope import rotate

MODULE = "elementwise_checks"


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("is_normed", [False, True])
def test_keys_and_values_reach_their_slots_and_queries_stay(interpreter, dtype, head_dim, is_normed):
    interpreter.run(MODULE, "check_rope", (4, 2, head_dim), dtype, 16, is_normed)


@pytest.mark.parametrize(("heads", "block_tokens"), [((1, 1, 64), 128), ((16, 1, 64), 32), ((6, 3, 64), 64)])
def test_any_ratio_of_heads_and_block_size_is_written(interpreter, heads, block_tokens):
    interpreter.run(MODULE, "check_rope", heads, "fp32", block_tokens, True)


def test_no_rows_launch_nothing(interpreter):
    interpreter.run(MODULE, "check_no_rope")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_is_the_decoders_norm_and_rotation(dtype):
    torch.manual_seed(0)
    qkv, cos, signed_sin, norm = (torch.randn(shape).to(dtype) for shape in ((5, 8, 64), (9, 64), (9, 64), (6, 64)))
    position, slot = torch.tensor([4, 0, 8, 1, 1]), torch.tensor([17, 3, 0, 31, 16])
    turned = rotate(rms_norm(qkv[:, :6], norm, 1e-6), cos[position][:, None], signed_sin[position][:, None])
    values, pool = qkv[:, 6:].clone(), torch.zeros(2, 2, 2, 16, 64, dtype=dtype)
    rope_kv_write_reference(qkv, cos, signed_sin, position, slot, pool, norm, 1e-6)
    torch.testing.assert_close(qkv[:, :4], turned[:, :4])
    torch.testing.assert_close(pool[slot // 16, 0, :, slot % 16], turned[:, 4:])
    torch.testing.assert_close(pool[slot // 16, 1, :, slot % 16], values)


def rows(*shape, dtype=torch.float16):
    return torch.zeros(shape, dtype=dtype)


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


@pytest.mark.parametrize(("arguments", "complaint"), ROPES)
def test_arguments_that_no_variant_takes_are_refused(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        rope_kv_write(*arguments)
