"""The digest of bytes on a device: equal to what numpy finds, and different after any damage."""

import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twinpool.kernels import byte_digest
from twinpool.kernels.byte_digest import mix_word

SIZES = (0, 1, 7, 8, 9, 64, 4096 * 8, 4096 * 8 + 5, 100_003)


def some_bytes(size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def digest_in_numpy(data: bytes) -> int:
    """The same from its description, with unsigned words that wrap around by themselves."""
    num_words = len(data) // 8
    words = np.frombuffer(data[: num_words * 8], "<u8")
    mixed = words + np.arange(1, num_words + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    tail = int.from_bytes(data[num_words * 8 :], "little")
    total = int(mixed.sum(dtype=np.uint64)) + mix_word(tail, num_words + 1)
    return mix_word(len(data), total % 2**64)


@pytest.mark.parametrize("size", SIZES)
def test_torch_and_numpy_find_the_same_digest(size: int) -> None:
    data = some_bytes(size)
    assert byte_digest.byte_digest(data) == digest_in_numpy(data.numpy().tobytes())


@given(st.binary(max_size=100))
def test_any_bytes_have_the_digest_of_the_description(data: bytes) -> None:
    array = np.frombuffer(data, np.uint8).copy()
    assert byte_digest.byte_digest(torch.from_numpy(array)) == digest_in_numpy(data)


def test_bytes_that_begin_anywhere_have_the_same_digest() -> None:
    data = some_bytes(1000)
    for first in range(1, 9):
        assert byte_digest.byte_digest(data[first:]) == byte_digest.byte_digest(data[first:].clone())


@given(st.integers(1, 300), st.data())
def test_every_flipped_bit_is_found(size: int, draw: st.DataObject) -> None:
    data = some_bytes(size, seed=size)
    before = byte_digest.byte_digest(data)
    data[draw.draw(st.integers(0, size - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    assert byte_digest.byte_digest(data) != before


@given(st.integers(2, 60), st.data())
def test_words_that_changed_places_are_found(count: int, draw: st.DataObject) -> None:
    words = some_bytes(8 * count, seed=count).reshape(count, 8)
    one, other = draw.draw(st.permutations(range(count)))[:2]
    before = byte_digest.byte_digest(words.reshape(-1))
    words[[one, other]] = words[[other, one]]
    assert byte_digest.byte_digest(words.reshape(-1)) != before


@given(st.integers(9, 300), st.integers(1, 16))
def test_bytes_that_moved_are_found(size: int, by: int) -> None:
    data = some_bytes(size, seed=size)
    assert byte_digest.byte_digest(data.roll(by % size or 1)) != byte_digest.byte_digest(data)


def test_zeros_of_different_lengths_differ() -> None:
    digests = {byte_digest.byte_digest(torch.zeros(size, dtype=torch.uint8)) for size in range(64)}
    assert len(digests) == 64


@pytest.mark.parametrize(
    "data", [torch.zeros(8), torch.zeros((2, 8), dtype=torch.uint8), torch.zeros(16, dtype=torch.uint8)[::2]]
)
def test_what_is_not_plain_bytes_is_refused(data: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="contiguous bytes"):
        byte_digest.byte_digest(data)


COMPARE = """
import runpy, sys, torch
from twinpool.kernels.byte_digest import launch_sum_words, sum_words_reference
some_bytes = runpy.run_path(sys.argv[1])["some_bytes"]
for count in (0, 1, 4095, 4096, 9001):
    words = torch.empty(0, dtype=torch.int64)
    if count:
        words = some_bytes(8 * count, seed=count).view(torch.int64)
    assert torch.equal(launch_sum_words(words), sum_words_reference(words)), count
"""


@pytest.mark.slow
def test_the_kernel_gives_the_references_bits_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-W", "error", "-c", COMPARE, __file__], env=environment, check=True, timeout=100)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 90])
def test_the_kernel_compiles_for_gpus_that_are_not_here(arch: int) -> None:
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {"words_ptr": "*i64", "total_ptr": "*i64", "count": "i64", "CHUNK": "constexpr"}
    source = ASTSource(byte_digest._sum_words_kernel, types, {"CHUNK": byte_digest._CHUNK})
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32))
    assert f".target sm_{arch}" in made.asm["ptx"]


def test_without_triton_the_module_imports_and_a_cpu_needs_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    module = runpy.run_path(str(byte_digest.__file__))
    assert module["triton"] is None
    assert module["byte_digest"](some_bytes(9)) == byte_digest.byte_digest(some_bytes(9))
