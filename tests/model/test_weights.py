import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.model.family_builders import save_family
from twinpool.core.errors import SpecError
from twinpool.kernels.linear import Arithmetic
from twinpool.model.checkpoint_layout import list_tensors
from twinpool.model.config import FAMILIES, load_model_config, read_config
from twinpool.model.config_file import Fields
from twinpool.model.dummy_shapes import DUMMY_SHAPES
from twinpool.model.weights import choose_arithmetic, choose_dtype, load_weights


def load(folder, dtype="float32", **options):
    return load_weights(str(folder), load_model_config(str(folder)), dtype, **options)[0]


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def rows_of(linear, columns):
    """The weight and bias that a product computes with, whatever it keeps: what it makes of unit rows and of zeros."""
    bias = linear(torch.zeros(1, columns))
    return (linear(torch.eye(columns)) - bias).T, bias[0]


@pytest.mark.parametrize("arithmetic", [Arithmetic.FAST, Arithmetic.PLAIN, Arithmetic.DETERMINISTIC])
def test_queries_keys_and_values_are_fused_and_so_are_gate_and_up(tmp_path, arithmetic):
    folder = save_family(tmp_path, "llama", attention_bias=True, mlp_bias=True)
    tensors, layer = load_file(folder / "model.safetensors"), load(folder, arithmetic=arithmetic).layers[2]
    for linear, columns, modules in (
        (layer.qkv, 48, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        (layer.output, 64, ("self_attn.o_proj",)),
        (layer.gate_up, 48, ("mlp.gate_proj", "mlp.up_proj")),
        (layer.down, 80, ("mlp.down_proj",)),
    ):
        weight, bias = rows_of(linear, columns)
        for kind, made in (("weight", weight), ("bias", bias)):
            wanted = torch.cat([tensors[f"model.layers.2.{module}.{kind}"] for module in modules])
            torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)


def test_norms_of_query_and_key_heads_stand_in_the_order_of_the_heads(tmp_path):
    folder = save_family(tmp_path, "qwen3")
    tensors, layer = load_file(folder / "model.safetensors"), load(folder).layers[1]
    q_norm, k_norm = (tensors[f"model.layers.1.self_attn.{name}_norm.weight"] for name in "qk")
    assert torch.equal(layer.qk_norm, torch.stack([q_norm] * 4 + [k_norm] * 2))


