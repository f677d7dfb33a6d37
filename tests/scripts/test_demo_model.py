"""The committed demonstration model: what its folder holds, and that the script beside it makes such a folder."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "train_demo_model.py"
FOLDER = ROOT / "examples" / "models" / "tiny"
WRITTEN_BY_SCRIPT = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}
TALK = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": " What is a deque? "},
    {"role": "assistant", "content": "A queue.\nIt has two ends."},
    {"role": "user", "content": "Write it."},
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_demo_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses looks its classes' module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return read_json(FOLDER / "config.json")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def read_header(path: Path) -> dict[str, Any]:
    """A safetensors file's header: dtype and shape by tensor name."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    del header["__metadata__"]
    return header


def test_the_folder_is_complete_and_under_8_mb():
    assert {path.name for path in FOLDER.iterdir()} == WRITTEN_BY_SCRIPT | {"README.md"}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8_000_000


def test_weights_are_bf16_and_at_most_three_and_a_half_million():
    header = read_header(FOLDER / "model.safetensors")
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert sum(math.prod(entry["shape"]) for entry in header.values()) <= 3_500_000


def test_weights_have_the_shapes_that_the_config_promises(config: dict[str, Any]):
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    q, kv = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    expected = {name: [config["vocab_size"], hidden] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    expected["model.norm.weight"] = [hidden]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        expected |= {f"{layer}.{norm}.weight": [hidden] for norm in ("input_layernorm", "post_attention_layernorm")}
        expected |= {
            f"{layer}.self_attn.{name}_proj.weight": [n, hidden] for name, n in (("q", q), ("k", kv), ("v", kv))
        }
        expected |= {f"{layer}.mlp.{name}_proj.weight": [ffn, hidden] for name in ("gate", "up")}
        expected |= {f"{layer}.self_attn.o_proj.weight": [hidden, q], f"{layer}.mlp.down_proj.weight": [hidden, ffn]}
    assert {name: entry["shape"] for name, entry in read_header(FOLDER / "model.safetensors").items()} == expected


def test_the_config_is_a_bf16_llama_whose_eos_is_the_tokenizers(config: dict[str, Any], tokenizer: Any):
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["model_type"], config["dtype"], config["max_position_embeddings"]) == ("llama", "bfloat16", 2048)
    assert config["vocab_size"] == len(tokenizer)
    special_ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    assert special_ids.items() <= config.items()
    assert read_json(FOLDER / "generation_config.json") == special_ids


@given(text=st.text())
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text


@pytest.mark.parametrize(
    "text", ["def f(x):\n\treturn  x\n\n", "🦆 👩‍👩‍👧 naïve 日本語 \u202eabc", "\x00\x07\r\n \u00a0"]
)
def test_odd_text_survives_the_tokenizer(tokenizer: Any, text: str):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_the_chat_template_renders_what_the_model_was_trained_on(tokenizer: Any, script: ModuleType):
    rendered = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert rendered == script.render_chat([(m["role"], m["content"]) for m in TALK]) + "\n"
    assert rendered.startswith("<|begin|><|system|>\nAnswer briefly.<|end|>\n<|user|>\nWhat is a deque?<|end|>\n")


def test_a_generation_prompt_opens_the_assistants_turn(tokenizer: Any):
    rendered = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True) == (
        rendered + "<|assistant|>\n"
    )


def test_the_chat_template_refuses_a_role_it_was_not_trained_on(tokenizer: Any):
    with pytest.raises(Exception, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_the_scripts_model_and_transformers_compute_the_same_logits(script: ModuleType):
    theirs = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    ours = script.Llama(script.Shape())
    ours.load_state_dict({name: t.float() for name, t in load_file(FOLDER / "model.safetensors").items()})
    token_ids = torch.randint(0, 2048, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(token_ids), theirs(token_ids).logits, rtol=1e-3, atol=1e-3)


def test_a_greeting_is_answered_and_the_answer_ends(tokenizer: Any):
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=60, do_sample=False, pad_token_id=tokenizer.eos_token_id)[0]
    assert answer[-1] == tokenizer.eos_token_id
    assert "Python" in tokenizer.decode(answer[prompt.input_ids.shape[1] :])


def test_the_card_states_the_figures_of_the_training_report():
    card, report = (FOLDER / "README.md").read_text(encoding="utf-8"), read_json(FOLDER / "training.json")
    stated = [f"{report[key]:.2f}" for key in ("train_loss", "held_out_loss", "held_out_bits_per_byte")]
    stated += [f"{report[key]:,}" for key in ("parameters", "steps", "tokens", "training_s")]
    assert [figure for figure in stated if figure not in card] == []


def test_held_out_files_are_few_and_none_is_a_table_or_a_test(script: ModuleType):
    paths = script.library_files()
    held_out = [path for path in paths if script.is_held_out(path)]
    assert 0 < len(held_out) < len(paths) / 16
    assert not any({"test", "site-packages", "encodings"}.intersection(path.parts) for path in paths)


@pytest.mark.slow
def test_a_short_training_writes_a_folder_that_transformers_loads(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--max-steps", "2", "--max-files", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN_BY_SCRIPT
    assert read_json(tmp_path / "training.json")["steps"] == 2
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert model(**tokenizer("import os", return_tensors="pt")).logits.shape[-1] == 2048
