"""`twinpool profile`: measures the workers of a cluster that need not be up, and writes a profile file.

Knows the order of things and what is told; grid, probes and fits do the work.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twinpool.cluster.bench.report import describe_machine
from twinpool.cluster.launch import plan_launch
from twinpool.cluster.profile.grid import Limits, plan_bursts
from twinpool.cluster.profile.handoffs import HandoffMeasurement
from twinpool.cluster.profile.measure import Measurement, Ping
from twinpool.cluster.profile.probe import Probe, probing
from twinpool.cluster.profile.result import kind_profile
from twinpool.cluster.profile.rows import Handoffs, Row
from twinpool.cluster.profile_file import write_profile
from twinpool.core.errors import SpecError
from twinpool.core.messages import Role, WorkerConfig
from twinpool.model.shape import ModelShape, load_shape
from twinpool.router.latency_profile import LatencyProfile, kind_name

Values = dict[str, Any]
GRID_S, QUICK_GRID_S = 55.0, 9.0  # for all kinds of workers together
ROUNDS, QUICK_ROUNDS = 5, 3
REPEATS, QUICK_REPEATS = 7, 3
SEED = 0


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """How much is measured."""

    grid_s: float = GRID_S
    rounds: int = ROUNDS  # of the grid, at most
    repeats: int = REPEATS  # of each size of handoff
    quick: bool = False

    @property
    def about_s(self) -> float:
        """How long all of it takes, where a model loads and hands over fast."""
        return 10.0 + self.grid_s

    @classmethod
    def of(cls, *, quick: bool) -> "ProfileOptions":
        """The full measurement, or the quick one."""
        return cls(QUICK_GRID_S, QUICK_ROUNDS, QUICK_REPEATS, True) if quick else cls()


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured of a cluster. ``rows`` are by role."""

    profile: LatencyProfile
    rows: dict[str, list[Row]]
    handoffs: Handoffs | None
    ping: Ping
    wall_s: float

    def as_values(self) -> Values:
        """What is printed with --json."""
        return {
            **self.profile.model_dump(mode="json"),
            "steps_measured": {role: sum(row.samples for row in rows) for role, rows in self.rows.items()},
            "link": self.handoffs.link if self.handoffs else None,
            "idle_step_s": self.ping.step_s,
            "wall_s": self.wall_s,
        }


def profile_cluster(spec_path: Path, options: ProfileOptions, tell: Callable[[str], None]) -> Measured:
    """Measure a worker of each kind that the YAML describes, in processes of their own.

    ``tell`` is called once, when the YAML is known to be good, with what a user may want to know.

    Raises:
        SpecError: the YAML is wrong, or a worker cannot start. Nothing is left running.
    """
    plan = plan_launch(spec_path)
    config = plan.workers[0]
    shape = load_shape(config.model, config.dtype, config.quantization)
    tell(f"measuring, for about {options.about_s:.0f} s")
    begun_s = time.monotonic()
    rows, handoffs, ping = asyncio.run(_measure(plan.workers, shape, options))
    kinds = {}
    for worker, found in rows:
        limits = _limits(worker, worker.kv_bytes // shape.kv_token_bytes)
        kinds[kind_name(worker.role)] = kind_profile(worker.role, found, handoffs, limits, shape.kv_token_bytes)
    profile = LatencyProfile(
        version=1,
        model=config.model,
        machine=_machine(),
        dtype=shape.kv_layout.dtype,
        message_s=ping.message_s,
        kinds=kinds,
    )
    by_role = {str(worker.role): found for worker, found in rows}
    return Measured(profile, by_role, handoffs, ping, time.monotonic() - begun_s)


async def _measure(
    workers: Sequence[WorkerConfig], shape: ModelShape, options: ProfileOptions
) -> tuple[list[tuple[WorkerConfig, list[Row]]], Handoffs | None, Ping]:
    """Rows for one worker of each role, handoffs, and the first worker's messages."""
    firsts = list({worker.role: worker for worker in reversed(workers)}.values())[::-1]
    kinds = {_alike(worker): worker for worker in reversed(firsts)}
    measured: dict[WorkerConfig, list[Row]] = {}
    ping = Ping(0.0, 0.0)
    for kind, worker in reversed(kinds.items()):
        async with probing([worker]) as (probe,):
            measurement = Measurement(probe, shape.vocab_size, SEED)
            await measurement.ping()  # warms up
            if not measured:
                ping = await measurement.ping()
            await _run_grid(measurement, _limits(worker, probe.total_tokens), options, options.grid_s / len(kinds))
            measured[kind] = measurement.rows()
    handoffs = None
    if (pair := _pair(workers)) is not None:
        async with probing(pair) as (source, target):
            handoffs = await _hand_over(source, target, shape, _limits(pair[0], source.total_tokens), options)
    return [(worker, measured[_alike(worker)]) for worker in firsts], handoffs, ping


async def _run_grid(measurement: Measurement, limits: Limits, options: ProfileOptions, seconds: float) -> None:
    bursts = plan_bursts(limits, quick=options.quick)
    await measurement.run(bursts, until_s=time.monotonic() + seconds, max_rounds=options.rounds)


async def _hand_over(
    source: Probe, target: Probe, shape: ModelShape, limits: Limits, options: ProfileOptions
) -> Handoffs:
    longest = min(limits.max_model_len - 2, limits.total_tokens // 2)
    sizes = [max(1, longest // 16), longest] if options.quick else [max(1, longest // part) for part in (16, 4, 2, 1)]
    measurement = HandoffMeasurement(source, target, Measurement(source, shape.vocab_size, SEED + 1))
    return await measurement.run(sizes, max(1, longest // 4), options.repeats)


def _alike(worker: WorkerConfig) -> WorkerConfig:
    """Workers of the same value compute alike: only how many cores they have counts, not which."""
    return replace(worker, worker_id="", role=Role.MIXED, cores=tuple(range(len(worker.cores))))


def _pair(workers: Sequence[WorkerConfig]) -> tuple[WorkerConfig, WorkerConfig] | None:
    """Two that hand over; None where nobody does."""
    source = next((worker for worker in workers if worker.role is not Role.DECODE), None)
    targets = [worker for worker in workers if worker is not source and worker.role is not Role.PREFILL]
    return (source, targets[0]) if source is not None and targets else None


def _limits(worker: WorkerConfig, total_tokens: int) -> Limits:
    return Limits(worker.max_model_len, worker.chunk_tokens, worker.max_running, total_tokens, worker.block_tokens)


def _machine() -> str:
    machine = describe_machine()
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"


def run_profile(spec_path: Path, out: Path, *, quick: bool, as_json: bool) -> None:
    """Measure, write the file, and say what is in it.

    Raises:
        SpecError: the YAML or the file's place is wrong. Nothing was measured.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise SpecError(f"--out: {out} is no place for a file")
    options = ProfileOptions.of(quick=quick)
    measured = profile_cluster(spec_path, options, _tell)
    write_profile(out, measured.profile)
    from twinpool.cluster.profile.show import print_profile

    print_profile(measured, out, as_json=as_json)


def _tell(sentence: str) -> None:
    sys.stderr.write(f"twinpool: {sentence}\n")