@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_a_tied_head_is_the_embedding_even_where_the_file_holds_both(write_llama, arithmetic):
    folder = write_llama(tie_word_embeddings=True)
    edit(folder, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(131, 48)}))
    weights = load(folder, arithmetic=arithmetic)
    assert torch.equal(weights.embedding, load_file(folder / "model.safetensors")["model.embed_tokens.weight"])
    rounding = 0.01 if arithmetic is Arithmetic.INT8 else 1e-5
    torch.testing.assert_close(rows_of(weights.lm_head, 48)[0], weights.embedding, atol=rounding, rtol=0)


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
            lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}),
            r"model\.layers\.0\.self_attn\.q_norm\.weight is not a tensor",
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


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("qwen2", "model.layers.2.self_attn.k_proj.bias"),
        ("qwen3", "model.layers.0.self_attn.q_norm.weight"),
        ("qwen3", "model.layers.1.self_attn.k_norm.weight"),
        ("mistral", "model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_a_family_without_one_of_its_own_tensors_is_refused(tmp_path, model_type, name):
    folder = save_family(tmp_path, model_type)
    edit(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(SpecError, match=rf"model\.safetensors: {re.escape(name)} is missing"):
        load(folder)
    edit(folder, lambda tensors: tensors.update({name: torch.ones(3)}))
    with pytest.raises(SpecError, match=rf"{re.escape(name)} has shape \[3\]; config\.json means \["):
        load(folder)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_as_many_numbers_are_read_as_the_config_says(tmp_path, model_type):
    flags = {"attention_bias": True, "mlp_bias": True} if model_type == "llama" else {}
    folder = save_family(tmp_path, model_type, **flags)
    config = load_model_config(str(folder))
    assert config.num_parameters == sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert dict(list_tensors(config)).keys() == load_file(folder / "model.safetensors").keys()


def test_auto_is_the_checkpoints_own_dtype_and_a_named_one_is_honoured(write_llama):
    for own in ("float32", "bfloat16"):
        folder = str(write_llama(dtype=own))
        config = load_model_config(folder)
        assert choose_dtype(folder, config, "auto") == own
        for asked in ("float32", "bfloat16"):
            assert choose_dtype(folder, config, asked) == asked
            assert load(folder, asked).layers[0].input_norm.dtype == getattr(torch, asked)
            assert load(folder, asked).embedding.dtype == getattr(torch, asked)


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
    made = [load_weights("dummy:tiny", config, "float32", arithmetic=Arithmetic.PLAIN) for _ in range(2)]
    (one, identity), (other, _) = made
    assert identity == "dummy:tiny"
    first, again, next_layer = (rows_of(layer.qkv, 128)[0] for layer in (one.layers[1], other.layers[1], one.layers[0]))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_layer)
    assert first.std().item() == pytest.approx(128**-0.5, rel=0.05)


def test_dummy_biases_are_not_all_the_same():
    tiny = DUMMY_SHAPES["tiny"] | {"model_type": "qwen2"}
    weights, _ = load_weights("dummy:tiny", read_config(Fields("dummy:tiny", tiny), ()), "float32")
    assert 0.01 < rows_of(weights.layers[0].qkv, 128)[1].std() < 1


def test_rounded_weights_have_an_identity_of_their_own(write_llama):
    folder = str(write_llama())
    config = load_model_config(folder)
    exact, fast, rounded = (
        load_weights(folder, config, "float32", arithmetic=arithmetic)[1]
        for arithmetic in (Arithmetic.PLAIN, Arithmetic.FAST, Arithmetic.INT8)
    )
    assert exact == fast != rounded


@pytest.mark.parametrize(
    ("deterministic", "quantization", "arithmetic"),
    [(False, "none", Arithmetic.FAST), (True, "none", Arithmetic.DETERMINISTIC), (False, "int8", Arithmetic.INT8)],
)
def test_a_clusters_two_fields_choose_the_arithmetic(deterministic, quantization, arithmetic):
    assert choose_arithmetic(deterministic, quantization) is arithmetic


@pytest.mark.parametrize(("deterministic", "quantization"), [(True, "int8"), (False, "fp8")])
def test_an_arithmetic_that_cannot_be_had_is_refused(deterministic, quantization):
    with pytest.raises(SpecError, match=r"model\.quantization: "):
        choose_arithmetic(deterministic, quantization)


PEAK = """
import json, re, sys
from pathlib import Path
from twinpool.kernels.linear import PlainLinear
from twinpool.model.config import load_model_config, read_config
from twinpool.model.config_file import Fields
from twinpool.model.weights import load_weights
read = lambda key: int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
path, dtype, shape = sys.argv[1:]
config = read_config(Fields(path, json.loads(shape)), ()) if shape else load_model_config(path)
load_weights("dummy:tiny", load_model_config("dummy:tiny"), dtype)  # first use of torch costs memory of its own
Path("/proc/self/clear_refs").write_text("5")
before = read("VmRSS")
weights, _ = load_weights(path, config, dtype)
layers = [linear for layer in weights.layers for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)]
kept = weights.embedding.nbytes + sum(linear.num_bytes for linear in layers)
kept += 0 if type(weights.lm_head) is PlainLinear and config.tie_word_embeddings else weights.lm_head.num_bytes
print(kept / 2**20, (read("VmHWM") - before) / kept)
"""
LARGE = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_hidden_layers": 6,
    "vocab_size": 16_384,
}


def measure_peak(path, dtype, shape=""):
    """What loading keeps, in MiB, and the most it takes, as a part of that; in a process of its own."""
    command = [sys.executable, "-c", PEAK, path, dtype, shape]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    return map(float, result.stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "changes"),
    [
        ("float32", {"num_hidden_layers": 4, "vocab_size": 4096}),
        ("bfloat16", {}),
        ("bfloat16", {"tie_word_embeddings": True}),
    ],
)
def test_loading_a_checkpoint_peaks_below_1_3_times_the_weights(write_llama, dtype, changes):
    kept_mib, ratio = measure_peak(str(write_llama(**(LARGE | changes), dtype=dtype)), dtype)
    assert kept_mib > 90
    assert 0.9 < ratio < 1.3


@pytest.mark.slow
def test_making_dummy_weights_peaks_below_1_3_times_the_weights():
    shape = DUMMY_SHAPES["qwen2.5-0.5b"] | LARGE
    kept_mib, ratio = measure_peak("dummy:qwen2.5-0.5b", "bfloat16", json.dumps(shape))
    assert kept_mib > 90
    assert 0.9 < ratio < 1.3
