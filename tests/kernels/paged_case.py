"""A packed batch over a paged pool that is NaN but for the sequences' own slots, and the true attention of it."""

import torch

from twinpool.kernels.paged_kv import paged_attention_reference

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TOLERANCES = {"fp16": 2e-3, "bf16": 1.6e-2, "fp32": 2e-5}
LAYERS, LAYER = 3, 1


class PagedCase:
    """Random q and KV; blocks scattered and poisoned with NaN, as are slots past a context and the other layers."""

    def __init__(self, heads, lengths, *, block_tokens=16, dtype="fp32", window=None, seed=0):
        self.num_heads, num_kv_heads, head_dim = heads
        self.lengths, self.window, self.dtype = lengths, window, dtype
        generator = torch.Generator().manual_seed(seed)
        contexts = [context for _, context in lengths]
        sizes = [-(-context // block_tokens) for context in contexts]
        num_blocks = sum(sizes) + 3
        order = torch.randperm(num_blocks, generator=generator)
        pool = torch.full((num_blocks, LAYERS, 2, num_kv_heads, block_tokens, head_dim), torch.nan)
        self.table = torch.full((len(lengths), max([*sizes, 0]) + 2), -7, dtype=torch.int32)
        at = 0
        for sequence, (size, (new, context)) in enumerate(zip(sizes, lengths, strict=True)):
            blocks = order[at : at + size]
            at += size
            self.table[sequence, :size] = blocks.int()
            low = 0 if window is None else max(context - new + 1 - window, 0)
            shape = (2, num_kv_heads, context - low, head_dim)
            kv = torch.full((2, num_kv_heads, size * block_tokens, head_dim), torch.nan)
            kv[:, :, low:context] = torch.randn(shape, generator=generator)
            pool[blocks, LAYER] = kv.view(2, num_kv_heads, size, block_tokens, head_dim).permute(2, 0, 1, 3, 4)
        self.kv = pool.to(DTYPES[dtype])[:, LAYER]
        bounds = torch.tensor([0, *(new for new, _ in lengths)]).cumsum(0)
        self.cu_seqlens, self.context = bounds.int(), torch.tensor(contexts, dtype=torch.int32)
        width = self.num_heads + 2 * num_kv_heads  # q is a slice of a fused projection
        fused = torch.randn(int(bounds[-1]), width, head_dim, generator=generator).to(DTYPES[dtype])
        self.q = fused[:, : self.num_heads]
        self.out = torch.full(self.q.shape, torch.nan, dtype=DTYPES[dtype])

    def expected(self):
        """By the reference in float64; keys that no query sees count as 0, as 0 * NaN is NaN."""
        kv = self.kv.double().nan_to_num(0.0)
        arguments = (self.table, self.cu_seqlens, self.context, self.window)
        return paged_attention_reference(self.q.double(), kv, *arguments)

    def spread(self):
        """Put the blocks so far apart that offsets do not fit 32 bits; memory between them is never touched."""
        stride = 2**31 // (len(self.kv) - 1)
        far = torch.empty(2**31 + self.kv[0].numel() + 2**16, dtype=self.kv.dtype)
        kept, stride = self.kv, -(-stride // 16) * 16
        self.kv = far.as_strided(kept.shape, (stride, *kept[0].contiguous().stride()))
        self.kv.copy_(kept)
        return self

    def rows(self, chosen):
        """Rows of the sequences whose number of new tokens is chosen."""
        return torch.cat(
            [torch.full((new,), bool(chosen(new))) for new, _ in self.lengths] or [torch.zeros(0, dtype=torch.bool)]
        )

    def check(self, chosen=lambda new: new > 0):
        """Chosen rows are the true attention; the others were not touched."""
        mine = self.rows(chosen)
        tolerance = TOLERANCES[self.dtype]
        torch.testing.assert_close(self.out[mine].double(), self.expected()[mine], atol=tolerance, rtol=tolerance)
        assert self.out[~mine].isnan().all()
