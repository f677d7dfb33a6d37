"""Turns one stream of token ids into text as it grows, in whole characters.

Knows one stream: neither stop strings nor who listens.
"""

import codecs
from collections.abc import Sequence

from twinpool.model.tokenizer import TextTokenizer

_CONTEXT_TOKENS = 8


class Detokenizer:
    """The text of one answer. What ``push`` and ``finish`` return, joined, is ``tokenizer.decode`` of all ids.

    In byte-level vocabularies the text is that of the tokens' bytes. In all others a token's text depends on the token
    before it, so every new run of tokens is decoded together with the run before, and that run's own text is cut off
    (the prefix and read offsets of vLLM and TGI): each token is decoded three times. Runs end where a character does.

    In byte-fallback vocabularies, bytes that are no UTF-8 spoil the whole run of bytes they stand in, also backwards;
    text that is out stays as it was, and only what follows is spoiled.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt_ids: Sequence[int] = ()) -> None:
        """``prompt_ids``: what the answer continues, so that a space between the two is not lost.

        Leave them out for a text of its own, such as an answer in a chat.
        """
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._ids: list[int] = []  # the last run that is out, then what is not
        self._num_out = 0  # of self._ids
        self._num_whole = 0  # of self._ids, up to the end of a character
        self._append(_from_whole_character(tokenizer, prompt_ids[-_CONTEXT_TOKENS:]))
        self._num_out = self._num_whole

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that these ids complete; never half a character, so the last one may lag."""
        if self._tokenizer.is_byte_level:
            return "".join([self._utf8.decode(self._tokenizer.text_bytes(token_id)) for token_id in token_ids])
        self._append(token_ids)
        return self._take(self._num_whole)

    def finish(self) -> str:
        """What is held back: U+FFFD for a character that never ended. Nothing may be pushed afterwards."""
        if self._tokenizer.is_byte_level:
            return self._utf8.decode(b"", final=True)
        return self._take(len(self._ids))

    def _append(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            data = self._tokenizer.text_bytes(token_id)
            if data:
                self._ids.append(token_id)
                self._utf8.decode(data)
                unfinished, _ = self._utf8.getstate()
                self._num_whole = len(self._ids) - len(unfinished)  # in parts of a character, a byte is a token

    def _take(self, end: int) -> str:
        start = self._num_out
        if start == end:
            return ""
        decode = self._tokenizer.decode
        before, text = decode(self._ids[:start]), decode(self._ids[:end])
        fresh = text[len(before) :] if text.startswith(before) else decode(self._ids[start:end])
        del self._ids[:start]
        self._num_out = self._num_whole = end - start
        return fresh


def _from_whole_character(tokenizer: TextTokenizer, token_ids: Sequence[int]) -> Sequence[int]:
    """Without the leading tokens that start in the middle of a character."""
    for index, token_id in enumerate(token_ids):
        first = tokenizer.text_bytes(token_id)[:1]
        if not b"\x80" <= first < b"\xc0":
            return token_ids[index:]
    return ()
