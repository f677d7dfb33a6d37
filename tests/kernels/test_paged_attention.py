import numpy as np
import pytest
import torch

from twinpool.kernels.paged_attention import QUERY_TILE, paged_attention, plan_attention

from .packed_batch import BLOCK_TOKENS, LAYER, Packed

HEADS = [  # query heads, KV heads, head_dim
    (1, 1, 16),
    (3, 3, 18),
    (4, 2, 64),
    (9, 3, 80),
    (5, 1, 128),
    (12, 2, 40),
    (7, 1, 32),
    (16, 2, 48),
]
LENGTHS = [  # (new tokens, context after them) of each sequence
    pytest.param([(1, 1)], id="first-token"),
    pytest.param([(1, 40), (1, 3), (1, 16), (1, 17), (1, 200)], id="ragged-decodes"),
    pytest.param([(30, 30)], id="whole-prompt"),
    pytest.param([(QUERY_TILE + 1, 200), (QUERY_TILE, QUERY_TILE), (2, 90)], id="chunks-over-prefixes"),
    pytest.param([(1, 64), (150, 150), (1, 9), (5, 21), (1, 65)], id="mixed"),
]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("heads", [(3, 3, 18), (9, 3, 80), (16, 2, 48)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_attention_is_its_definition_whatever_lies_in_other_slots(heads, lengths, dtype, tolerance):
    packed = Packed(heads, lengths, dtype)
    torch.testing.assert_close(packed.attend().double(), packed.expected(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("heads", HEADS)
def test_any_head_count_ratio_and_size_is_computed(heads):
    packed = Packed(heads, [(1, 20), (9, 25), (1, 100)])
    torch.testing.assert_close(packed.attend().double(), packed.expected(), atol=1e-5, rtol=1e-5)


def test_a_sequence_attends_the_same_alone_as_in_a_batch():
    lengths = [(1, 40), (70, 80), (1, 300)]
    together = Packed((4, 2, 32), lengths)
    rows = together.attend().split([new for new, _ in lengths])
    for sequence, length in enumerate(lengths):
        alone = Packed((4, 2, 32), [length])
        for name in ("keys", "values", "queries"):
            setattr(alone, name, [getattr(together, name)[sequence]])
        torch.testing.assert_close(alone.attend(), rows[sequence], atol=1e-6, rtol=1e-6)


def test_other_layers_and_other_blocks_are_left_alone():
    packed = Packed((4, 2, 16), [(1, 20), (9, 25)])
    packed.attend()
    used = torch.from_numpy(np.concatenate(packed.tables))
    packed.pool[used, LAYER] = torch.nan
    assert packed.pool.isnan().all()


def test_a_block_that_a_step_begins_holds_zeros_after_its_tokens():
    packed = Packed((2, 1, 16), [(11, 11)])
    packed.attend()
    last = packed.pool[packed.tables[0][1], LAYER]
    assert last[:, :, 3:].eq(0).all()
    assert last[:, :, :3].ne(0).all()


def test_a_table_may_name_more_blocks_than_the_context_needs():
    packed = Packed((2, 1, 16), [(1, 20), (9, 25)])
    spare = np.setdiff1d(np.arange(len(packed.pool)), np.concatenate(packed.tables))
    packed.tables = [np.concatenate((table, spare)) for table in packed.tables]
    torch.testing.assert_close(packed.attend().double(), packed.expected(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("bounds", "contexts", "tables", "heads", "complaint"),
    [
        ([0, 2], [2, 2], [[0]], 2, "do not fit"),
        ([0], [], [], 2, "do not fit"),
        ([1, 2], [1], [[0]], 2, "no new token"),
        ([0, 0], [1], [[0]], 2, "no new token"),
        ([0, 3], [2], [[0]], 2, "more new tokens than context"),
        ([0, 1], [9], [[0]], 2, "sequence 0: 1 blocks cannot hold 9 tokens"),
        ([0, 1], [9], [[0, 4]], 2, r"a block id is not in \[0, 4\)"),
        ([0, 1], [9], [[-1, 0]], 2, "a block id is not in"),
        ([0, 1], [1], [[0]], 3, "2 KV heads do not divide 3 heads"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused(bounds, contexts, tables, heads, complaint):
    pool = torch.zeros(4, 1, 2, 2, BLOCK_TOKENS, 4)
    with pytest.raises(ValueError, match=complaint):
        plan_attention(
            np.array(bounds, np.int32), np.array(contexts, np.int32), [np.array(table) for table in tables], pool, heads
        )


WINDOWS = [1, 3, BLOCK_TOKENS, 2 * BLOCK_TOKENS + 1, QUERY_TILE - 1, QUERY_TILE, QUERY_TILE + 9, 199, 10_000]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("window", WINDOWS)
def test_a_window_hides_the_keys_before_it(window, lengths):
    packed = Packed((4, 2, 16), lengths, window=window)
    torch.testing.assert_close(packed.attend().double(), packed.expected(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 7, 20, 70])
def test_blocks_that_no_window_touches_are_not_read(window):
    lengths = [(1, 200), (30, 190), (1, 70)]
    packed = Packed((4, 2, 16), lengths, window=window)
    plan = packed.plan(*zip(*lengths, strict=True), packed.tables)
    num_blocks = [
        -(-context // BLOCK_TOKENS) - max(context - new - window + 1, 0) // BLOCK_TOKENS for new, context in lengths
    ]
    tiles_per_block = 2 * 2
    view = plan.views[LAYER]
    assert len(view.prefills[0].tiles) == num_blocks[1] * tiles_per_block
    assert sum(len(group.tiles) for group in view.decodes) <= 2 * (num_blocks[0] + num_blocks[2]) * tiles_per_block
    if window + QUERY_TILE < 150:
        first = (200 - window) // BLOCK_TOKENS
        packed.attend()
        packed.pool[packed.tables[0][:first]] = torch.nan
        again = packed.plan([1], [200], [packed.tables[0]])
        assert paged_attention(packed.queries[0], packed.pool, LAYER, again).isfinite().all()


def test_layers_of_one_window_share_their_plan_and_a_window_over_the_context_is_none():
    packed = Packed((2, 1, 16), [(1, 40)])
    pool = packed.pool
    plan = plan_attention(np.array([0, 1], np.int32), np.array([40], np.int32), packed.tables, pool, 2, [64, None, 7])
    assert plan.views[0] is plan.views[1]
    assert plan.views[0].window is None
    assert plan.views[2].window == 7


@pytest.mark.parametrize("windows", [[None], [1, 2, 3, 4], [None, 0, None], [-3, None, None]])
def test_windows_that_fit_no_model_are_refused(windows):
    packed = Packed((2, 1, 16), [(1, 40)])
    with pytest.raises(ValueError, match="3 layers need as many windows of at least one key"):
        plan_attention(np.array([0, 1], np.int32), np.array([40], np.int32), packed.tables, packed.pool, 2, windows)
