"""`twinpool bench engine`: our engine and transformers' `generate`, turn by turn, with the same weights and prompts.

Knows the order of the measurements and what is made of them; each side measures itself.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from twinpool.cluster.bench.engine_ours import EngineSetup, OurEngine
from twinpool.cluster.bench.engine_peer import Peer, import_transformers, write_dummy_checkpoint
from twinpool.cluster.bench.engine_room import check_room
from twinpool.cluster.bench.generation import Generations, draw_prompts
from twinpool.cluster.bench.measures import percentiles, spread
from twinpool.core.errors import SpecError
from twinpool.core.spec_file import PSEUDO_PATHS
from twinpool.model.config import load_model_config
from twinpool.model.dummy_shapes import DUMMY
from twinpool.model.shape import load_shape
from twinpool.model.weights import choose_dtype

Values = dict[str, Any]
COLUMNS = (
    *("model", "dtype", "threads", "concurrency", "tokens_per_s", "ttft_s.p50", "tpot_s.p50"),
    *("peer", "peer_tokens_per_s", "ratio", "ratio_spread.min", "ratio_spread.max", "tokens_equal"),
)
ONE_BY_ONE = "transformers-generate"
BATCHED = "transformers-generate-batched"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What to measure of one model."""

    model: str
    dtype: str = "auto"
    threads: int = 1
    concurrency: tuple[int, ...] = (1, 8)
    prompt_tokens: int = 64
    new_tokens: int = 64
    runs: int = 5
    seed: int = 0
    deterministic: bool = False
    quantization: str = "none"


@dataclass(frozen=True, slots=True)
class Round:
    """The same prompts, answered by us and by each peer."""

    ours: Generations
    peers: dict[str, Generations]


def bench_engine(options: EngineOptions) -> list[Values]:
    """Measure one model: a row for each concurrency and peer.

    Raises:
        SpecError: the model cannot be loaded by both, or is too large for this machine, or the lengths do not fit it;
            transformers is not installed. Nothing was measured.
    """
    import_transformers()  # before anything is loaded
    _check(options)
    dtype = choose_dtype(options.model, load_model_config(options.model), options.dtype)
    check_room(_setup(options, options.model, dtype, max(options.concurrency)))
    rows: list[Values] = []
    with _checkpoint(options.model, dtype) as path:
        peer = Peer(path, dtype, options.threads)
        for concurrency in options.concurrency:
            rows += _measure(options, path, dtype, peer, concurrency)
    return rows


def _check(options: EngineOptions) -> None:
    if options.model.startswith(PSEUDO_PATHS) and not options.model.startswith(DUMMY):
        raise SpecError(f"--model: {options.model!r} computes nothing; give a directory or dummy:SHAPE")
    limit = load_shape(options.model, options.dtype).max_position_embeddings
    if options.prompt_tokens + options.new_tokens > limit:
        what = f"{options.prompt_tokens} + {options.new_tokens} tokens are over the model's {limit}"
        raise SpecError(f"--prompt-tokens: {what}")


@contextmanager
def _checkpoint(model: str, dtype: str) -> Iterator[str]:
    """A directory that both sides can load."""
    if not model.startswith(DUMMY):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="twinpool-bench-") as folder:
        write_dummy_checkpoint(model, dtype, Path(folder))
        yield folder


def _setup(options: EngineOptions, path: str, dtype: str, concurrency: int) -> EngineSetup:
    return EngineSetup(
        model=path,
        dtype=dtype,
        threads=options.threads,
        max_model_len=options.prompt_tokens + options.new_tokens,
        concurrency=concurrency,
        deterministic=options.deterministic,
        quantization=options.quantization,
    )


def _measure(options: EngineOptions, path: str, dtype: str, peer: Peer, concurrency: int) -> list[Values]:
    setup = _setup(options, path, dtype, concurrency)
    vocab_size = load_shape(path, dtype).vocab_size
    rng = np.random.default_rng([options.seed, concurrency])
    ours = OurEngine(setup)
    try:
        rounds = []
        for _ in range(1 + options.runs):
            prompts = draw_prompts(rng, concurrency, options.prompt_tokens, vocab_size)
            rounds.append(_round(ours, peer, prompts, options.new_tokens))
    finally:
        ours.close()
    common = {"model": options.model, "dtype": dtype, "threads": options.threads, "concurrency": concurrency}
    more = {name: getattr(options, name) for name in ("prompt_tokens", "new_tokens", "deterministic", "quantization")}
    names = rounds[0].peers
    return [common | compare(rounds[1:], name) | more for name in names]  # the first round warms up


def _round(ours: OurEngine, peer: Peer, prompts: Sequence[list[int]], new_tokens: int) -> Round:
    mine = ours.generate(prompts, new_tokens)
    peers = {ONE_BY_ONE: peer.one_by_one(prompts, new_tokens)}
    if len(prompts) > 1:
        peers[BATCHED] = peer.batched(prompts, new_tokens)
    return Round(mine, peers)


def compare(rounds: Sequence[Round], name: str) -> Values:
    """The row of one peer: medians over the rounds, and how far single rounds were from them."""
    ours = [each.ours.tokens_per_s for each in rounds]
    theirs = [each.peers[name].tokens_per_s for each in rounds]
    times = [time for each in rounds for time in each.ours.times]
    return {
        "tokens_per_s": median(ours),
        "peer": name,
        "peer_tokens_per_s": median(theirs),
        "ratio": median(ours) / median(theirs),
        "ratio_spread": spread([mine / peer for mine, peer in zip(ours, theirs, strict=True)]),
        "spread": spread(ours),
        "peer_spread": spread(theirs),
        "runs": len(rounds),
        "ttft_s": percentiles([time.ttft_s for time in times]),
        "tpot_s": percentiles([time.tpot_s for time in times]),
        "tokens_equal": all(each.ours.token_ids == each.peers[name].token_ids for each in rounds),
        "equal_tokens_share": _equal_share(rounds, name),
    }


def unequal(rows: Sequence[Values]) -> list[str]:
    """Where greedy tokens differ though both sides computed in float32: a sentence for each such row."""
    return [
        f"{row['model']}: at concurrency {row['concurrency']} the tokens differ from those of {row['peer']}"
        for row in rows
        if row["dtype"] == "float32" and row["quantization"] == "none" and not row["tokens_equal"]
    ]


def _equal_share(rounds: Sequence[Round], name: str) -> float:
    """Share of tokens before the first difference of each answer."""
    equal = total = 0
    for each in rounds:
        for mine, theirs in zip(each.ours.token_ids, each.peers[name].token_ids, strict=True):
            pairs = list(zip(mine, theirs, strict=True))
            equal += next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))
            total += len(pairs)
    return equal / total
