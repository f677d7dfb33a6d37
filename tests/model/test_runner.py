import numpy as np
import pytest
import torch

from twinpool.core.errors import SpecError
from twinpool.core.sampling import SamplingParams
from twinpool.model.batch import NO_TOKEN, Batch, SampleRow
from twinpool.model.layer_groups import choose_layer_groups
from twinpool.model.runner import TorchRunner

SHAPES = [  # heads, KV heads, head_dim, tied embeddings
    (3, 1, 16, False),
    (4, 4, 32, True),
    (5, 5, 24, False),
    (6, 2, 64, False),
    (8, 1, 128, True),
    (7, 7, 18, False),
    (10, 2, 48, False),
    (9, 3, 80, True),
]


def prompt(length: int, seed: int = 0, vocab: int = 131) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, length).tolist()


def poison(driver) -> None:
    driver.runner.cache.tensor.fill_(torch.nan)


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "tied"), SHAPES)
def test_greedy_tokens_equal_transformers(write_llama, load_driver, heads, kv_heads, head_dim, tied):
    from transformers import LlamaForCausalLM

    folder = write_llama(
        hidden_size=heads * 8,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        rope_parameters={"rope_theta": 500.0 * heads, "rope_type": "default"},
        eos_token_id=None,
    )
    peer = LlamaForCausalLM.from_pretrained(folder)
    ids = prompt(70)
    whole = torch.tensor([ids])
    wanted = peer.generate(
        whole, attention_mask=torch.ones_like(whole), max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, 70:].tolist()
    driver = load_driver(folder)
    poison(driver)
    assert driver.answer(driver.sequence(ids, range(3, 15)), 12) == wanted


def test_a_chunked_prompt_gives_the_same_tokens_as_a_whole_one(write_llama, load_driver):
    driver = load_driver(write_llama())
    whole = driver.answer(driver.sequence(prompt(150), range(20)), 8)
    for chunk in (1, 7, 64, 149):
        poison(driver)
        assert driver.answer(driver.sequence(prompt(150), range(30, 50)), 8, chunk) == whole


def test_a_mixed_batch_gives_the_same_tokens_as_one_at_a_time(write_llama, load_driver):
    driver = load_driver(write_llama(num_attention_heads=4, num_key_value_heads=2))
    seeded = SamplingParams(temperature=0.8, top_k=40, top_p=0.9, seed=11)
    lengths, samplings = (5, 33, 90, 1, 64), (SamplingParams(temperature=0.0), seeded)

    def sequences():
        return [
            driver.sequence(prompt(n, seed=n), range(16 * i, 16 * i + 16), samplings[i % 2])
            for i, n in enumerate(lengths)
        ]

    alone = [driver.answer(sequence, 10) for sequence in sequences()]
    poison(driver)
    together = sequences()
    while any(len(s.answer) < 10 for s in together):
        running = [s for s in together if len(s.answer) < 10]
        driver.step(*((s, min(13 + i, len(s.tokens) - s.computed)) for i, s in enumerate(running)))
    assert [s.answer for s in together] == alone


def test_a_shared_prefix_is_read_from_blocks_that_another_sequence_wrote(write_llama, load_driver):
    driver = load_driver(write_llama())
    prefix = prompt(40)
    wanted = driver.answer(driver.sequence([*prefix, 3, 4, 5], range(10)), 6)
    poison(driver)
    driver.answer(driver.sequence([*prefix, 9, 9], range(20, 30)), 3)
    reuser = driver.sequence([*prefix, 3, 4, 5], [20, 21, 22, 23, 24, *range(40, 45)])
    reuser.computed = 40
    assert driver.answer(reuser, 6) == wanted


def test_layers_are_reported_in_order_once_their_kv_is_written(write_llama, load_driver):
    driver = load_driver(write_llama(num_hidden_layers=5), layer_groups=(2, 4, 5))
    cache = driver.runner.cache
    reports = []

    def on_layers(first, end):
        reports.append((first, end))
        assert not cache.tensor[4, first:end].isnan().any()
        assert cache.tensor[4, end:].isnan().all()

    poison(driver)
    driver.step((driver.sequence(prompt(8), [4]), 8), on_layers=on_layers)
    assert reports == [(0, 2), (2, 4), (4, 5)]


