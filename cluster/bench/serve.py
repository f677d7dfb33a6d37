"""`twinpool bench serve`: offers a load to a running cluster and says what its clients saw.

Knows how one load is made and measured; starts no cluster.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinpool.client.client import AsyncClient
from twinpool.client.results import ModelInfo
from twinpool.client.timeout import Timeout
from twinpool.cluster.bench.load import make_offers, offer_load
from twinpool.cluster.bench.measures import Outcome, summarise
from twinpool.cluster.bench.report import Column
from twinpool.core.errors import SpecError
from twinpool.core.messages import Goal
from twinpool.simulator.traces.arrivals import MAX_REQUESTS, Process, draw_arrivals
from twinpool.simulator.traces.lengths import Length, read_lengths

Values = dict[str, Any]
LOAD_COLUMNS: tuple[Column, ...] = (
    *("pools", ("rate_rps", "rate/s"), ("requests", "sent"), ("completed", "done")),
    *(("slo_attainment", "met"), ("goodput_rps", "met/s"), ("tokens_per_s", "tokens/s")),
    *(("ttft_s.p50", "TTFT p50"), ("ttft_s.p99", "p99"), ("tpot_s.p50", "TPOT p50"), ("tpot_s.p99", "p99")),
)
COLUMNS: tuple[Column, ...] = ("cluster", *LOAD_COLUMNS, ("e2e_s.p99", "all p99"))
MAX_WAIT_S = 86_400.0
DEFAULT_DURATION_S = 30.0


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """A load, as it is asked for."""

    rate_rps: float
    goal: Goal
    duration_s: float = np.inf
    requests: int = MAX_REQUESTS
    process: Process = Process.POISSON
    cv: float = 1.0
    lengths_path: Path | None = None
    prompt_tokens: int = 128  # without a file
    new_tokens: int = 64
    drain_s: float = 60.0
    seed: int = 0
    goal_class: str | None = None
    tenant: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One load's outcomes, and the cluster they are from."""

    cluster: Values
    num_workers: int
    outcomes: list[Outcome]
    wall_s: float


def load_options(
    rate_rps: float,
    duration_s: float | None,
    requests: int | None,
    *,
    process: str,
    goal_ttft_s: float,
    goal_tpot_s: float,
    **others: Any,
) -> LoadOptions:
    """A load from plain values; bounded to 30 s where nothing else bounds it. ``others`` are LoadOptions' own."""
    if duration_s is None:
        duration_s = DEFAULT_DURATION_S if requests is None else np.inf
    return LoadOptions(
        rate_rps=rate_rps,
        duration_s=duration_s,
        requests=MAX_REQUESTS if requests is None else requests,
        process=Process(process),
        goal=Goal(goal_ttft_s, goal_tpot_s),
        **others,
    )


def bench_serve(options: LoadOptions, find_addresses: Callable[[], Sequence[str]]) -> list[Values]:
    """Measure one load on a running cluster.

    Raises:
        SpecError: the load is wrong, or there is no such cluster.
    """
    check_load(options)
    return [row_of(options, [asyncio.run(measure_load(find_addresses(), options))])]


def check_load(options: LoadOptions) -> None:
    """Raise SpecError for what is wrong with a load whatever the cluster, before any is started or asked."""
    _draw(options, 0)
    if options.lengths_path is not None:
        read_lengths(options.lengths_path)


async def measure_load(addresses: Sequence[str], options: LoadOptions, turn: int = 0) -> Measured:
    """Offer a load, after a few requests that open the links between workers.

    Args:
        turn: of repeated measurements; arrivals and prompts are a function of (seed, turn).

    Raises:
        SpecError: the load does not fit the model; ConnectionFailed: no gateway answers. Nothing was measured.
    """
    timeout = Timeout(first_token_s=MAX_WAIT_S, between_tokens_s=MAX_WAIT_S, total_s=MAX_WAIT_S)  # drain_s decides
    async with AsyncClient(addresses, timeout=timeout, tenant=options.tenant) as client:
        status, (model, *_) = await client.status(), await client.models()
        lengths = _lengths(options, model.max_model_len)
        rng, arrivals_s = _draw(options, turn)
        offers = make_offers(rng, arrivals_s, lengths, model.vocab_size)
        await _warm_up(client, rng, model, 2 * len(status.workers))
        outcomes, wall_s = await offer_load(client, offers, options.goal, options.drain_s, options.goal_class)
    pools = Counter(worker.role for worker in status.workers)
    cluster = {"cluster": status.name, "model": status.model, "pools": dict(sorted(pools.items()))}
    return Measured(cluster, len(status.workers), outcomes, wall_s)


def row_of(options: LoadOptions, parts: Sequence[Measured]) -> Values:
    """One result of one or several measurements of the same load on clusters alike: all their requests together."""
    outcomes = [outcome for part in parts for outcome in part.outcomes]
    wall_s = sum(part.wall_s for part in parts)
    whys = Counter(outcome.why for outcome in outcomes if outcome.why)
    return {
        **parts[0].cluster,
        "rate_rps": options.rate_rps,
        "arrivals": str(options.process),
        "cv": options.cv if options.process is Process.GAMMA else 1.0,
        "seed": options.seed,
        "rounds": len(parts),
        **summarise(outcomes, options.goal, wall_s, parts[0].num_workers),
        "reasons": dict(whys.most_common(5)),
    }


def _draw(options: LoadOptions, turn: int) -> tuple[np.random.Generator, Any]:
    rng = np.random.default_rng([options.seed, turn])
    arrivals_s = draw_arrivals(
        rng,
        options.process,
        options.rate_rps,
        duration_s=options.duration_s,
        requests=options.requests,
        cv=options.cv,
    )
    return rng, arrivals_s


def _lengths(options: LoadOptions, max_model_len: int) -> tuple[Length, ...]:
    if options.lengths_path is not None:
        return read_lengths(options.lengths_path, max_model_len)
    length = Length(options.prompt_tokens, options.new_tokens)
    if sum(length) > max_model_len:
        what = f"{length[0]} + {length[1]} tokens are over the model's max_model_len {max_model_len}"
        raise SpecError(f"--prompt-tokens: {what}")
    return (length,)


async def _warm_up(client: AsyncClient, rng: np.random.Generator, model: ModelInfo, count: int) -> None:
    """Requests at once that are not measured. Raises what one of them raises: such a cluster has nothing to measure."""
    length = Length(min(32, model.max_model_len // 2), min(4, model.max_model_len // 2))
    offers = make_offers(rng, np.zeros(count), (length,), model.vocab_size)
    answers = [
        client.generate(offer.prompt, max_tokens=offer.new_tokens, temperature=0.0, ignore_eos=True) for offer in offers
    ]
    await asyncio.gather(*answers)
