"""What the Triton attention kernels ask of their arguments, and what they compute, in plain torch.

Knows one layer of the pool and a packed batch; launches nothing. Shape letters are those of decode_attention.py.
"""

import torch

HEAD_DIMS = (64, 80, 96, 128, 256)
BLOCK_TOKENS = (16, 32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
NO_WINDOW = 2**30  # over every context, and a position minus it is still an int32
ALIGNMENT = 16  # bytes of one load, and elements that strides are multiples of


def check_layer(q_THD: torch.Tensor, kv_N2KBD: torch.Tensor, out_THD: torch.Tensor) -> None:
    """Refuse queries, a layer of the pool, or an output that no variant can take.

    Raises:
        ValueError: says which of them, and what it should be.
    """
    if q_THD.dim() != 3 or out_THD.shape != q_THD.shape:
        raise ValueError(f"q {tuple(q_THD.shape)} and out {tuple(out_THD.shape)} must both be [T, H, D]")
    if kv_N2KBD.dim() != 5 or kv_N2KBD.shape[1] != 2:
        raise ValueError(f"kv {tuple(kv_N2KBD.shape)} must be [N, 2, K, B, D]")
    _, num_heads, head_dim = q_THD.shape
    _, _, num_kv_heads, block_tokens, kv_dim = kv_N2KBD.shape
    if head_dim not in HEAD_DIMS or kv_dim != head_dim:
        raise ValueError(f"head size {head_dim} of q and {kv_dim} of kv: must be one of {HEAD_DIMS}, and equal")
    if block_tokens not in BLOCK_TOKENS:
        raise ValueError(f"blocks of {block_tokens} tokens: must be one of {BLOCK_TOKENS}")
    if not num_kv_heads or num_heads % num_kv_heads or not 1 <= num_heads // num_kv_heads <= 16:
        raise ValueError(f"{num_heads} heads over {num_kv_heads} KV heads: a whole ratio from 1 to 16 is wanted")
    if q_THD.dtype not in DTYPES or not q_THD.dtype == kv_N2KBD.dtype == out_THD.dtype:
        raise ValueError(f"q {q_THD.dtype}, kv {kv_N2KBD.dtype} and out {out_THD.dtype} must be one of {DTYPES}")
    if not q_THD.device == kv_N2KBD.device == out_THD.device:
        raise ValueError(f"q on {q_THD.device}, kv on {kv_N2KBD.device} and out on {out_THD.device} must be on one")
    _check_rows("q", q_THD)
    _check_rows("out", out_THD)
    inner = (num_kv_heads * block_tokens * head_dim, block_tokens * head_dim, head_dim, 1)
    if kv_N2KBD[:1].numel() and kv_N2KBD.stride()[1:] != inner:
        raise ValueError(f"kv has strides {kv_N2KBD.stride()}: a block's layer must be contiguous")
    if kv_N2KBD.stride(0) % ALIGNMENT or kv_N2KBD.stride(0) >= 2**31 or kv_N2KBD.data_ptr() % ALIGNMENT:
        raise ValueError(f"kv: stride {kv_N2KBD.stride(0)} of blocks, or its address, is no multiple of {ALIGNMENT}")


def check_batch(q_THD: torch.Tensor, table_SM: torch.Tensor, cu_seqlens: torch.Tensor, context_S: torch.Tensor) -> None:
    """Refuse tables and lengths that do not describe a packed batch; what they hold is not looked at.

    Raises:
        ValueError: says which of them, and what it should be.
    """
    if cu_seqlens.shape != (len(context_S) + 1,) or context_S.dim() != 1:
        raise ValueError(f"cu_seqlens {tuple(cu_seqlens.shape)} and context {tuple(context_S.shape)} must be S+1 and S")
    if table_SM.dim() != 2 or len(table_SM) != len(context_S) or table_SM.stride(1) != 1:
        raise ValueError(f"table {tuple(table_SM.shape)} must be [S, M], its rows contiguous")
    if not table_SM.dtype == cu_seqlens.dtype == context_S.dtype == torch.int32:
        raise ValueError(f"{table_SM.dtype} table, {cu_seqlens.dtype} and {context_S.dtype} lengths must be int32")
    if not (cu_seqlens.is_contiguous() and context_S.is_contiguous()):
        raise ValueError("cu_seqlens and context must be contiguous")
    for name, tensor in (("table", table_SM), ("cu_seqlens", cu_seqlens), ("context", context_S)):
        if tensor.device != q_THD.device:
            raise ValueError(f"{name} on {tensor.device}, but q on {q_THD.device}")
        if tensor.data_ptr() % ALIGNMENT:
            raise ValueError(f"the address of {name} is no multiple of {ALIGNMENT}")


def row_stride(x_THD: torch.Tensor) -> int:
    """Elements from one token to the next; what torch says of the stride of a single token means nothing."""
    return x_THD.stride(0) if len(x_THD) > 1 else x_THD.shape[1] * x_THD.shape[2]


def power_of_two(number: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()


def _check_rows(name: str, x_THD: torch.Tensor) -> None:
    if x_THD.numel() and (x_THD.stride(2) != 1 or (x_THD.shape[1] > 1 and x_THD.stride(1) != x_THD.shape[2])):
        raise ValueError(f"{name} has strides {x_THD.stride()}: a token's heads must be contiguous")
    if row_stride(x_THD) % ALIGNMENT or x_THD.data_ptr() % ALIGNMENT:
        raise ValueError(f"{name}: stride {row_stride(x_THD)} of tokens, or its address, is no multiple of {ALIGNMENT}")


def paged_attention_reference(
    q_THD: torch.Tensor,
    kv_N2KBD: torch.Tensor,
    table_SM: torch.Tensor,
    cu_seqlens: torch.Tensor,
    context_S: torch.Tensor,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention by its definition, for every row of the batch, in the dtype of q: what both kernels mean.

    The query at position p sees the keys in (p - window, p].
    """
    _, num_heads, head_dim = q_THD.shape
    _, _, num_kv_heads, block_tokens, _ = kv_N2KBD.shape
    out_THD = torch.zeros_like(q_THD)
    for sequence, (row, end, context) in enumerate(
        zip(cu_seqlens.tolist()[:-1], cu_seqlens.tolist()[1:], context_S.tolist(), strict=True)
    ):
        blocks = kv_N2KBD[table_SM[sequence, : -(-context // block_tokens)].long()]
        keys, values = (
            blocks.permute(1, 0, 3, 2, 4)
            .reshape(2, -1, num_kv_heads, head_dim)[:, :context]
            .repeat_interleave(num_heads // num_kv_heads, 2)
            .unbind()
        )
        distance = torch.arange(context - (end - row), context)[:, None] - torch.arange(context)
        hidden = (distance < 0) | (distance >= (NO_WINDOW if window is None else window))
        scores = torch.einsum("qhd,khd->hqk", q_THD[row:end], keys) * head_dim**-0.5
        weights = scores.masked_fill(hidden.to(scores.device), -torch.inf).softmax(-1)
        out_THD[row:end] = torch.einsum("hqk,khd->qhd", weights, values)
    return out_THD
