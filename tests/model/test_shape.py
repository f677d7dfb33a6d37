import pytest
import torch

from twinpool.kernels.int8_product import has_int8_product
from twinpool.kernels.linear import Arithmetic, has_packed_product
from twinpool.model.config import load_model_config
from twinpool.model.shape import load_shape
from twinpool.model.weights import load_weights


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("quantization", "arithmetic"), [("none", Arithmetic.FAST), ("int8", Arithmetic.INT8)])
def test_weight_bytes_are_what_loading_keeps_where_the_cpu_has_every_product(
    write_llama, tied, quantization, arithmetic
):
    folder = str(write_llama(hidden_size=128, intermediate_size=256, vocab_size=512, tie_word_embeddings=tied))
    weights, _ = load_weights(folder, load_model_config(folder), "bfloat16", arithmetic=arithmetic)
    linears = [weights.lm_head]
    for layer in weights.layers:
        linears += [layer.qkv, layer.output, layer.gate_up, layer.down]
    kept = weights.embedding.nbytes + sum(linear.num_bytes for linear in linears)
    counted = load_shape(folder, "bfloat16", quantization).weight_bytes
    assert kept < 1.03 * counted
    if has_packed_product(torch.bfloat16) and (quantization == "none" or has_int8_product()):
        assert counted < 1.03 * kept


def test_a_request_may_be_as_long_as_rope_scaling_allows(write_config):
    rope = {"rope_type": "linear", "factor": 4.0}
    assert load_shape(write_config(rope_parameters=rope), "auto").max_position_embeddings == 2048


def test_kv_bytes_count_every_layer_windowed_or_not():
    assert load_shape("dummy:mistral-7b", "auto").kv_token_bytes == 32 * 2 * 8 * 128 * 2
