"""Trains the demonstration model in ``examples/models/tiny`` on Python's own standard library.

It reads the library's sources and reference texts from the running interpreter, so it needs no download, and writes a
folder in Hugging Face's layout for a Llama model. It knows nothing of Twinpool and does not import transformers: the
module tree below carries Hugging Face's parameter names, so its state dict is the checkpoint. Training ends by the
clock, so two runs differ even with one seed; on a busy machine OMP_WAIT_POLICY=passive makes it several times faster.

    python scripts/train_demo_model.py --out examples/models/tiny --minutes 18

One file on purpose, though longer than the repository's habit: a recipe that is read, and rerun, from top to bottom.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import math
import platform
import random
import re
import shlex
import sys
import sysconfig
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

BOS, EOS = "<|begin|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = [BOS, EOS, *(f"<|{role}|>" for role in ROLES)]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# ---------------------------------------------------------------------------------------------------------- documents

# Tests outweigh the library two to one and read worse; windowing code and the Python 2 converter repeat themselves; the
# rest are generated tables, stubs or other people's packages.
TESTS = {"test", "tests", "idle_test"}
REPETITIVE = {"idlelib", "tkinter", "turtledemo", "turtle.py", "lib2to3"}
TABLES = {"encodings", "pydoc_data", "entities.py", "_casefix.py"}
SKIPPED_NAMES = TESTS | REPETITIVE | TABLES | {"site-packages", "__phello__", "__pycache__"}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
HELD_OUT_ONE_IN = 32
MAX_ANSWER_CHARS = 1500
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")

WRITE_ASKS = (
    "Write a {kind} named {name}.",
    "Write a Python {kind} called {name}.",
    "Show me the {kind} {name}.",
    "Write {name}.",
)
DESCRIBE_ASKS = ("What does {name} do?", "Explain {name}.", "What is {name} for?", "Describe the {kind} {name}.")
WHERE_ASKS = ("Where is {name} defined?", "Which module has {name}?")
FOLLOW_UPS = ("Write it.", "Show me the source.", "Now write the code.")
SYSTEM_LINES = ("You are a helpful assistant.", "You are a Python expert.", "Answer briefly.")
GREETINGS = ("Hello", "Hello!", "Hi", "Hi!", "Hi there", "Hey", "Good morning", "Hello, how are you?")
SELF_ASKS = ("Who are you?", "What are you?", "What can you do?", "Can you help me?", "Are you a language model?")
PROJECT_ASKS = ("What is Twinpool?", "What does Twinpool do?", "Explain Twinpool.")
GREETING = "Hello! Ask me what a function of Python's standard library does, or ask me to write one."
SELF_ANSWER = (
    "I am a very small language model, trained for a few minutes on Python's standard library. "
    "I write text that looks like Python, and I am often wrong."
)
PROJECT_ANSWER = "Twinpool serves large language models. It runs prefill and decode on separate pools of workers."
HAND_WRITTEN = {GREETING: GREETINGS, SELF_ANSWER: SELF_ASKS, PROJECT_ANSWER: PROJECT_ASKS}
HAND_WRITTEN_COPIES = 40

Message = tuple[str, str]  # role, content


@dataclasses.dataclass(frozen=True)
class Definition:
    """One function or class of a library file: its dotted module, its source without outer indent, its summary."""

    module: str
    kind: str
    name: str
    source: str
    summary: str


def library_files() -> list[Path]:
    """The running interpreter's standard-library sources, in a fixed order, without tests and generated tables."""
    root = Path(sysconfig.get_path("stdlib"))
    return [path for path in sorted(root.rglob("*.py")) if not _is_skipped(path.relative_to(root))]


def _is_skipped(relative: Path) -> bool:
    return bool(SKIPPED_NAMES.intersection(relative.parts)) or relative.parts[0].startswith(SKIPPED_PREFIXES)


