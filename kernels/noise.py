"""Makes the noise of Gumbel-max sampling: a counter-based generator, so that any worker can go on from token i.

Knows no logits and no request. The words are Philox-4x32-10 (Salmon et al., SC'11, "Parallel random numbers: as easy
as 1, 2, 3"), key = seed, counter = (vocabulary id, index, choice, 0), first word of the output; uniforms as in
``tl.rand``.

Shape letters: R rows, each with a seed, an index and a choice; N pairs (row, vocabulary id) that want noise.
"""

import math

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # triton is optional: tensors on a CPU never need it
    triton = None

_WORD = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_SCALE = 4.6566127342e-10  # uint_to_uniform_float's: the largest float32 that keeps 2**31 * scale under 1
_LEAST = 2.0**-32  # stands in for a uniform of 0, whose noise would be infinite
_CHUNK = 256

GUMBEL_MIN = -math.log(-math.log(_LEAST))  # about -3.1
GUMBEL_MAX = 16.7  # of the largest uniform, 1 - 2**-24, rounded up


def gumbel_noise(
    seed_R: torch.Tensor, index_R: torch.Tensor, choice_R: torch.Tensor, row_N: torch.Tensor, token_N: torch.Tensor
) -> torch.Tensor:
    """Standard Gumbel noise in ``[GUMBEL_MIN, GUMBEL_MAX]`` for each pair; arguments as in ``noise_words``.

    Returns:
        float32 ``[N]``. The logarithms are taken in float64, so that the last bit of a vector library's ``log`` does
        not depend on where in the tensor a pair stands.
    """
    uniform_N = uniform_from_words(noise_words(seed_R, index_R, choice_R, row_N, token_N))
    return uniform_N.double().log_().neg_().log_().neg_().float()


def uniform_from_words(words_N: torch.Tensor) -> torch.Tensor:
    """float32 in (0, 1), from the low 32 bits of int64 words: ``tl.rand``'s rule, with 2 ** -32 in place of 0."""
    signed_N = words_N.to(torch.int32)  # keeps the low 32 bits
    magnitude_N = torch.where(signed_N < 0, ~signed_N, signed_N)
    return (magnitude_N.float() * _SCALE).clamp_min_(_LEAST)


def noise_words(
    seed_R: torch.Tensor, index_R: torch.Tensor, choice_R: torch.Tensor, row_N: torch.Tensor, token_N: torch.Tensor
) -> torch.Tensor:
    """The first Philox word for each pair: by a kernel on a GPU, by ``noise_words_reference`` on a CPU; equal bits.

    Args:
        seed_R: int64 whose 64 bits are the seed. Same device as all others.
        index_R: int64, position in the answer; the low 32 bits count.
        choice_R: int64, which of a request's answers; the low 32 bits count.
        row_N: int64, each in ``[0, R)``. Not checked on the device.
        token_N: int64 vocabulary ids; the low 32 bits count.

    Returns:
        int64 ``[N]``, each in ``[0, 2**32)``.

    Raises:
        ValueError: a dtype or length above does not hold. Nothing was launched.
    """
    if any(tensor.dtype != torch.int64 or tensor.dim() != 1 for tensor in (seed_R, index_R, choice_R, row_N, token_N)):
        raise ValueError("noise wants int64 vectors")
    if not len(seed_R) == len(index_R) == len(choice_R) or len(row_N) != len(token_N):
        raise ValueError("seeds, indices and choices, or rows and tokens, differ in length")
    if token_N.is_cuda:
        return launch_noise_words(seed_R, index_R, choice_R, row_N, token_N)
    return noise_words_reference(seed_R, index_R, choice_R, row_N, token_N)


def noise_words_reference(
    seed_R: torch.Tensor, index_R: torch.Tensor, choice_R: torch.Tensor, row_N: torch.Tensor, token_N: torch.Tensor
) -> torch.Tensor:
    """What the kernel means, on any device."""
    key = (seed_R[row_N] & _WORD, seed_R[row_N] >> 32 & _WORD)
    counter = (token_N & _WORD, index_R[row_N] & _WORD, choice_R[row_N] & _WORD, torch.zeros_like(token_N))
    return philox_4x32_10(counter, key)[0]


Words4 = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def philox_4x32_10(counter: Words4, key: tuple[torch.Tensor, torch.Tensor]) -> Words4:
    """The generator itself, elementwise on int64 tensors that hold 32-bit words.

    A product of two words fills 64 bits and int64 wraps around, so the shift that takes its upper half is masked.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (high >> 32 & _WORD) ^ c1 ^ k0, high & _WORD, (low >> 32 & _WORD) ^ c3 ^ k1, low & _WORD
        k0, k1 = k0 + _KEY_STEPS[0] & _WORD, k1 + _KEY_STEPS[1] & _WORD
    return c0, c1, c2, c3


def launch_noise_words(
    seed_R: torch.Tensor, index_R: torch.Tensor, choice_R: torch.Tensor, row_N: torch.Tensor, token_N: torch.Tensor
) -> torch.Tensor:
    """Run the kernel on the current stream (or in Triton's interpreter); arguments as in ``noise_words``."""
    count = len(token_N)
    words_N = torch.empty_like(token_N)
    grid = (-(-count // _CHUNK),)
    if count:
        _noise_words_kernel[grid](
            *(tensor.contiguous() for tensor in (seed_R, index_R, choice_R, row_N, token_N)),
            words_N,
            count,
            CHUNK=_CHUNK,
        )
    return words_N


if triton is not None:

    @triton.jit
    def _noise_words_kernel(  # type: ignore[no-untyped-def]  # Triton reads annotations itself
        seed_ptr,  # int64 [R]
        index_ptr,  # int64 [R]
        choice_ptr,  # int64 [R]
        row_ptr,  # int64 [N]
        token_ptr,  # int64 [N]
        words_ptr,  # int64 [N], out
        count,  # N
        CHUNK: tl.constexpr,
    ):
        """Grid (ceil(N / CHUNK),): program c makes the words of pairs [c * CHUNK, (c + 1) * CHUNK)."""
        pair = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
        inside = pair < count
        row = tl.load(row_ptr + pair, mask=inside, other=0)
        token = tl.load(token_ptr + pair, mask=inside, other=0).to(tl.uint32)
        index = tl.load(index_ptr + row, mask=inside, other=0).to(tl.uint32)
        choice = tl.load(choice_ptr + row, mask=inside, other=0).to(tl.uint32)
        seed = tl.load(seed_ptr + row, mask=inside, other=0)
        word, _, _, _ = tl.philox(seed, token, index, choice, token * 0)
        tl.store(words_ptr + pair, word.to(tl.int64), mask=inside)
