import os
import runpy
import subprocess
import sys

import pytest
import torch

from twinpool.kernels import noise

# Random123's kat_vectors for philox4x32, 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def pairs(rows: int, count: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(low, high, size):
        return torch.randint(low, high, (size,), generator=generator)

    seeds = draw(-(2**63), 2**63 - 1, rows)
    return seeds, draw(0, 2**20, rows), torch.arange(rows), draw(0, rows, count), draw(0, 2**31, count)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter, key, output):
    words = noise.philox_4x32_10(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(map(int, words)) == output


def test_a_word_is_a_function_of_seed_index_choice_and_token():
    seed, index, choice = 0xA4093822 | 0x299F31D0 << 32, 0x85A308D3, 0x13198A2E
    counter = (torch.tensor([7]), torch.tensor([index]), torch.tensor([choice]), torch.tensor([0]))
    wanted = noise.philox_4x32_10(counter, (torch.tensor([0xA4093822]), torch.tensor([0x299F31D0])))[0]
    rows = (torch.tensor([1, seed]), torch.tensor([2, index]), torch.tensor([3, choice]))
    assert torch.equal(noise.noise_words(*rows, torch.tensor([1]), torch.tensor([7])), wanted)


def test_a_pair_gets_the_same_noise_wherever_it_stands():
    seed, index, choice, row, token = pairs(5, 700)
    whole = noise.gumbel_noise(seed, index, choice, row, token)
    for at in (0, 1, 333, 699):
        one = slice(int(row[at]), int(row[at]) + 1)
        alone = noise.gumbel_noise(seed[one], index[one], choice[one], torch.tensor([0]), token[at : at + 1])
        assert torch.equal(alone, whole[at : at + 1])


def test_uniforms_are_inside_zero_and_one_for_extreme_words():
    words = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1])
    uniforms = noise.uniform_from_words(words)
    assert uniforms.gt(0).all()
    assert uniforms.lt(1).all()
    gumbel = -(-uniforms.double().log()).log()
    assert gumbel.min() >= noise.GUMBEL_MIN - 1e-9
    assert gumbel.max() <= noise.GUMBEL_MAX


def test_noise_has_the_mean_and_variance_of_gumbels_distribution():
    seed, index, choice, _, _ = pairs(1, 1)
    count = 100_000
    drawn = noise.gumbel_noise(seed, index, choice, torch.zeros(count, dtype=torch.int64), torch.arange(count))
    assert drawn.mean().item() == pytest.approx(0.57722, abs=0.015)
    assert drawn.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.05)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda a: [a[0].int(), *a[1:]], "int64 vectors"),
        (lambda a: [a[0][None], *a[1:]], "int64 vectors"),
        (lambda a: [a[0], a[1][:1], *a[2:]], "differ in length"),
        (lambda a: [*a[:4], a[4][:3]], "differ in length"),
    ],
)
def test_arguments_of_another_dtype_or_length_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        noise.noise_words(*change(pairs(2, 9)))


def test_no_pairs_need_no_noise():
    assert noise.gumbel_noise(*pairs(2, 0)).shape == (0,)


COMPARE = """
import runpy, sys, torch
from twinpool.kernels import noise
arguments = runpy.run_path(sys.argv[1])["pairs"](5, 700)
for count in (0, 1, 256, 700):
    taken = (*arguments[:3], arguments[3][:count], arguments[4][:count])
    assert torch.equal(noise.launch_noise_words(*taken), noise.noise_words_reference(*taken)), count
"""


@pytest.mark.slow
def test_the_kernel_gives_the_references_bits_in_the_interpreter():
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", COMPARE, __file__], env=environment, check=True, timeout=100)


def test_without_triton_the_module_imports_and_a_cpu_needs_no_kernel(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    module = runpy.run_path(noise.__file__)
    zero = torch.zeros(1, dtype=torch.int64)
    assert module["triton"] is None
    assert module["noise_words"](*[zero] * 5).item() == KNOWN_ANSWERS[0][2][0]
