import json
import subprocess
import sys
from pathlib import Path

import pytest

from twinpool.core.errors import SpecError
from twinpool.model.config import DUMMY_SHAPES, load_model_config

DEMO = Path(__file__).resolve().parents[2] / "examples" / "models" / "tiny"


def test_new_and_old_spelling_mean_the_same(write_config):
    new = load_model_config(write_config(rope_parameters={"rope_theta": 5e5, "rope_type": "default"}))
    old = load_model_config(
        write_config(dtype=..., torch_dtype="float32", rope_parameters=..., rope_theta=5e5, rope_scaling=None)
    )
    assert new == old
    assert (new.rope_theta, new.dtype) == (5e5, "float32")


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
    assert (config.rope_theta, config.max_position_embeddings) == (10_000.0, 2048)
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
        ({"model_type": "gpt2"}, r"model_type 'gpt2' is not supported; supported: llama"),
        ({"model_type": ...}, r"model_type None is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, r"architectures \['LlamaForSeq"),
        ({"hidden_act": "gelu"}, r"hidden_act 'gelu' is not supported"),
        ({"attention_bias": True}, r"attention_bias True is not supported"),
        ({"mlp_bias": True}, r"mlp_bias True is not supported"),
        ({"sliding_window": 4096}, r"sliding_window 4096 is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantization_config .*awq.* is not supported"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, r"rope_parameters.rope_type 'llama3' is not"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2}}, r"rope_scaling.rope_type 'linear'"),
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


def test_every_dummy_shape_loads_and_an_unknown_one_lists_them():
    for name, shape in DUMMY_SHAPES.items():
        config = load_model_config(f"dummy:{name}")
        assert config == shape
        assert config.num_heads % config.num_kv_heads == 0
        assert config.dtype == "bfloat16"
    with pytest.raises(SpecError, match=r"dummy:huge: no such shape; known: dummy:tiny, .*dummy:llama-3-8b"):
        load_model_config("dummy:huge")


def test_the_demo_model_is_supported():
    assert load_model_config(str(DEMO)).architecture == "LlamaForCausalLM"


def test_reading_a_config_imports_no_torch():
    code = "import sys, twinpool.model.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
