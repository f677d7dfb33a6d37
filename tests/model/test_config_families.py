"""What each family's fields mean, and their defaults, held to transformers' own configuration classes."""

import json

import pytest

from twinpool.core.errors import SpecError
from twinpool.model.config import FAMILIES, load_model_config

SIX = {"num_hidden_layers": 6, "num_attention_heads": 32, "num_key_value_heads": ...}


@pytest.fixture
def write_family(write_config):
    """``write_family(model_type, **config) -> folder`` with a config.json of that family."""

    def write(model_type, **changes):
        return write_config(model_type=model_type, architectures=[FAMILIES[model_type].architecture], **changes)

    return write


@pytest.mark.parametrize("model_type", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_fills_in(write_family, model_type):
    from transformers import AutoConfig

    folder = write_family(
        model_type,
        **SIX,
        hidden_size=64,
        head_dim=...,
        rms_norm_eps=...,
        rope_parameters=...,
        max_position_embeddings=...,
        tie_word_embeddings=...,
    )
    ours, theirs = load_model_config(folder), AutoConfig.from_pretrained(folder)
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 64 // 32)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.max_position_embeddings == ours.max_context == theirs.max_position_embeddings
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.windows == (getattr(theirs, "sliding_window", None),) * 6


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_sliding_window": True},
        {"use_sliding_window": True, "max_window_layers": 4, "sliding_window": 32},
        {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 32},
        {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": None},
        {"use_sliding_window": False, "max_window_layers": 2, "sliding_window": 32},
        {"layer_types": ["full_attention"] * 6},
        {"layer_types": ["full_attention", "sliding_attention"] * 3, "use_sliding_window": True, "sliding_window": 8},
    ],
)
def test_windows_of_qwen_are_those_of_transformers(write_family, model_type, changes):
    from transformers import AutoConfig

    folder = write_family(model_type, **SIX, **changes)
    theirs = AutoConfig.from_pretrained(folder)
    wanted = [theirs.sliding_window if name == "sliding_attention" else None for name in theirs.layer_types]
    assert load_model_config(folder).windows == tuple(wanted)


@pytest.mark.parametrize(("given", "window"), [(..., 4096), (None, None), (77, 77)])
def test_mistrals_window_holds_for_all_layers_and_null_is_not_the_default(write_family, given, window):
    assert load_model_config(write_family("mistral", **SIX, sliding_window=given)).windows == (window,) * 6


@pytest.mark.parametrize(
    ("model_type", "changes", "biases"),
    [
        ("llama", {}, (False, False, False)),
        ("llama", {"attention_bias": True}, (True, True, False)),
        ("llama", {"mlp_bias": True}, (False, False, True)),
        ("mistral", {"attention_bias": False}, (False, False, False)),
        ("qwen2", {}, (True, False, False)),
        ("qwen3", {"attention_bias": True}, (True, True, False)),
        ("qwen3", {}, (False, False, False)),
    ],
)
def test_biases_follow_from_the_family_and_its_flags(write_family, model_type, changes, biases):
    config = load_model_config(write_family(model_type, **changes))
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == biases
    assert config.qk_norm == (model_type == "qwen3")


@pytest.mark.parametrize(
    ("model_type", "changes", "complaint"),
    [
        ("mistral", {"attention_bias": True}, r"attention_bias True is not supported for model_type 'mistral'"),
        ("mistral", {"mlp_bias": True}, r"mlp_bias True is not supported for model_type 'mistral'"),
        (
            "mistral",
            {"layer_types": ["full_attention"] * 3},
            r"layer_types .* is not supported for model_type 'mistral'",
        ),
        ("mistral", {"sliding_window": 0}, r"sliding_window 0 must be a positive whole number"),
        ("mistral", {"sliding_window": 16.0}, r"sliding_window 16.0 must be a positive whole number"),
        ("mistral", {"sliding_window": True}, r"sliding_window True must be a positive whole number"),
        ("qwen2", {"attention_bias": True}, r"attention_bias True is not supported for model_type 'qwen2'"),
        ("qwen2", {"use_sliding_window": "yes"}, r"use_sliding_window 'yes' must be true or false"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": -4}, r"sliding_window -4 must be"),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": -1},
            r"max_window_layers -1 must be a whole number",
        ),
        ("qwen3", {"layer_types": ["full_attention"]}, r"layer_types \['full_attention'\] must be a list of 3"),
        ("qwen3", {"layer_types": "full_attention"}, r"layer_types 'full_attention' must be a list of 3"),
        (
            "qwen3",
            {"layer_types": ["chunked_attention"] * 3},
            r"layer_types .* has 'chunked_attention'; supported: full",
        ),
        ("qwen3", {"layer_types": [["full_attention"]] * 3}, r"layer_types .* supported: full_attention"),
        (
            "qwen3",
            {"layer_types": ["sliding_attention"] * 3},
            r"layer_types .* has sliding_attention without use_sliding_window",
        ),
        ("qwen3", {"quantization_config": {"quant_method": "fp8"}}, r"quantization_config .*fp8.* is not supported"),
        ("qwen3", {"mlp_bias": True}, r"mlp_bias True is not supported for model_type 'qwen3'"),
        ("qwen3", {"hidden_act": "relu"}, r"hidden_act 'relu' is not supported"),
    ],
)
def test_what_a_family_does_not_have_is_refused_by_field(write_family, model_type, changes, complaint):
    with pytest.raises(SpecError, match=rf"config\.json: {complaint}"):
        load_model_config(write_family(model_type, **({"num_key_value_heads": 1} | changes)))


def test_infinity_in_a_config_is_refused(write_family, tmp_path):
    folder = write_family("qwen3", num_key_value_heads=1)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": float("inf")}}))
    with pytest.raises(SpecError, match=r"rope_parameters\.rope_theta inf must be a positive number"):
        load_model_config(folder)
