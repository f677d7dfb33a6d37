import json
import subprocess
import sys
from pathlib import Path

import pytest

from twinpool.core.errors import SpecError
from twinpool.model.config import load_model_config
from twinpool.model.dummy_shapes import DUMMY_SHAPES

DEMO = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny"


def test_new_and_old_spelling_mean_the_same(write_config):
    new = load_model_config(write_config(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}))
    old = load_model_config(
        write_config(dtype=..., torch_dtype="float32", rope_parameters=..., rope_theta=5e5, rope_scaling=None)
    )
    assert new == old
    assert (new.rope.theta, new.dtype) == (5e5, "float32")


def test_fields_left_out_take_the_values_that_transformers_gives_them(write_config):
    config = load_model_config(
        write_config(
            head_dim=...,
            num_key_value_heads=...,
            rms_norm_eps=...,
            rope_parameters=...,
            max_position_embeddings=...,
            tie_word_embeddings=...,
            dtype=...,
            architectures=...,
        )
    )
    assert (config.head_dim, config.num_kv_heads, config.rms_norm_eps) == (16, 3, 1e-6)
    assert (config.rope.theta, config.max_position_embeddings) == (10_000.0, 2048)
    assert (config.tie_word_embeddings, config.dtype) == (False, "float32")


@pytest.mark.parametrize(("eos", "ids"), [(2, (2,)), ([2, 5], (2, 5)), (None, ())])
def test_end_tokens_are_one_or_several_or_none(write_config, eos, ids):
    assert load_model_config(write_config(eos_token_id=eos)).eos_token_ids == ids


def test_generation_config_goes_before_config_for_end_tokens(write_config):
    folder = write_config(eos_token_id=1)
    Path(folder, "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert load_model_config(folder).eos_token_ids == (7, 8)
    Path(folder, "generation_config.json").write_text(json.dumps({"temperature": 0.6}))
    assert load_model_config(folder).eos_token_ids == (1,)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model_type": "gpt2"}, r"model_type 'gpt2' is not supported; supported: llama, mistral, qwen2, qwen3"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\] is not supported"),
        ({"model_type": "qwen2"}, r"architectures \['LlamaForCausalLM'\] is not supported; supported: \['Qwen2For"),
        ({"model_type": ...}, r"model_type None is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r"architectures \['LlamaForSeq"),
        ({"hidden_act": "gelu"}, r"hidden_act 'gelu' is not supported"),
        ({"attention_bias": 1}, r"attention_bias 1 must be true or false"),
        ({"sliding_window": 4096}, r"sliding_window 4096 is not supported for model_type 'llama'"),
        ({"layer_types": ["full_attention"]}, r"layer_types .* is not supported for model_type 'llama'"),
        ({"use_sliding_window": True}, r"use_sliding_window True is not supported for model_type 'llama'"),
        ({"num_hidden_layers": 5000}, r"num_hidden_layers 5000 must be a positive whole number, at most 4096"),
        ({"num_attention_heads": 0}, r"num_attention_heads 0 must be"),
        ({"rms_norm_eps": 10**400}, r"rms_norm_eps 10+ must be a positive number"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantization_config .*awq.* is not supported"),
        ({"partial_rotary_factor": 0.25}, r"partial_rotary_factor 0.25 is not supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor 0.5 is not supported"),
        ({"rope_parameters": [1]}, r"rope_parameters \[1\] must be an object"),
        ({"dtype": "float64"}, r"dtype 'float64' is not supported; supported: float32, bfloat16, float16"),
        ({"dtype": 16}, r"dtype 16 is not supported"),
        ({"hidden_size": ...}, r"hidden_size None must be a positive whole number"),
        ({"vocab_size": -1}, r"vocab_size -1 must be"),
        ({"num_hidden_layers": True}, r"num_hidden_layers True must be"),
        ({"num_hidden_layers": 2.5}, r"num_hidden_layers 2.5 must be"),
        ({"num_key_value_heads": 2}, r"num_key_value_heads 2 does not divide num_attention_heads 3"),
        ({"head_dim": ..., "hidden_size": 49}, r"num_attention_heads 3 does not divide hidden_size 49"),
        ({"head_dim": 15}, r"head_dim 15 must be even"),
        ({"rms_norm_eps": "tiny"}, r"rms_norm_eps 'tiny' must be a positive number"),
        ({"rms_norm_eps": float("nan")}, r"rms_norm_eps nan must be"),
        ({"tie_word_embeddings": 1}, r"tie_word_embeddings 1 must be true or false"),
        ({"eos_token_id": "</s>"}, r"eos_token_id '</s>' must be a token id"),
    ],
)
def test_what_the_decoder_cannot_compute_is_refused_by_file_and_field(write_config, changes, complaint):
    with pytest.raises(SpecError, match=rf"config\.json: .*{complaint}") as caught:
        load_model_config(write_config(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "not a JSON"),
    ],
)
def test_a_missing_or_corrupt_config_names_its_path(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SpecError, match=rf"{tmp_path}/config\.json: .*{complaint}"):
        load_model_config(str(tmp_path))


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(SpecError, match=rf"{tmp_path}/nowhere: no such model directory"):
        load_model_config(f"{tmp_path}/nowhere")


@pytest.mark.parametrize(
    ("name", "parameters", "windows"),
    [
        ("tiny", None, None),
        ("llama-3.2-1b", 1_235_814_400, None),
        ("llama-3-8b", 8_030_261_248, None),
        ("llama-3-70b", 70_553_706_496, None),
        ("mistral-7b", 7_241_732_096, 4096),
        ("qwen2.5-0.5b", 494_032_768, None),
        ("qwen2.5-7b", 7_615_616_512, None),
        ("qwen3-0.6b", 596_049_920, None),
    ],
)
def test_dummy_shapes_have_as_many_parameters_as_the_published_models(name, parameters, windows):
    config = load_model_config(f"dummy:{name}")
    assert parameters is None or config.num_parameters == parameters
    assert (config.dtype, config.eos_token_ids) == ("bfloat16", ())
    assert config.windows == (windows,) * config.num_layers


def test_an_unknown_dummy_shape_lists_the_known_ones():
    assert all(load_model_config(f"dummy:{name}") for name in DUMMY_SHAPES)
    with pytest.raises(SpecError, match=r"dummy:huge: no such shape; known: dummy:tiny, .*dummy:qwen3-0\.6b"):
        load_model_config("dummy:huge")


def test_the_demo_model_is_supported():
    assert load_model_config(str(DEMO)).architecture == "LlamaForCausalLM"


def test_reading_a_config_imports_no_torch():
    code = "import sys, twinpool.model.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
