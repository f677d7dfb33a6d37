"""Text to token ids and back, and chat to text, from a model's directory and as Hugging Face's tokenizers do it.

Knows files and text: no network, no model, no stream (model/detokenizer.py). Imports neither torch nor transformers.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from twinpool.core.errors import InvalidRequest, SpecError
from twinpool.model.chat_template import ChatTemplate

_NO_DIRECTORY = ("dummy:", "modelled:")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextTokenizer:
    """A model's tokenizer and its chat template, if it has one."""

    def __init__(self, tokenizer: Tokenizer, decoder_types: frozenset[str], template: ChatTemplate | None) -> None:
        self._tokenizer = tokenizer
        self._is_byte_level = decoder_types == {"ByteLevel"}
        self._is_byte_fallback = "ByteFallback" in decoder_types
        self._template = template
        self._special_ids = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, model_dir: str | Path) -> "TextTokenizer | None":
        """Read ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``.

        None for a model without a tokenizer (no ``tokenizer.json``, or no directory at all: ``dummy:``, ``modelled:``);
        it takes prompts as token ids only.

        Raises:
            SpecError: a file is there and cannot be used; names it.
        """
        path = Path(model_dir) / "tokenizer.json"
        if str(model_dir).startswith(_NO_DIRECTORY) or not path.is_file():
            return None
        text = _read_text(path)
        content = _read_object(path, text)
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing narrower
            raise SpecError(f"{path}: {error}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_config(path.parent)
        named = _named_tokens(path.parent, config)
        _mark_special(tokenizer, named)
        _follow_add_bos(tokenizer, config, named, path.parent / "tokenizer_config.json")
        return cls(tokenizer, frozenset(_decoder_types(content.get("decoder"))), _template(path.parent, config, named))

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def is_byte_level(self) -> bool:
        """Whether the text of ids is exactly the text of their bytes, one after another."""
        return self._is_byte_level

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, with the special tokens the model expects around it (such as BOS).

        Raises:
            InvalidRequest: ``text`` has half a surrogate pair: it is no text.
        """
        return self._encode(text, add_special_tokens=True)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a chat; the template alone decides on special tokens. Raises as ``render_chat``."""
        return self._encode(self.render_chat(messages), add_special_tokens=False)

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for the assistant's next message, of messages that have ``role`` and ``content``.

        Raises:
            InvalidRequest: the model has no chat template, or its template refuses the messages.
        """
        if self._template is None:
            raise InvalidRequest("chat", "this model has no chat template; send text or token ids")
        return self._template.render(messages)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ``token_ids``, without special and unknown tokens."""
        return self._tokenizer.decode(token_ids, skip_special_tokens=True)

    def text_bytes(self, token_id: int) -> bytes:
        """The UTF-8 a token puts into the text, before spaces are tidied; empty if the text does not show it.

        Tokens of byte-level and byte-fallback vocabularies may hold a part of a character.
        """
        if token_id not in self._bytes:
            self._bytes[token_id] = self._read_bytes(token_id)
        return self._bytes[token_id]

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("text", f"is not Unicode text at character {error.start}") from error
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def _read_bytes(self, token_id: int) -> bytes:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special_ids:
            return b""
        if self._is_byte_level and all(letter in _BYTE_OF_LETTER for letter in token):
            return bytes(_BYTE_OF_LETTER[letter] for letter in token)
        if self._is_byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes.fromhex(match[1])
        return token.encode()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}") from error


def _read_object(path: Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise SpecError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path}: not a JSON object")
    return content


def _read_config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / "tokenizer_config.json"
    return _read_object(path, _read_text(path)) if path.is_file() else {}


def _named_tokens(model_dir: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and its like by name; older models keep them in a file of their own."""
    path = model_dir / "special_tokens_map.json"
    entries = {**(_read_object(path, _read_text(path)) if path.is_file() else {}), **config}
    tokens = {}
    for name in _NAMED_TOKENS:
        entry = entries.get(name)
        token = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(token, str):
            tokens[name] = token
    return tokens


def _mark_special(tokenizer: Tokenizer, named: Mapping[str, str]) -> None:
    known = [token for token in named.values() if tokenizer.token_to_id(token) is not None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in known])


def _follow_add_bos(tokenizer: Tokenizer, config: Mapping[str, Any], named: Mapping[str, str], where: Path) -> None:
    """``add_bos_token`` or ``add_eos_token``, where given, replace the tokenizer's own rule, as in transformers."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    before = [named["bos_token"]] if config.get("add_bos_token") and "bos_token" in named else []
    after = [named["eos_token"]] if config.get("add_eos_token") and "eos_token" in named else []
    ids = {token: tokenizer.token_to_id(token) for token in before + after}
    missing = [token for token, token_id in ids.items() if token_id is None]
    if missing:
        raise SpecError(f"{where}: {missing[0]!r} is not in the vocabulary")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=list(ids.items())
    )


def _template(model_dir: Path, config: Mapping[str, Any], named: Mapping[str, str]) -> ChatTemplate | None:
    """The file of its own wins over the entry in the configuration, which may be a list of named templates."""
    path = model_dir / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(_read_text(path), named, str(path))
    source = config.get("chat_template")
    if isinstance(source, list):
        source = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}.get(
            "default"
        )
    where = model_dir / "tokenizer_config.json"
    if source is not None and not isinstance(source, str):
        raise SpecError(f"{where}: chat_template is neither a string nor a list of named templates")
    return None if source is None else ChatTemplate(source, named, str(where))


def _decoder_types(decoder: object) -> Iterator[str]:
    """Type names of the steps of a tokenizer.json's decoder."""
    if isinstance(decoder, dict) and decoder.get("type") == "Sequence":
        for part in decoder["decoders"]:
            yield from _decoder_types(part)
    elif isinstance(decoder, dict):
        yield str(decoder.get("type"))


def _byte_letters() -> dict[str, int]:
    """GPT-2's alphabet of byte-level vocabularies: printable Latin-1 for itself, the other bytes from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_LETTER = _byte_letters()
