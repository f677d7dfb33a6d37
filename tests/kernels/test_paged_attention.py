import numpy as np
import pytest
import torch

from twinpool.kernels.paged_attention import QUERY_TILE, paged_attention, plan_attention, write_kv

BLOCK_TOKENS, NUM_LAYERS, LAYER = 8, 3, 1

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


class Packed:
    """A packed batch with random contents, its tables scattered over a pool that is otherwise NaN."""

    def __init__(self, heads, lengths, dtype=torch.float32, seed=0):
        self.num_heads, self.num_kv_heads, self.head_dim = heads
        self.lengths = lengths
        generator = torch.Generator().manual_seed(seed)
        self.keys, self.values, self.queries = [], [], []
        for new, context in lengths:
            for kept, count, width in (
                (self.keys, context, self.num_kv_heads),
                (self.values, context, self.num_kv_heads),
                (self.queries, new, self.num_heads),
            ):
                kept.append(torch.randn(count, width, self.head_dim, generator=generator).to(dtype))
        sizes = [-(-context // BLOCK_TOKENS) for _, context in lengths]
        num_blocks = sum(sizes) + 5
        order = np.random.default_rng(seed).permutation(num_blocks)
        self.tables = np.split(order[: sum(sizes)], np.cumsum(sizes)[:-1])
        shape = (num_blocks, NUM_LAYERS, 2, self.num_kv_heads, BLOCK_TOKENS, self.head_dim)
        self.pool = torch.full(shape, torch.nan, dtype=dtype)

    def plan(self, news, contexts, tables):
        bounds = np.cumsum([0, *news]).astype(np.int32)
        return plan_attention(bounds, np.array(contexts, np.int32), tables, self.pool, self.num_heads)

    def write_contexts(self):
        """Write what earlier steps would have: each sequence's context before its new tokens."""
        for sequence, (new, context) in enumerate(self.lengths):
            if context > new:
                plan = self.plan([context - new], [context - new], [self.tables[sequence]])
                self.write(plan, [sequence], [slice(0, context - new)])

    def write(self, plan, sequences, parts):
        kv = [
            torch.cat((self.keys[s][part], self.values[s][part]), 1) for s, part in zip(sequences, parts, strict=True)
        ]
        write_kv(torch.cat(kv), self.pool, LAYER, plan)

    def attend(self):
        self.write_contexts()
        plan = self.plan(*zip(*self.lengths, strict=True), self.tables)
        self.write(plan, range(len(self.lengths)), [slice(context - new, context) for new, context in self.lengths])
        return paged_attention(torch.cat(self.queries), self.pool, LAYER, plan)

    def expected(self):
        """The definition, in float64, one query at a time."""
        group, rows = self.num_heads // self.num_kv_heads, []
        for (new, context), queries, keys, values in zip(
            self.lengths, self.queries, self.keys, self.values, strict=True
        ):
            for i in range(new):
                visible = context - new + i + 1
                row = []
                for head in range(self.num_heads):
                    k, v = (x[:visible, head // group].double() for x in (keys, values))
                    weights = (k @ queries[i, head].double() * self.head_dim**-0.5).softmax(0)
                    row.append(weights @ v)
                rows.append(torch.cat(row))
        return torch.stack(rows)


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
