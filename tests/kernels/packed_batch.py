"""A packed batch with random contents, and attention by its definition."""

import numpy as np
import torch

from twinpool.kernels.paged_attention import paged_attention, plan_attention, write_kv

BLOCK_TOKENS, NUM_LAYERS, LAYER = 8, 3, 1
OTHER_WINDOW = 5  # of the layers that are not tested: what they do must not show


class Packed:
    """A packed batch with random contents, its tables scattered over a pool that is otherwise NaN."""

    def __init__(self, heads, lengths, dtype=torch.float32, seed=0, *, window=None, deterministic=False):
        self.num_heads, self.num_kv_heads, self.head_dim = heads
        self.lengths = lengths
        self.window, self.deterministic = window, deterministic
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
        windows = [OTHER_WINDOW] * NUM_LAYERS
        windows[LAYER] = self.window
        contexts = np.array(contexts, np.int32)
        return plan_attention(bounds, contexts, tables, self.pool, self.num_heads, windows, self.deterministic)

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
        """The definition, in float64: each query against every key, those hidden from it included."""
        group, rows = self.num_heads // self.num_kv_heads, []
        for (new, context), queries, keys, values in zip(
            self.lengths, self.queries, self.keys, self.values, strict=True
        ):
            k, v = (x.double().repeat_interleave(group, 1) for x in (keys, values))
            distances = torch.arange(context - new, context)[:, None] - torch.arange(context)
            hidden = (distances < 0) | (distances >= (self.window or context))
            scores = torch.einsum("qhd,khd->hqk", queries.double(), k) * self.head_dim**-0.5
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            rows.append(torch.einsum("hqk,khd->qhd", weights, v).flatten(1))
        return torch.cat(rows)
