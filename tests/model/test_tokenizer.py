import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from twinpool.core.errors import InvalidRequest, SpecError
from twinpool.model.tokenizer import TextTokenizer

CORPUS = ["def read_file(path):\n    return open(path).read()\n", "the cat sat on the mat", "naïve café, 東京 😀"] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]
TEXTS = [
    "def f(x):\n  return x",
    "",
    " ",
    "  two  spaces ",
    "東京の café 😀👩‍👩‍👧",
    "<s>hi</s> there",
    "\x00\x7f\u2028",
    "x" * 50,
]
TEMPLATE = """{{ bos_token }}{% for m in messages %}
    {%- if m.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('no role ' + m.role) }}
    {%- endif %}
<|{{ m.role }}|>
{{ m.content | trim }}{{ eos_token }}
{% if m.role == 'assistant' %}{% generation %}{{ m | tojson }}{% endgeneration %}{% endif %}
{% if loop.index > 9 %}{% break %}{% endif %}
{% endfor %}
{{ strftime_now('%Y') }}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
MESSAGES = [
    {"role": "system", "content": " be brief "},
    {"role": "user", "content": "<b>7 & 8</b>"},
    {"role": "assistant", "content": 'a "quote"'},
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=ids[1:2])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """As Llama 2's: spaces are ▁, one is put in front, and unknown characters are spelled in bytes."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trained.train_from_iterator(CORPUS[:2], trainers.BpeTrainer(vocab_size=80, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(merge) for merge in learned["merges"]]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def save(tokenizer: Tokenizer, path: Path, template: str | None = None, **config: object) -> None:
    """Write a model directory as transformers writes it."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **config)
    fast.chat_template = template
    fast.save_pretrained(path)


def load(path: Path) -> TextTokenizer:
    tokenizer = TextTokenizer.load(path)
    assert tokenizer is not None
    return tokenizer


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("byte_level")
    save(byte_level(), path, TEMPLATE)
    return path


@pytest.mark.parametrize(
    "config", [{}, {"add_bos_token": True, "add_eos_token": True}, {"add_bos_token": False}], ids=str
)
@pytest.mark.parametrize("build", [byte_level, byte_fallback])
def test_ids_and_text_equal_those_of_transformers(build: object, config: dict[str, object], tmp_path: Path) -> None:
    save(build(), tmp_path, **config)  # type: ignore[operator]
    ours, theirs = load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        token_ids = theirs.encode(text)
        assert ours.encode(text) == token_ids
        assert ours.decode(token_ids) == theirs.decode(token_ids, skip_special_tokens=True)


def test_chats_equal_those_of_transformers_with_one_bos(model_dir: Path) -> None:
    ours, theirs = load(model_dir), AutoTokenizer.from_pretrained(model_dir)
    text = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert ours.render_chat(MESSAGES) == text
    token_ids = ours.encode_chat(MESSAGES)
    assert token_ids == theirs.encode(text, add_special_tokens=False)
    assert token_ids.count(theirs.bos_token_id) == 1


def test_the_template_may_stand_in_the_configuration_and_a_file_of_its_own_wins(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    config_path = tmp_path / "tokenizer_config.json"
    config = json.loads(config_path.read_text())
    templates = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    for chat_template, expected in (("S", "S"), (templates, "D")):
        config_path.write_text(json.dumps(config | {"chat_template": chat_template}))
        assert load(tmp_path).render_chat(MESSAGES) == expected
    (tmp_path / "chat_template.jinja").write_text("F")
    assert load(tmp_path).render_chat(MESSAGES) == "F"


def test_special_tokens_of_an_older_directory_are_read_from_their_own_file(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "special_tokens_map.json").write_text('{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}')
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ eos_token }}")
    assert load(tmp_path).render_chat(MESSAGES) == "<s></s>"


@pytest.mark.parametrize("path", ["dummy:llama-3-8b", "modelled:instant", "{tmp}"])
def test_a_model_without_a_tokenizer_has_none(path: str, tmp_path: Path) -> None:
    assert TextTokenizer.load(path.format(tmp=tmp_path)) is None


def test_a_model_without_a_template_refuses_chats_by_name(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    with pytest.raises(InvalidRequest, match="chat: this model has no chat template"):
        load(tmp_path).encode_chat(MESSAGES)


def test_half_a_surrogate_pair_is_refused(model_dir: Path) -> None:
    with pytest.raises(InvalidRequest, match="text: is not Unicode text at character 1"):
        load(model_dir).encode("a\ud800")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"model": {"type": "unheard of"}}'),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer_config.json", b"nonsense"),
        ("tokenizer_config.json", b'{"chat_template": 7}'),
        ("tokenizer_config.json", b'{"add_bos_token": true, "bos_token": "<none>"}'),
        ("chat_template.jinja", b"{% for %}"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SpecError, match=name):
        TextTokenizer.load(tmp_path)


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, twinpool.model.detokenizer\n"
        "print(sorted({'torch', 'transformers', 'ray', 'triton'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