def test_layer_groups_are_chosen_by_default(write_llama, load_driver):
    runner = load_driver(write_llama(num_hidden_layers=5)).runner
    assert runner.layer_groups == choose_layer_groups(5, runner.cache.layout.block_layer_bytes)


def test_blocks_copied_to_another_worker_continue_with_the_same_tokens(write_llama, load_driver):
    folder = write_llama()
    source, target = load_driver(folder), load_driver(folder)
    wanted = source.answer(source.sequence(prompt(21), range(6)), 10)
    poison(source), poison(target)
    first = source.sequence(prompt(21), range(6))
    source.answer(first, 1)
    for layer in range(3):
        data = np.empty(3 * source.runner.cache.layout.block_layer_bytes, dtype=np.uint8)
        source.runner.cache.gather(layer, layer + 1, np.array([0, 1, 2]), data)
        target.runner.cache.scatter(layer, layer + 1, np.array([9, 4, 7]), data)
    moved = target.sequence(first.tokens, [9, 4, 7, 1, 2])
    moved.computed, moved.answer = 21, first.answer
    assert target.answer(moved, 10) == wanted


@pytest.mark.parametrize(
    ("own", "asked", "held"), [("float32", "bfloat16", "bfloat16"), ("bfloat16", "auto", "bfloat16")]
)
def test_bfloat16_runs_when_it_is_the_checkpoints_own_or_asked_for(write_llama, load_driver, own, asked, held):
    driver = load_driver(write_llama(dtype=own), dtype=asked)
    assert driver.runner.cache.layout.dtype == held
    assert len(driver.answer(driver.sequence(prompt(20), range(6)), 8)) == 8


def test_a_prompt_whose_kv_is_not_finite_fails_alone(write_llama, load_driver):
    driver = load_driver(write_llama())
    wanted = driver.answer(driver.sequence(prompt(10), [0, 1]), 2)
    sick = driver.sequence(prompt(10), [2, 3])
    sick.computed = 9
    driver.runner.cache.tensor[2] = torch.nan
    healthy = driver.sequence(prompt(10), [0, 1])
    driver.step((sick, 1), (healthy, 10))
    assert sick.answer == [NO_TOKEN]
    assert healthy.answer == wanted[:1]


def test_a_token_outside_the_vocabulary_raises_and_the_runner_goes_on(write_llama, load_driver):
    driver = load_driver(write_llama())
    with pytest.raises(IndexError):
        driver.step((driver.sequence([5, 131], [0]), 2))
    assert len(driver.answer(driver.sequence([5], [0]), 2)) == 2


def test_a_batch_without_samples_returns_no_ids(write_llama, load_driver):
    driver = load_driver(write_llama())
    batch = Batch(np.arange(3), np.array([0, 3], np.int32), np.array([3], np.int32), (np.array([0]),), ())
    assert driver.runner.run(batch).token_ids.shape == (0,)


def test_kv_memory_is_rounded_down_to_whole_blocks(write_llama, load_driver):
    folder = write_llama()
    block_bytes = load_driver(folder).runner.cache.layout.block_bytes
    assert load_driver(folder, kv_bytes=3 * block_bytes + 5).runner.cache.num_blocks == 3
    with pytest.raises(SpecError, match=r"kv.memory: .* hold no block"):
        load_driver(folder, kv_bytes=block_bytes - 1)


def test_equal_weights_have_one_identity_and_others_another(write_llama, load_driver):
    first, again, other = (load_driver(write_llama(seed=seed)).runner.cache.layout for seed in (0, 0, 1))
    assert first.digest() == again.digest()
    assert first.digest() != other.digest()


def test_a_dummy_model_runs_in_bfloat16_and_never_ends_by_itself():
    runner = TorchRunner.load("dummy:tiny", max_model_len=64, kv_bytes=1 << 20, block_tokens=16)
    rows = (SampleRow(0, SamplingParams(temperature=0.0), 0),)
    batch = Batch(np.arange(5), np.array([0, 5], np.int32), np.array([5], np.int32), (np.array([1]),), rows)
    assert 0 <= runner.run(batch).token_ids[0] < runner.vocab_size
    assert (runner.eos_token_ids, runner.cache.layout.dtype) == ((), "bfloat16")
