from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from twinpool.core.sampling import SamplingParams
from twinpool.model.modelled_kv import choose_token, kv_words, mix, mix_one, oracle_tokens, read_weights, state_steps
from twinpool.model.modelled_shape import ModelledShape, StepLatency

SHAPE = ModelledShape(StepLatency(), num_layers=3, head_dim=4, vocab_size=1000)
GREEDY = SamplingParams(temperature=0)
SEEDED = SamplingParams(temperature=1.0, seed=7)
PROMPT = [5, 3, 9, 1]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_words_mix_alike_alone_and_in_arrays(words: list[int]) -> None:
    assert mix(np.array(words, np.uint64)).tolist() == [mix_one(word) for word in words]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=9), st.integers(0, 8), st.integers(0, 5))
def test_an_answer_can_be_continued_from_any_token(prompt: list[int], cut: int, choice: int) -> None:
    for sampling in (GREEDY, SEEDED):
        whole = oracle_tokens(SHAPE, prompt, sampling, 9, choice=choice)
        rest = oracle_tokens(SHAPE, [*prompt, *whole[:cut]], sampling, 9 - cut, first_index=cut, choice=choice)
        assert whole[:cut] + rest == whole
        assert all(0 <= token < SHAPE.vocab_size for token in whole)


def test_every_prompt_token_its_place_and_the_seed_change_the_answer() -> None:
    prompts = [PROMPT, PROMPT[::-1], PROMPT[1:], [0, *PROMPT], [*PROMPT[:-1], 2]]
    answers = [oracle_tokens(SHAPE, prompt, GREEDY, 8) for prompt in prompts]
    answers += [oracle_tokens(SHAPE, PROMPT, replace(SEEDED, seed=seed), 8) for seed in (0, 1, 2**64 - 1)]
    answers += [oracle_tokens(SHAPE, PROMPT, SEEDED, 8, choice=choice) for choice in (0, 1)]
    assert len(set(map(tuple, answers))) == len(answers)


def test_greedy_answers_do_not_heed_the_seed() -> None:
    tokens = {choose_token(123, replace(GREEDY, seed=seed), 0, 0, 1000) for seed in (None, 1, 2)}
    assert len(tokens) == 1


def test_kv_of_a_token_depends_on_the_tokens_before_it() -> None:
    left, right = (
        np.cumsum(state_steps(np.array(ids), np.arange(3)), dtype=np.uint64) for ids in ([1, 2, 3], [4, 2, 3])
    )
    words = kv_words(left, SHAPE)
    assert words.shape == (3, 3, 4)
    assert not (words == kv_words(right, SHAPE)).any()
    assert len(np.unique(words)) == words.size


def test_weights_are_odd_and_do_not_depend_on_where_a_table_begins() -> None:
    weights = read_weights(0, 10, SHAPE)
    assert (weights & np.uint64(1)).all()
    assert np.array_equal(weights[4:], read_weights(4, 10, SHAPE))
