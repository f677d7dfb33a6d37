import json

import numpy as np
import pytest
import torch

from tests.model.family_builders import compute_logits, generate_with_peer, load_peer, save_family

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 300.0},
    "linear": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 300.0, "factor": 2.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 300.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 300.0,
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
# A family's own features, each time with another grouping, head size and head.
SHAPES = {
    "llama": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1, "head_dim": 24},
    "mistral": {"sliding_window": 16, "num_key_value_heads": 2},
    "qwen2": {"tie_word_embeddings": True, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8},
    "qwen3": {"num_key_value_heads": 4, "head_dim": 32, "tie_word_embeddings": True},
}
WINDOWED = [
    pytest.param("mistral", {"sliding_window": 16}, marks=pytest.mark.slow),
    ("mistral", {"sliding_window": 13}),
    pytest.param("mistral", {"sliding_window": 2}, marks=pytest.mark.slow),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    pytest.param(
        "qwen3",
        {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 0},
        marks=pytest.mark.slow,
    ),
    (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
]
PLAIN = [
    ("mistral", {"sliding_window": None, "num_key_value_heads": 4}),
    ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    ("qwen3", {"tie_word_embeddings": False, "attention_bias": True, "head_dim": 20}),
    ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    ("llama", {"mlp_bias": True, "num_key_value_heads": 4}),
]
ROPE_PAIRS = [  # each family and each rope once; the other pairs are slow
    pytest.param(model_type, rope, marks=() if number % len(SHAPES) == family else pytest.mark.slow)
    for family, model_type in enumerate(SHAPES)
    for number, rope in enumerate(ROPES)
]


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 131, length).tolist()


def assert_greedy_equal(folder, load_driver, ids: list[int], count: int) -> None:
    """Equal to transformers, with the prompt in chunks of 7, in blocks out of order; and the answer goes somewhere."""
    wanted = generate_with_peer(folder, ids, count)
    assert len(set(wanted)) > 10
    driver = load_driver(folder)
    driver.runner.cache.tensor.fill_(torch.nan)
    assert driver.answer(driver.sequence(ids, range(25, 0, -1)), count, 7) == wanted


def assert_logits_close(folder, ids: list[int], chunk: int = 7) -> None:
    with torch.inference_mode():
        wanted = load_peer(folder)(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(compute_logits(folder, ids, chunk), wanted, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize(("model_type", "rope"), ROPE_PAIRS)
def test_every_rope_type_of_every_family_continues_past_the_original_length(tmp_path, load_driver, model_type, rope):
    folder = save_family(tmp_path, model_type, rope_parameters=dict(ROPES[rope]), **SHAPES[model_type])
    assert_greedy_equal(folder, load_driver, prompt(50), 48)
    assert_logits_close(folder, prompt(64 if rope == "dynamic" else 110, seed=1))


@pytest.mark.parametrize(("model_type", "changes"), PLAIN)
def test_biases_heads_and_ties_of_every_family_are_those_of_transformers(tmp_path, load_driver, model_type, changes):
    folder = save_family(tmp_path, model_type, **changes)
    assert_greedy_equal(folder, load_driver, prompt(20), 44)
    assert_logits_close(folder, prompt(60, seed=1))


@pytest.mark.parametrize(("model_type", "changes"), WINDOWED)
def test_a_windowed_model_runs_far_past_its_window(tmp_path, load_driver, model_type, changes):
    folder = save_family(tmp_path, model_type, max_position_embeddings=512, **changes)
    assert_greedy_equal(folder, load_driver, prompt(60), 60)
    assert_logits_close(folder, prompt(150, seed=1), chunk=23)


def test_a_window_hides_what_lies_before_it(tmp_path):
    """One layer, so that nothing older can reach the last token by way of a token in between."""
    folder = save_family(tmp_path, "mistral", sliding_window=16, num_hidden_layers=1)
    ids = prompt(60)
    far, near = ids.copy(), ids.copy()
    far[60 - 17], near[60 - 16] = (ids[60 - 17] + 1) % 131, (ids[60 - 16] + 1) % 131
    last = [compute_logits(folder, tokens, 60)[-1] for tokens in (ids, far, near)]
    assert torch.equal(last[0], last[1])
    assert not torch.allclose(last[0], last[2], atol=1e-3)


@pytest.mark.parametrize("more", [{}, {"attention_factor": 1.7}, {"mscale": 0.7, "mscale_all_dim": 1.3}])
def test_yarn_scales_attention_as_transformers_does(tmp_path, more):
    rope = ROPES["yarn"] | more | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": not more}
    assert_logits_close(save_family(tmp_path, "qwen3", rope_parameters=rope), prompt(110))


def test_dynamic_scaling_past_the_original_length_is_what_transformers_computes_token_by_token(tmp_path):
    folder = save_family(tmp_path, "llama", rope_parameters=dict(ROPES["dynamic"]))
    ids, peer = prompt(110), load_peer(folder)
    with torch.inference_mode():
        cache, rows = None, []
        for token in ids:
            out = peer(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, -1])
    for chunk in (1, 7, 110):
        torch.testing.assert_close(compute_logits(folder, ids, chunk), torch.stack(rows), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_the_old_spelling_of_rope_computes_the_same(tmp_path, rope):
    folder = save_family(tmp_path, "qwen2", rope_parameters=dict(ROPES[rope]))
    ids = prompt(90)
    wanted = compute_logits(folder, ids, 90)
    config = json.loads((folder / "config.json").read_text())
    new = config.pop("rope_parameters")
    scaling = {name: value for name, value in new.items() if name not in ("rope_type", "rope_theta")}
    config |= {"rope_theta": new["rope_theta"], "rope_scaling": scaling | {"type": rope}}
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(compute_logits(folder, ids, 90), wanted)
    assert_logits_close(folder, ids)


@pytest.mark.parametrize("model_type", SHAPES)
def test_bfloat16_stays_near_transformers_in_bfloat16(tmp_path, model_type):
    folder, ids = save_family(tmp_path, model_type, **SHAPES[model_type]), prompt(60)
    with torch.inference_mode():
        wanted = load_peer(folder, "bfloat16")(torch.tensor([ids])).logits[0].float()
    made = compute_logits(folder, ids, 7, "bfloat16")
    assert (made - wanted).abs().mean() < 0.05 * wanted.std()