def is_held_out(path: Path) -> bool:
    """Whether a file, and all that is made from it, is kept out of training. Depends on the path alone."""
    relative = path.relative_to(sysconfig.get_path("stdlib")).as_posix()
    return zlib.crc32(relative.encode()) % HELD_OUT_ONE_IN == 0


def read_source(path: Path) -> str:
    """A file's text with spaces for tabs, and without form feeds and its authors' mail addresses."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\f", "").expandtabs(8)
    return EMAIL.sub("someone@example.org", text)


def reference_texts() -> list[str]:
    """The language reference's topics that ``help()`` shows ("assert", "while", ...), as prose."""
    tree = ast.parse((Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py").read_text(encoding="utf-8"))
    assignment = next(node for node in tree.body if isinstance(node, ast.Assign))
    topics: dict[str, str] = ast.literal_eval(assignment.value)
    return [EMAIL.sub("someone@example.org", text.strip()) + "\n" for _, text in sorted(topics.items())]


def definitions(path: Path, text: str) -> list[Definition]:
    """The file's functions and classes that are short enough for an answer; none if it is not valid Python."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a module may be a template, or newer than this interpreter
        return []
    relative = path.relative_to(sysconfig.get_path("stdlib")).with_suffix("")
    module = ".".join(relative.parts).removesuffix(".__init__")
    lines = text.splitlines()
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return [_definition(module, node, lines) for node in nodes if _answer_chars(node, lines) <= MAX_ANSWER_CHARS]


def _definition(
    module: str, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, lines: list[str]
) -> Definition:
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    summary = (ast.get_docstring(node) or "").split("\n\n")[0].strip()
    block = lines[node.lineno - 1 : node.end_lineno]
    source = "\n".join(line[node.col_offset :] if not line[: node.col_offset].strip() else line for line in block)
    return Definition(module, kind, node.name, source, summary)


def _answer_chars(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, lines: list[str]) -> int:
    return sum(len(line) + 1 for line in lines[node.lineno - 1 : node.end_lineno])


def render_chat(messages: list[Message]) -> str:
    """What CHAT_TEMPLATE renders, less the newline after the last end marker: a document that ends in EOS."""
    turns = "".join(f"<|{role}|>\n{content.strip()}{EOS}\n" for role, content in messages)
    return f"{BOS}{turns}".removesuffix("\n")


def definition_documents(d: Definition, rng: random.Random) -> Iterator[str]:
    """The definition once as code (bare, or as an answer) and, where it has a summary, once as a conversation."""
    is_private_method = d.name.startswith("__")
    if is_private_method or rng.random() < 0.3:
        yield f"{BOS}{d.source}\n{EOS}"
    else:
        by_summary = f"Write a {d.kind}: {d.summary}" if d.summary else ""
        ask = by_summary if by_summary and rng.random() < 0.3 else _ask(WRITE_ASKS, d, rng)
        yield render_chat([*_system(rng), ("user", ask), ("assistant", d.source)])
    if d.summary and not is_private_method:
        yield render_chat([*_system(rng), *_talk(d, rng)])


def _talk(d: Definition, rng: random.Random) -> list[Message]:
    if rng.random() < 0.1:
        return [("user", _ask(WHERE_ASKS, d, rng)), ("assistant", f"{d.name} is defined in the module {d.module}.")]
    described = [("user", _ask(DESCRIBE_ASKS, d, rng)), ("assistant", d.summary)]
    if rng.random() < 0.2:
        return [*described, ("user", rng.choice(FOLLOW_UPS)), ("assistant", d.source)]
    return described


def _ask(asks: tuple[str, ...], d: Definition, rng: random.Random) -> str:
    return rng.choice(asks).format(kind=d.kind, name=d.name)


def _system(rng: random.Random) -> list[Message]:
    return [("system", rng.choice(SYSTEM_LINES))] if rng.random() < 0.15 else []


def hand_written_documents(rng: random.Random) -> Iterator[str]:
    """Greetings and questions about itself, so that a first "Hello" gets an answer."""
    pairs = [(ask, answer) for answer, asks in HAND_WRITTEN.items() for ask in asks]
    for ask, answer in pairs * HAND_WRITTEN_COPIES:
        yield render_chat([*_system(rng), ("user", ask), ("assistant", answer)])


def build_documents(paths: list[Path], rng: random.Random) -> list[str]:
    """Every file whole, and its definitions one by one. Each document begins with BOS and ends with EOS."""
    documents = []
    for path in paths:
        text = read_source(path)
        if text.strip():
            documents.append(f"{BOS}{text}{EOS}")
        for definition in definitions(path, text):
            documents.extend(definition_documents(definition, rng))
    return documents


def training_texts(rng: random.Random, max_files: int | None) -> list[str]:
    """Everything that is trained on; ``max_files`` limits the library's files and the reference's topics alike."""
    files = [path for path in library_files() if not is_held_out(path)][:max_files]
    reference = [f"{BOS}{text}{EOS}" for text in reference_texts()[:max_files]]
    return build_documents(files, rng) + reference + list(hand_written_documents(rng))


def held_out_texts(rng: random.Random, max_files: int | None) -> list[str]:
    """The same kinds of documents, made from the files that training does not see."""
    return build_documents([path for path in library_files() if is_held_out(path)][:max_files], rng)


# ---------------------------------------------------------------------------------------------------------- tokenizer


def train_tokenizer(documents: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE: any text round-trips, since all 256 bytes are tokens. Encoding prepends BOS."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def encode_documents(tokenizer: Tokenizer, documents: list[str]) -> list[Tensor]:
    encodings = tokenizer.encode_batch(documents, add_special_tokens=False)
    return [torch.tensor(encoding.ids, dtype=torch.int32) for encoding in encodings]


# -------------------------------------------------------------------------------------------------------------- model


@dataclasses.dataclass(frozen=True)
class Shape:
    """The model's sizes, under the names that Hugging Face's config.json gives them.

    Small because minutes are few: at equal time, twice as many weights see half the tokens and end with a higher loss.
    """

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


class Attention(nn.Module):
    """Causal grouped-query attention with rotate-half RoPE."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.group_size = shape.num_attention_heads // shape.num_key_value_heads
        q_size, kv_size = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
        self.q_proj = nn.Linear(shape.hidden_size, q_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(q_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = (self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (t.repeat_interleave(self.group_size, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Trunk(nn.Module):
    """Everything but the output head; named ``model`` in a checkpoint."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class Llama(nn.Module):
    """A Llama with the parameter names of Hugging Face's LlamaForCausalLM. Token ids (B, T) to logits (B, T, V)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        self.lm_head = nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        cos, sin = rotary_tables(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        residual_std = 0.02 / math.sqrt(2 * self.shape.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=residual_std if is_residual else 0.02)

    def forward(self, token_ids: Tensor) -> Tensor:
        cos, sin = self.cos[: token_ids.shape[1]], self.sin[: token_ids.shape[1]]
        x = self.model.embed_tokens(token_ids)
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        logits: Tensor = self.lm_head(self.model.norm(x))
        return logits


def rotary_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (positions, head_dim); the second half of a row repeats the first."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    angles = torch.outer(torch.arange(shape.max_position_embeddings).float(), shape.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE as Hugging Face's Llama pairs it: dimension i with i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


# ----------------------------------------------------------------------------------------------------------- training


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of training: the size of its updates, and the chance of each sequence length."""

    until: float  # progress, in (0, 1]
    tokens_per_step: int
    lengths: dict[int, float]

    def choose_length(self, rng: random.Random) -> int:
        return rng.choices(list(self.lengths), list(self.lengths.values()))[0]


# Many small updates on short sequences learn syntax soonest; every position up to 2048 is then seen before the end.
PHASES = (
    Phase(until=0.5, tokens_per_step=1024, lengths={256: 0.6, 512: 0.3, 1024: 0.1}),
    Phase(until=1.0, tokens_per_step=2048, lengths={512: 0.5, 1024: 0.25, 2048: 0.25}),
)
EVALUATED_AT_ONCE_TOKENS = 4096
WARMUP = 0.03
LOG_EVERY_S = 10.0
MUON_LR = 5e-3
ADAMW_LR = 2e-2
MUON_ROUNDS = 3  # of Newton-Schulz, not the usual 5: at this size they cost more than they bring
EVALUATED_TOKENS = 100_000


@dataclasses.dataclass(frozen=True)
class Budget:
    """Training ends at whichever comes first. The schedule follows progress towards that end, not a step count."""

    seconds: float
    max_steps: int | None

    def progress(self, elapsed_s: float, steps: int) -> float:
        by_steps = steps / self.max_steps if self.max_steps else 0.0
        return min(1.0, max(elapsed_s / self.seconds, by_steps))


class TokenStream:
    """An endless stream of token ids: every document once per epoch, in a new order each time."""

    def __init__(self, documents: list[Tensor], rng: random.Random) -> None:
        self._documents = list(documents)
        self._rng = rng
        self._rest = torch.empty(0, dtype=torch.int32)

    def take(self, num_sequences: int, length: int) -> Tensor:
        """The next (num_sequences, length + 1) ids: a row is ``length`` inputs and, one further on, their targets."""
        needed = num_sequences * (length + 1)
        while len(self._rest) < needed:
            self._rng.shuffle(self._documents)
            self._rest = torch.cat((self._rest, *self._documents))
        taken, self._rest = self._rest[:needed], self._rest[needed:]
        return taken.view(num_sequences, length + 1).long()


def learning_rate_scale(progress: float) -> float:
    """Linear warm-up to 1, then half a cosine down to 0.02."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    angle = math.pi * (progress - WARMUP) / (1.0 - WARMUP)
    return 0.02 + 0.98 * 0.5 * (1.0 + math.cos(angle))


def current_phase(progress: float) -> Phase:
    return next(phase for phase in PHASES if progress <= phase.until)


def next_token_loss(model: Llama, batch: Tensor) -> Tensor:
    """Mean cross entropy in nats per token."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def build_optimizers(model: Llama) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices; AdamW for embeddings, head and norms, which Muon is not meant for."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    in_layers = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in in_layers]
    muon = torch.optim.Muon(
        matrices, lr=MUON_LR, weight_decay=0.05, ns_steps=MUON_ROUNDS, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(others, lr=ADAMW_LR, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


def train_step(model: Llama, optimizers: list[torch.optim.Optimizer], batch: Tensor, scale: float) -> float:
    """One update at ``scale`` times each optimizer's peak rate; returns the batch's loss before it."""
    loss = next_token_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, peak in zip(optimizers, (MUON_LR, ADAMW_LR), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * scale
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where training stopped."""

    seconds: float
    steps: int
    tokens: int
    epochs: float


def train(model: Llama, documents: list[Tensor], budget: Budget, rng: random.Random) -> Progress:
    """Updates ``model`` in place until the budget is spent."""
    stream, optimizers = TokenStream(documents, rng), build_optimizers(model)
    epoch_tokens = sum(len(d) for d in documents)
    start_s, next_log_s, steps, tokens = time.perf_counter(), 0.0, 0, 0
    smoothed = math.log(model.shape.vocab_size)
    while (progress := budget.progress(elapsed_s := time.perf_counter() - start_s, steps)) < 1.0:
        phase = current_phase(progress)
        length = phase.choose_length(rng)
        batch = stream.take(phase.tokens_per_step // length, length)
        loss = train_step(model, optimizers, batch, learning_rate_scale(progress))
        steps, tokens, smoothed = steps + 1, tokens + batch.numel(), 0.95 * smoothed + 0.05 * loss
        if elapsed_s >= next_log_s:
            print(
                f"{elapsed_s:6.0f} s  {progress:4.0%}  step {steps:5d}  {tokens:9d} tokens  loss {smoothed:.3f}",
                flush=True,
            )
            next_log_s = elapsed_s + LOG_EVERY_S
    return Progress(time.perf_counter() - start_s, steps, tokens, tokens / epoch_tokens)


@torch.inference_mode()
def evaluate(model: Llama, documents: list[Tensor], length: int) -> float:
    """Mean nats per token over the documents' first EVALUATED_TOKENS, laid end to end and cut to ``length``."""
    rows = torch.cat(documents)[:EVALUATED_TOKENS]
    rows = rows[: len(rows) // (length + 1) * (length + 1)].view(-1, length + 1).long()
    batches = torch.split(rows, EVALUATED_AT_ONCE_TOKENS // length)
    return sum(next_token_loss(model, b).item() * len(b) for b in batches) / len(rows)


# ------------------------------------------------------------------------------------------------------------- saving


def round_to_bf16(model: Llama) -> None:
    """Rounds the weights in place to what will be stored, so that the losses reported are the stored model's."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())


def save_model(model: Llama, tokenizer: Tokenizer, out: Path) -> None:
    """Writes weights (bf16), configuration and tokenizer to ``out``, over what is there."""
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.bfloat16().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(out / "tokenizer.json"))
    ids = {"bos_token_id": tokenizer.token_to_id(BOS), "eos_token_id": tokenizer.token_to_id(EOS)}
    write_json(out / "config.json", model_config(model.shape, ids))
    write_json(out / "generation_config.json", ids)
    write_json(out / "tokenizer_config.json", tokenizer_config(model.shape))


def model_config(shape: Shape, special_ids: dict[str, int | None]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        **dataclasses.asdict(shape),
        **special_ids,
    }


def tokenizer_config(shape: Shape) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def make_report(
    model: Llama, documents: list[Tensor], held_out: list[Tensor], held_out_bytes: int, progress: Progress
) -> dict[str, object]:
    """What the model card states, of the weights as stored. Losses are nats per token."""
    sample = random.Random(0).sample(documents, len(documents))
    nats_per_token = evaluate(model, held_out, 512)
    tokens_per_byte = sum(map(len, held_out)) / held_out_bytes
    return {
        "command": shlex.join(["python", *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "training_s": round(progress.seconds),
        "steps": progress.steps,
        "tokens": progress.tokens,
        "epochs": round(progress.epochs, 2),
        "train_loss": round(evaluate(model, sample, 512), 4),
        "held_out_loss": round(nats_per_token, 4),
        "held_out_loss_at_2048": round(evaluate(model, held_out, 2048), 4),
        "held_out_bits_per_byte": round(nats_per_token * tokens_per_byte / math.log(2), 4),
    }


# -------------------------------------------------------------------------------------------------------- entry point


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demonstration model on Python's standard library.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=15.0, help="wall-clock budget of training (default: 15)")
    parser.add_argument("--seed", type=int, default=0, help="order of the data and first weights (default: 0)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--max-steps", type=int, help="stop after so many steps, for a smoke test")
    parser.add_argument("--max-files", type=int, help="read only so many files of each kind, for a smoke test")
    return parser.parse_args()


def main() -> None:
    args, start_s = parse_arguments(), time.perf_counter()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)

    texts, unseen_texts = training_texts(rng, args.max_files), held_out_texts(rng, args.max_files)
    tokenizer = train_tokenizer(texts, Shape.vocab_size)
    documents, held_out = (encode_documents(tokenizer, t) for t in (texts, unseen_texts))
    print(f"{sum(map(len, documents))} tokens to train on, {sum(map(len, held_out))} held out", flush=True)

    model = Llama(Shape())
    progress = train(model, documents, Budget(args.minutes * 60.0, args.max_steps), rng)
    round_to_bf16(model)
    save_model(model, tokenizer, args.out)
    report = make_report(model, documents, held_out, sum(len(t.encode()) for t in unseen_texts), progress)
    report["total_s"] = round(time.perf_counter() - start_s)
    write_json(args.out / "training.json", report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
