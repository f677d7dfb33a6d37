import math

import pytest
import torch

from twinpool.model.config import load_model_config
from twinpool.model.rope import compute_frequencies, make_rotary, rotate
from twinpool.model.rope_config import RopeConfig, RopeType

CASES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768},
    "yarn, whole": {"rope_type": "yarn", "factor": 1.0, "original_max_position_embeddings": 32_768},
    "yarn, small": {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 16, "truncate": False},
    "yarn, mscale": {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "mscale": 0.8,
        "mscale_all_dim": 1.1,
        "beta_fast": 16,
        "beta_slow": 2,
    },
    "yarn, given": {
        "rope_type": "yarn",
        "factor": 2.0,
        "original_max_position_embeddings": 4096,
        "attention_factor": 0.9,
    },
}


@pytest.mark.parametrize("theta", [10_000.0, 1_000_000.0])
@pytest.mark.parametrize("case", CASES)
def test_tables_are_those_of_transformers(write_config, case, theta):
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    folder = write_config(
        head_dim=128, max_position_embeddings=131_072, rope_parameters=CASES[case] | {"rope_theta": theta}
    )
    positions = torch.arange(600)
    cos, sin = LlamaRotaryEmbedding(AutoConfig.from_pretrained(folder))(torch.empty(0), positions[None])
    ours = make_rotary(load_model_config(folder), 600, torch.float32)
    torch.testing.assert_close(ours.cos[:, 0], cos[0], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.signed_sin[:, 0, 64:], sin[0, :, 64:], atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.signed_sin[:, 0, :64], -sin[0, :, :64], atol=1e-4, rtol=0)


def test_dynamic_frequencies_are_plain_up_to_the_original_length_and_then_shrink():
    rope = RopeConfig(10_000.0, RopeType.DYNAMIC, factor=2.0, original_length=32)
    made = compute_frequencies(rope, 16, 64)
    plain = compute_frequencies(RopeConfig(10_000.0), 16, 64)
    assert torch.equal(made[:32], plain.expand(32, -1))
    assert (made[32:, 1:] < plain[:, 1:]).all()
    # At twice the length the longest wave is 2 * 2 - 1 times as long (the exponent D / (D - 2) is made for this).
    torch.testing.assert_close(made[63, -1], plain[0, -1] / 3)


def test_a_table_does_not_depend_on_how_many_positions_are_made(write_config):
    for rope in ({"rope_type": "dynamic", "factor": 2.0}, CASES["yarn"], CASES["linear"]):
        config = load_model_config(write_config(rope_parameters=rope, max_position_embeddings=32))
        short, long = (make_rotary(config, count, torch.float32) for count in (40, 100))
        assert torch.equal(short.cos, long.cos[:40])


def test_the_rotary_embedding_keeps_lengths_and_depends_on_distance_only(write_config):
    config = load_model_config(write_config())
    rotary = make_rotary(config, 64, torch.float32)
    query, key = torch.randn(2, 1, 1, config.head_dim, generator=torch.Generator().manual_seed(0))

    def score(at_query, at_key):
        turned = [
            rotate(x, rotary.cos[p : p + 1], rotary.signed_sin[p : p + 1])
            for x, p in ((query, at_query), (key, at_key))
        ]
        torch.testing.assert_close(turned[0].norm(), query.norm())
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(10, 3), score(57, 50), atol=1e-4, rtol=1e-4)
    assert abs(score(10, 3) - score(10, 9)) > 1e-2


def test_yarn_makes_scores_larger_by_its_temperature(write_config):
    rotary = make_rotary(load_model_config(write_config(rope_parameters=CASES["yarn"])), 4, torch.float32)
    length = (rotary.cos.square() + rotary.signed_sin.square()).sqrt()
    torch.testing.assert_close(length, torch.full_like(length, 0.1 * math.log(4) + 1))
