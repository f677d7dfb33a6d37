"""The inner step of attention over paged KV, as Triton functions that the decode and the prefill kernel share.

Knows one tile of keys and values and the running softmax over tiles (Milakov and Gimelshein 2018; FlashAttention-2,
Dao 2023, section 3.1); knows no grid and no work-list.

Logarithms are base 2: scores arrive multiplied by log2(e), and a log-sum-exp here is log2(sum(2 ** score)).

The pages of the next tile are a loop variable of the callers: an address that depends on a load of the same iteration
would leave Triton's pipeliner half as many buffers.
"""

try:
    import triton
    import triton.language as tl
except ImportError:  # triton is optional: CPUs never need it
    triton = None

MASKED_SCORE = -1e30  # where running maxima begin; finite, as -inf minus -inf is NaN

if triton is not None:
    FLOOR = tl.constexpr(MASKED_SCORE)

    @triton.jit
    def load_pages(  # type: ignore[no-untyped-def]
        table_ptr,  # int32: one sequence's block ids
        tile,  # which tile of BLOCK_N keys
        low,  # keys [low, end) are there to be read
        end,
        block_shift,  # log2 of a block's tokens
        BLOCK_N: tl.constexpr,
        GATHER: tl.constexpr,
    ):
        """The block ids of one tile: one for all of it, or with GATHER (blocks shorter than tiles) one for each key.

        They are int64, as a block's offset in the pool does not fit 32 bits.
        """
        if GATHER:
            key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            page = tl.load(table_ptr + (key >> block_shift), mask=(key >= low) & (key < end), other=0)
        else:
            page = tl.load(table_ptr + (tile * BLOCK_N >> block_shift), mask=tile * BLOCK_N < end, other=0)
        return page.to(tl.int64)

    @triton.jit
    def attend_tile(  # type: ignore[no-untyped-def]
        q,  # [BLOCK_M, BLOCK_D]
        acc,  # fp32 [BLOCK_M, BLOCK_D]
        peak,  # fp32 [BLOCK_M]: largest score so far
        total,  # fp32 [BLOCK_M]: sum of 2 ** (score - peak)
        page,  # of load_pages
        position,  # int32 [BLOCK_M]: of each query in its sequence
        kv_ptr,  # this KV head's keys in block 0
        value_offset,  # from a key to its value
        block_stride,
        tile,
        low,
        end,
        window,
        scale_log2,
        block_shift,
        HEAD_DIM: tl.constexpr,
        BLOCK_D: tl.constexpr,
        BLOCK_N: tl.constexpr,
        GATHER: tl.constexpr,
        MASKED: tl.constexpr,  # keys of the tile are hidden from rows; else each row sees all of them
        WINDOW: tl.constexpr,
        UPCAST: tl.constexpr,
        PRECISION: tl.constexpr,
    ):
        """Fold one tile of keys and values into the running softmax. Returns acc, peak and total.

        Slots outside [low, end) are not read where MASKED, so that whatever lies in them (NaN even) has no part in it.
        """
        key = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        dim = tl.arange(0, BLOCK_D)
        slot = key & ((1 << block_shift) - 1)
        if GATHER:
            at = kv_ptr + (page * block_stride + slot * HEAD_DIM)[:, None] + dim[None, :]
        else:
            first_slot = (tile * BLOCK_N) & ((1 << block_shift) - 1)
            start = kv_ptr + page * block_stride + first_slot * HEAD_DIM
            at = start + (tl.arange(0, BLOCK_N) * HEAD_DIM)[:, None] + dim[None, :]
        if MASKED:
            there = ((key >= low) & (key < end))[:, None]
            if HEAD_DIM != BLOCK_D:
                there = there & (dim < HEAD_DIM)[None, :]
            k = tl.load(at, mask=there, other=0.0)
            v = tl.load(at + value_offset, mask=there, other=0.0)
        elif HEAD_DIM != BLOCK_D:
            k = tl.load(at, mask=(dim < HEAD_DIM)[None, :], other=0.0)
            v = tl.load(at + value_offset, mask=(dim < HEAD_DIM)[None, :], other=0.0)
        else:
            k = tl.load(at)
            v = tl.load(at + value_offset)
        if UPCAST:
            k = k.to(tl.float32)
            v = v.to(tl.float32)
        score = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        if MASKED:
            seen = (key[None, :] <= position[:, None]) & (key < end)[None, :]
            if WINDOW:
                seen = seen & (key[None, :] > position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(score, 1))
        weight = tl.math.exp2(score - new_peak[:, None])
        shrink = tl.math.exp2(peak - new_peak)
        acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        return acc, new_peak, total * shrink + tl.sum(weight, 1)
