import pytest

from twinpool.core.errors import SpecError
from twinpool.model.config import load_model_config
from twinpool.model.rope_config import RopeType

LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}
YARN = {"rope_type": "yarn", "factor": 4.0}


def rope_of(write_config, rope, **changes):
    return load_model_config(write_config(rope_parameters=rope, **changes)).rope


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 2},
        {"rope_type": "dynamic", "factor": 2.5},
        LLAMA3 | {"original_max_position_embeddings": 128},
        YARN | {"original_max_position_embeddings": 128, "attention_factor": 1.2},
    ],
)
def test_old_and_new_spelling_of_every_type_mean_the_same(write_config, rope):
    new = rope_of(write_config, rope | {"rope_theta": 5e5})
    assert new.theta == 5e5
    assert new == rope_of(write_config, ..., rope_scaling=rope, rope_theta=5e5)
    oldest = {"type" if name == "rope_type" else name: value for name, value in rope.items()}
    assert new == rope_of(write_config, ..., rope_scaling=oldest, rope_theta=5e5)


def test_rope_scaling_goes_before_rope_parameters_and_a_sections_theta_before_the_files(write_config):
    default = {"rope_type": "default", "rope_theta": 7.0}
    rope = rope_of(write_config, default, rope_scaling={"rope_type": "linear", "factor": 2}, rope_theta=9.0)
    assert (rope.rope_type, rope.theta) == (RopeType.LINEAR, 9.0)
    assert rope_of(write_config, default, rope_theta=9.0, rope_scaling={}).theta == 7.0


def test_the_original_length_is_the_files_then_the_sections_then_the_whole(write_config):
    own = {"original_max_position_embeddings": 100}
    assert rope_of(write_config, YARN | own, original_max_position_embeddings=50).original_length == 50
    assert rope_of(write_config, YARN | own).original_length == 100
    assert rope_of(write_config, YARN).original_length == 512


def test_yarn_without_a_factor_takes_the_ratio_of_the_lengths(write_config):
    rope = {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 128}
    assert rope_of(write_config, rope).factor == 4.0


@pytest.mark.parametrize(
    ("rope", "context"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 2.5}, 1280),
        ({"rope_type": "dynamic", "factor": 2}, 1024),
        (LLAMA3 | {"original_max_position_embeddings": 128}, 512),
        (YARN | {"original_max_position_embeddings": 128}, 512),
        (YARN | {"original_max_position_embeddings": 400}, 1600),
        (YARN | {"original_max_position_embeddings": 100}, 512),
        (YARN, 2048),
        ({"rope_type": "linear", "factor": 1e20}, 2**31 - 1),
    ],
)
def test_the_longest_context_is_the_original_times_the_factor(write_config, rope, context):
    assert load_model_config(write_config(rope_parameters=rope)).max_context == context


@pytest.mark.parametrize(
    ("rope", "complaint"),
    [
        ({"rope_type": "longrope", "factor": 2}, r"rope_type 'longrope' is not supported; supported: default, linear"),
        ({"rope_type": ["yarn"]}, r"rope_type \['yarn'\] is not supported"),
        ({"type": "mrope", "mrope_section": [1, 2]}, r"rope_type 'mrope' is not supported"),
        ({"rope_type": "default", "mrope_section": [1]}, r"mrope_section \[1\] is not a known field"),
        ({"full_attention": {"rope_type": "default"}}, r"full_attention .* is not a known field"),
        ({"rope_type": "linear"}, r"factor None must be a number of at least 1"),
        ({"rope_type": "linear", "factor": 0.5}, r"factor 0\.5 must be a number of at least 1"),
        ({"rope_type": "dynamic", "factor": "2"}, r"factor '2' must be a number of at least 1"),
        ({"rope_type": "dynamic", "factor": float("nan")}, r"factor nan must be"),
        ({"rope_type": "llama3", "factor": 8}, r"low_freq_factor None must be a positive number"),
        (LLAMA3 | {"high_freq_factor": 1}, r"high_freq_factor 1\.0 must be above low_freq_factor 1\.0"),
        (LLAMA3 | {"original_max_position_embeddings": 0}, r"original_max_position_embeddings 0 must be"),
        (YARN | {"factor": float("inf")}, r"factor inf must be"),
        (YARN | {"beta_fast": 0.5}, r"beta_fast 0\.5 must not be below beta_slow 1\.0"),
        (YARN | {"beta_slow": -1}, r"beta_slow -1 must be a positive number"),
        (YARN | {"attention_factor": True}, r"attention_factor True must be a positive number"),
        (YARN | {"rope_theta": 1}, r"rope_theta 1\.0 must be above 1"),
        (YARN | {"truncate": "no"}, r"truncate 'no' must be true or false"),
        ({"rope_theta": 0}, r"rope_theta 0 must be a positive number"),
    ],
)
def test_a_rope_that_cannot_be_computed_is_refused_by_field(write_config, rope, complaint):
    for spelling in ({"rope_parameters": rope}, {"rope_parameters": ..., "rope_scaling": rope}):
        with pytest.raises(SpecError, match=rf"config\.json: rope_(parameters|scaling)\.{complaint}"):
            load_model_config(write_config(**spelling))


def test_dynamic_scaling_needs_more_than_one_pair(write_config):
    with pytest.raises(SpecError, match=r"head_dim 2 is too small for rope_type 'dynamic'"):
        rope_of(write_config, {"rope_type": "dynamic", "factor": 2}, head_dim=2)
