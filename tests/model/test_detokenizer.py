import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from twinpool.model.detokenizer import Detokenizer
from twinpool.model.tokenizer import TextTokenizer

CORPUS = ["the cat sat on the mat.  def f(x):\n    return x", "naïve café 東京 😀 👩‍👩‍👧 \ufffd"] * 4
EOS = 0
FAMILIES = ["byte-level", "byte-fallback", "metaspace", "wordpiece"]
EXACT_FAMILIES = FAMILIES[:2]
texts = st.text(
    st.one_of(st.sampled_from(" ▁a.é東😀\u200d\ufffd\n"), st.characters(exclude_categories=["Cs"])), max_size=30
)
cuts = st.lists(st.integers(0, 60), max_size=8)


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool> é", special=False, normalized=False)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    trained = metaspace()
    learned = json.loads(trained.to_str())["model"]
    tokens = [
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *(t for t in learned["vocab"] if t.isascii() or "▁" in t),
    ]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    merges = [(left, right) for left, right in learned["merges"] if {left, right, left + right} <= vocab.keys()]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True))
    tokenizer.pre_tokenizer = trained.pre_tokenizer
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def wordpiece() -> Tokenizer:
    vocab = {token: index for index, token in enumerate(["</s>", "[UNK]", "the", "cat", "##s", "sat", "東", "##京"])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


@cache
def tokenizer_of(family: str) -> TextTokenizer:
    build = {"byte-level": byte_level, "byte-fallback": byte_fallback, "metaspace": metaspace, "wordpiece": wordpiece}
    with TemporaryDirectory() as path:
        tokenizer = build[family]()
        tokenizer.add_special_tokens(["</s>"])
        tokenizer.save(f"{path}/tokenizer.json")
        loaded = TextTokenizer.load(Path(path))
    assert loaded is not None
    return loaded


def pieces(
    tokenizer: TextTokenizer, token_ids: Sequence[int], cuts: Sequence[int], prompt: Sequence[int] = ()
) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    bounds = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    texts = [detokenizer.push(token_ids[start:end]) for start, end in pairwise(bounds)]
    return [*texts, detokenizer.finish()]


@pytest.mark.parametrize("family", FAMILIES)
@given(text=texts, cuts=cuts)
def test_pieces_join_to_the_text_of_all_ids_however_they_are_cut(family: str, text: str, cuts: list[int]) -> None:
    tokenizer = tokenizer_of(family)
    token_ids = tokenizer.encode(text)
    whole = tokenizer.decode(token_ids)
    assert "".join(pieces(tokenizer, token_ids, cuts)) == whole
    assert "".join(pieces(tokenizer, token_ids, range(len(token_ids)))) == whole


@pytest.mark.parametrize("family", EXACT_FAMILIES)
@given(text=texts.filter(lambda text: "\ufffd" not in text))
def test_no_half_character_is_ever_pushed_and_none_stays_behind(family: str, text: str) -> None:
    tokenizer = tokenizer_of(family)
    token_ids = tokenizer.encode(text)
    *pushed, rest = pieces(tokenizer, token_ids, range(len(token_ids)))
    assert "\ufffd" not in "".join(pushed)
    assert rest == ""


@given(data=st.data(), cuts=cuts)
def test_any_ids_of_a_byte_level_vocabulary_join_to_their_text_also_those_that_are_no_utf8(
    data: st.DataObject, cuts: list[int]
) -> None:
    tokenizer = tokenizer_of("byte-level")
    token_ids = data.draw(st.lists(st.integers(0, 340), max_size=40))
    assert "".join(pieces(tokenizer, token_ids, cuts)) == tokenizer.decode(token_ids)


@given(token_ids=st.lists(st.integers(0, 300), max_size=40))
def test_bytes_that_are_no_utf8_neither_stop_nor_grow_a_byte_fallback_stream(token_ids: list[int]) -> None:
    tokenizer = tokenizer_of("byte-fallback")
    detokenizer = Detokenizer(tokenizer)
    for index, token_id in enumerate(token_ids):
        detokenizer.push([token_id])
        assert len(detokenizer._ids) <= 8, index
    detokenizer.finish()


@pytest.mark.parametrize("family", FAMILIES)
def test_special_and_unknown_ids_leave_no_trace(family: str) -> None:
    tokenizer = tokenizer_of(family)
    token_ids = tokenizer.encode("the cats sat")
    noisy = [noise for token_id in token_ids for noise in (EOS, 10**6, token_id, EOS)]
    assert "".join(pieces(tokenizer, noisy, range(len(noisy)))) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("family", EXACT_FAMILIES)
@given(text=texts, at=st.integers(0, 60))
def test_prompt_and_answer_join_to_one_text(family: str, text: str, at: int) -> None:
    tokenizer = tokenizer_of(family)
    token_ids = tokenizer.encode("the cat" + text)
    at = max(1, min(at, len(token_ids)))
    if not is_whole(tokenizer, token_ids[:at]):
        return
    answer = "".join(pieces(tokenizer, token_ids[at:], [1], token_ids[:at]))
    assert tokenizer.decode(token_ids[:at]) + answer == tokenizer.decode(token_ids)


def is_whole(tokenizer: TextTokenizer, token_ids: Sequence[int]) -> bool:
    """Whether the ids end with the end of a character."""
    try:
        b"".join(map(tokenizer.text_bytes, token_ids)).decode()
    except UnicodeDecodeError:
        return False
    return True


def test_a_space_after_the_prompt_is_kept_and_one_before_a_new_text_is_not() -> None:
    tokenizer = tokenizer_of("byte-fallback")
    prompt, answer = tokenizer.encode("the"), tokenizer.encode("cat")
    assert "".join(pieces(tokenizer, answer, [], prompt)) == " cat"
    assert "".join(pieces(tokenizer, answer, [])) == "cat"


def test_an_unfinished_character_is_flushed_as_a_replacement_character() -> None:
    tokenizer = tokenizer_of("byte-level")
    unfinished = tokenizer.encode("🂡")[:-1]
    assert pieces(tokenizer, [*tokenizer.encode("a"), *unfinished], [1]) == ["a", "", "\ufffd"]
