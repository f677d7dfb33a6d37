import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from twinpool.core.errors import SpecError
from twinpool.model.config import load_model_config
from twinpool.model.weights import choose_dtype, load_weights


def load(folder, dtype="float32"):
    return load_weights(str(folder), load_model_config(str(folder)), dtype)[0]


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_queries_keys_and_values_are_fused_and_so_are_gate_and_up(write_llama):
    folder = write_llama()
    tensors, layer = load_file(folder / "model.safetensors"), load(folder).layers[2]
    part = "model.layers.2.self_attn.{}_proj.weight"
    assert torch.equal(layer.qkv, torch.cat([tensors[part.format(name)] for name in "qkv"]))
    gate_up = [tensors[f"model.layers.2.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(layer.gate_up, torch.cat(gate_up))


def test_tied_embeddings_are_one_tensor_even_where_the_file_holds_both(write_llama):
    folder = write_llama(tie_word_embeddings=True)
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(131, 48)}))
    weights = load(folder)
    assert weights.lm_head is weights.embedding
    assert weights.embedding.any()


def test_rotary_buffers_of_old_checkpoints_are_ignored(write_llama):
    folder = write_llama()
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda tensors: tensors.update({name: torch.zeros(8)}))
    assert len(load(folder).layers) == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda t: t.pop("lm_head.weight"), r"lm_head\.weight is missing"),
        (
            lambda t: t.update({"model.layers.3.input_layernorm.weight": torch.ones(48)}),
            r"model\.layers\.3\.input_layernorm\.weight is not a tensor of LlamaForCausalLM",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(48)}),
            r"model\.layers\.0\.self_attn\.q_proj\.bias is not a tensor",
        ),
        (
            lambda t: t.update({"model.layers.1.self_attn.k_proj.weight": torch.ones(48, 16)}),
            r"model\.layers\.1\.self_attn\.k_proj\.weight has shape \[48, 16\]; config\.json means \[16, 48\]",
        ),
    ],
)
def test_a_tensor_missing_extra_or_misshapen_is_refused_by_file_and_name(write_llama, change, complaint):
    folder = write_llama()
    edit(folder, change)
    with pytest.raises(SpecError, match=rf"model\.safetensors: {complaint}"):
        load(folder)


def test_auto_is_the_checkpoints_own_dtype_and_a_named_one_is_honoured(write_llama):
    for own in ("float32", "bfloat16"):
        folder = str(write_llama(dtype=own))
        config = load_model_config(folder)
        assert choose_dtype(folder, config, "auto") == own
        for asked in ("float32", "bfloat16"):
            assert choose_dtype(folder, config, asked) == asked
            assert load(folder, asked).layers[0].down.dtype == getattr(torch, asked)


def test_auto_refuses_to_narrow_what_is_wider_than_config_says(write_llama):
    folder = write_llama(dtype="bfloat16")
    edit(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(48)}))
    config = load_model_config(str(folder))
    with pytest.raises(SpecError, match=r"model\.norm\.weight is float32, but config\.json says bfloat16: set model"):
        choose_dtype(str(folder), config, "auto")
    assert choose_dtype(str(folder), config, "bfloat16") == "bfloat16"


def test_auto_widens_to_what_config_says(write_llama):
    folder = write_llama(dtype="bfloat16")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    assert choose_dtype(str(folder), load_model_config(str(folder)), "auto") == "float32"


@pytest.mark.parametrize("asked", ["auto", "float16"])
def test_float16_is_refused_on_a_cpu(write_llama, asked):
    folder = str(write_llama(dtype="float16"))
    with pytest.raises(SpecError, match=r"model\.dtype: float16 is not supported on a CPU"):
        choose_dtype(folder, load_model_config(folder), asked)


def test_an_unknown_dtype_lists_the_known_ones(write_llama):
    folder = str(write_llama())
    with pytest.raises(SpecError, match=r"model\.dtype: 'int8' is not one of auto, float32, bfloat16, float16"):
        choose_dtype(folder, load_model_config(folder), "int8")


def test_dummy_weights_are_the_same_each_time_and_differ_between_layers():
    config = load_model_config("dummy:tiny")
    (one, identity), (other, _) = (load_weights("dummy:tiny", config, "bfloat16") for _ in range(2))
    assert identity == "dummy:tiny"
    assert torch.equal(one.layers[1].qkv, other.layers[1].qkv)
    assert not torch.equal(one.layers[0].qkv, one.layers[1].qkv)
    assert one.layers[0].qkv.float().std().item() == pytest.approx(128**-0.5, rel=0.05)


PEAK = """
import re, sys, torch
from pathlib import Path
from twinpool.model.config import load_model_config
from twinpool.model.weights import load_weights
read = lambda key: int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
config = load_model_config(sys.argv[1])
load_weights("dummy:tiny", load_model_config("dummy:tiny"), "float32")  # first use of torch costs memory of its own
Path("/proc/self/clear_refs").write_text("5")
before = read("VmRSS")
weights, _ = load_weights(sys.argv[1], config, "float32")
kept = sum(tensor.nbytes for layer in weights.layers for tensor in (layer.qkv, layer.output, layer.gate_up, layer.down))
print((read("VmHWM") - before) / kept)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_loading_peaks_below_1_3_times_the_weights(write_llama):
    folder = write_llama(hidden_size=768, intermediate_size=1536, num_attention_heads=48, num_hidden_layers=4)
    result = subprocess.run(
        [sys.executable, "-c", PEAK, folder], check=True, capture_output=True, text=True, timeout=100
    )
    assert 0.9 < float(result.stdout) < 1.3
