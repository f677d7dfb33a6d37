import pytest
import torch

from twinpool.kernels.merge_partials import merge_partials_reference


@pytest.mark.parametrize("head_dim", [64, 80, 256])
@pytest.mark.parametrize("empty_parts", [False, True])
def test_parts_are_merged_by_their_weight_and_a_single_one_is_left_to_its_writer(interpreter, head_dim, empty_parts):
    interpreter.run("merge_checks", "check_merge", head_dim, empty_parts)


def test_the_reference_gives_the_attention_over_all_parts():
    torch.manual_seed(0)
    scores, values = torch.randn(1, 1, 30).double(), torch.randn(30, 8).double()
    parts = [slice(0, 4), slice(4, 29), slice(29, 30)]
    partials = torch.stack([scores[..., part].softmax(-1) @ values[part] for part in parts])
    lses = torch.stack([scores[..., part].logsumexp(-1) for part in parts]) / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(merge_partials_reference(partials, lses), scores.softmax(-1) @ values)
