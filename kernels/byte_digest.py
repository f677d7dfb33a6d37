"""Takes a 64-bit digest of bytes where they lie: on a GPU by a kernel, elsewhere by torch; equal bits either way.

Finds damage, not malice: a flipped bit, words that changed places, bytes that moved, a tail that is missing. Knows no
chunk and no link.

Word i of the bytes, seen as 64-bit little-endian words, is mixed with its place, by multiplications and shifts that
lose nothing (the finaliser of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
OOPSLA'14); the digest is the sum of all that modulo 2**64, so that it does not depend on the order in which a device
adds. A change of one word always changes its term, and so the sum; other damage goes unseen with probability 2**-64.

Shape letters: B bytes; W whole words of 8 bytes.
"""

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # triton is optional: tensors on a CPU never need it
    triton = None

WORD_BYTES = 8
_MASK = 2**64 - 1
_PLACE = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: SplitMix64's step
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_CHUNK = 4096  # words of one program


def byte_digest(data_B: torch.Tensor) -> int:
    """The digest of the bytes, in ``[0, 2**64)``. Waits for the device.

    Args:
        data_B: uint8, one dimension, contiguous; any length and device.

    Raises:
        ValueError: a dtype or layout above does not hold. Nothing was launched.
    """
    if data_B.dtype != torch.uint8 or data_B.dim() != 1 or not data_B.is_contiguous():
        raise ValueError("a digest wants contiguous bytes in one dimension")
    words_W, tail = _split(data_B)
    by_kernel = data_B.is_cuda and triton is not None
    total = launch_sum_words(words_W) if by_kernel else sum_words_reference(words_W)
    sum_of_words = int(total.item()) & _MASK
    return mix_word(len(data_B), sum_of_words + mix_word(tail, len(words_W) + 1) & _MASK)


def mix_word(word: int, place: int) -> int:
    """The term of one word at a place, counted from 1, on Python's integers; what the kernel does for each word."""
    mixed = word + place * _PLACE & _MASK
    mixed = (mixed ^ mixed >> 30) * _FIRST & _MASK
    mixed = (mixed ^ mixed >> 27) * _SECOND & _MASK
    return mixed ^ mixed >> 31


def _split(data_B: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The whole words as int64 ``[W]``, and the bytes behind them as a number."""
    num_words = len(data_B) // WORD_BYTES
    whole_B, rest = data_B[: num_words * WORD_BYTES], data_B[num_words * WORD_BYTES :]
    tail = int.from_bytes(bytes(rest.tolist()), "little")
    if not num_words:
        return torch.empty(0, dtype=torch.int64, device=data_B.device), tail
    if whole_B.data_ptr() % WORD_BYTES or whole_B.storage_offset() % WORD_BYTES:
        whole_B = whole_B.clone()
    return whole_B.view(torch.int64), tail


def sum_words_reference(words_W: torch.Tensor) -> torch.Tensor:
    """What the kernel means, on any device: int64 ``[1]``, the sum of all terms. int64 wraps around as uint64 does."""
    place_W = torch.arange(1, len(words_W) + 1, dtype=torch.int64, device=words_W.device)
    mixed_W = words_W + place_W * _signed(_PLACE)
    mixed_W = (mixed_W ^ (mixed_W >> 30 & (1 << 34) - 1)) * _signed(_FIRST)
    mixed_W = (mixed_W ^ (mixed_W >> 27 & (1 << 37) - 1)) * _signed(_SECOND)
    mixed_W = mixed_W ^ (mixed_W >> 31 & (1 << 33) - 1)
    return mixed_W.sum().reshape(1)


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


def launch_sum_words(words_W: torch.Tensor) -> torch.Tensor:
    """Run the kernel on the current stream (or in Triton's interpreter); as ``sum_words_reference``, not waited for."""
    total = torch.zeros(1, dtype=torch.int64, device=words_W.device)
    if len(words_W):
        grid = (-(-len(words_W) // _CHUNK),)
        _sum_words_kernel[grid](words_W, total, len(words_W), CHUNK=_CHUNK)
    return total


if triton is not None:

    @triton.jit
    def _sum_words_kernel(  # type: ignore[no-untyped-def]  # Triton reads annotations itself
        words_ptr,  # int64 [W]
        total_ptr,  # int64 [1], in and out
        count,  # W
        CHUNK: tl.constexpr,
    ):
        """Grid (ceil(W / CHUNK),): program c adds the terms of words [c * CHUNK, (c + 1) * CHUNK) to the total."""
        at = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
        inside = at < count
        word = tl.load(words_ptr + at, mask=inside, other=0).to(tl.uint64, bitcast=True)
        mixed = word + (at + 1).to(tl.uint64) * tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
        mixed = (mixed ^ (mixed >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
        mixed = (mixed ^ (mixed >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
        mixed = (mixed ^ (mixed >> 31)).to(tl.int64, bitcast=True)
        tl.atomic_add(total_ptr, tl.sum(tl.where(inside, mixed, 0), axis=0), sem="relaxed")
