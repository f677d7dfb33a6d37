import numpy as np
import pytest
import torch

from twinpool.kernels.paged_attention import plan_attention
from twinpool.model.config import load_model_config
from twinpool.model.decoder import Decoder, rms_norm
from twinpool.model.rope import make_rotary
from twinpool.model.weights import load_weights


def logits_of(folder, ids, dtype="float32"):
    config = load_model_config(str(folder))
    weights, _ = load_weights(str(folder), config, dtype)
    decoder = Decoder(config, weights, make_rotary(config, len(ids), getattr(torch, dtype)))
    pool = torch.full((9, config.num_layers, 2, config.num_kv_heads, 16, config.head_dim), torch.nan)
    pool = pool.to(getattr(torch, dtype))
    lengths = np.array([0, len(ids)], np.int32)
    plan = plan_attention(lengths, lengths[1:], [np.arange(8, 0, -1)], pool, config.num_heads)
    return decoder.logits(decoder.compute(torch.tensor(ids), pool, plan))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.15)])
def test_logits_are_those_of_transformers_at_every_position(write_llama, dtype, tolerance):
    from transformers import LlamaForCausalLM

    folder = write_llama(num_attention_heads=6, num_key_value_heads=3, head_dim=20, hidden_size=96)
    ids = torch.arange(100) * 7 % 131
    with torch.inference_mode():
        peer = LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))(ids[None]).logits[0].float()
        torch.testing.assert_close(logits_of(folder, ids.tolist(), dtype), peer, atol=tolerance, rtol=1e-4)


def test_rms_norm_does_not_overflow_where_bfloat16_squares_would_lose_all():
    x = torch.full((1, 64), 1e18, dtype=torch.bfloat16)
    assert rms_norm(x, torch.ones(64, dtype=torch.bfloat16), 1e-5).eq(1).all()


def test_layers_are_announced_right_after_they_are_written(write_llama):
    config = load_model_config(str(folder := write_llama()))
    weights, _ = load_weights(str(folder), config, "float32")
    decoder = Decoder(config, weights, make_rotary(config, 4, torch.float32))
    pool = torch.zeros(1, 3, 2, 1, 4, 16)
    lengths = np.array([0, 4], np.int32)
    plan = plan_attention(lengths, lengths[1:], [np.array([0])], pool, 3)
    seen = []
    decoder.compute(
        torch.arange(4), pool, plan, lambda layer: seen.append((layer, pool.ne(0).all((0, 2, 3, 4, 5)).sum()))
    )
    assert seen == [(0, 1), (1, 2), (2, 3)]
