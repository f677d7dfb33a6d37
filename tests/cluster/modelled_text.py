"""A vocabulary as large as the modelled models', so that their answers have a text, and what those answers are."""

import codecs
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from twinpool.core.sampling import SamplingParams
from twinpool.model.modelled_kv import oracle_tokens
from twinpool.model.modelled_shape import modelled_shape
from twinpool.model.tokenizer import TextTokenizer

SHAPE = modelled_shape("modelled:instant")
LETTERS = "abcdefghijklmnopqrstuvwxyz .,\n()"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "dtype": "float32",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "vocab_size": SHAPE.vocab_size,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def write_text_model(folder: Path) -> str:
    """A folder that a gateway can be given as its model: byte-level tokens, every third with parts of a character."""
    letters = _letters_of_bytes()
    tokens = dict.fromkeys(letters)  # so that every text has ids
    for number in range(len(LETTERS) ** 3):
        raw = "".join(LETTERS[number // 32**place % 32] for place in range(3)).encode()
        if number % 3 == 0:
            character = ("é" if number % 2 else "😀").encode()
            split = number // 3 % (len(character) + 1)
            raw = character[split:] + raw + character[:split]
        tokens["".join(letters[byte] for byte in raw)] = None
    vocab = {token: index for index, token in enumerate(list(tokens)[: SHAPE.vocab_size])}
    assert len(vocab) == SHAPE.vocab_size
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return str(folder)


def _letters_of_bytes() -> list[str]:
    """What byte-level vocabularies write for each byte."""
    printable = {*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@cache
def text_tokenizer() -> TextTokenizer:
    """The tokenizer of ``write_text_model``."""
    with TemporaryDirectory() as folder:
        tokenizer = TextTokenizer.load(write_text_model(Path(folder)))
    assert tokenizer is not None
    return tokenizer


@dataclass(frozen=True)
class Expected:
    """One answer as brute force finds it."""

    token_ids: tuple[int, ...]
    text: str
    is_stopped: bool


def text_of(token_ids: Sequence[int], *, final: bool = True) -> str:
    data = b"".join(text_tokenizer().text_bytes(token_id) for token_id in token_ids)
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data, final)


def expected_answer(prompt: Sequence[int], choice: int = 0, **sampling: Any) -> Expected:
    """What a modelled cluster has to say; what such a model does not heed (penalties, biases) changes nothing."""
    params = SamplingParams(**sampling)
    token_ids = tuple(oracle_tokens(SHAPE, prompt, params, params.max_tokens, choice=choice))
    before = len(text_of(prompt, final=False))  # a prompt may end in the middle of a character

    def text_up_to(count: int, *, final: bool) -> str:
        return text_of((*prompt, *token_ids[:count]), final=final)[before:]

    start = len(text_up_to(params.min_tokens, final=False))
    for count in range(params.min_tokens + 1, len(token_ids) + 1):
        text = text_up_to(count, final=count == len(token_ids))
        for end in range(start, len(text) + 1):
            ended = [len(stop) for stop in params.stop if text[start:end].endswith(stop)]
            if ended:
                return Expected(token_ids[:count], text[: end - max(ended)], True)
    return Expected(token_ids, text_up_to(len(token_ids), final=True), False)
