"""`twinpool bench gateway`: what a streamed token costs a gateway, and what it costs a server that does no more.

Knows which server is measured when; measuring streams is cluster/bench/streams.py's.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import Any

from twinpool.client.client import AsyncClient
from twinpool.cluster.bench.echo import METHOD as ECHO_METHOD
from twinpool.cluster.bench.echo import REQUEST as ECHO_REQUEST
from twinpool.cluster.bench.measures import spread
from twinpool.cluster.bench.streams import Sample, StreamOptions, measure_idle, measure_streams
from twinpool.cluster.own_cluster import own_cluster
from twinpool.cluster.state import StateFolder
from twinpool.core.errors import Internal, SpecError
from twinpool.model.modelled_shape import modelled_shape
from twinpool.protos.twinpool.v1 import generation_pb2 as pb

Values = dict[str, Any]
COLUMNS = (
    *("model", "workers", "streams", "connections", "tokens_per_s", "tokens_per_message", "cores", "idle_cores"),
    *("cores_per_1000_tokens_per_s", "spread.min", "spread.max", "echo_cores_per_1000_tokens_per_s"),
    "fraction_of_limit",
)
GENERATE_METHOD = f"/{pb.DESCRIPTOR.services_by_name['GenerationService'].full_name}/Generate"
PROMPT_TOKENS = 8
IDLE_S = 3.0
ECHO_STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """The load of one gateway."""

    model: str = "modelled:paced"
    workers: int = 2
    streams: int = 64
    connections: int = 8
    duration_s: float = 10.0
    runs: int = 3
    new_tokens: int = 8192  # of each stream; those that end are opened again

    @property
    def per_run(self) -> StreamOptions:
        return StreamOptions(self.streams, self.connections, self.duration_s)


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement of the gateway and, at the same pace, of the echo."""

    idle_cores: float
    gateway: Sample
    echo: Sample


def bench_gateway(options: GatewayOptions, folder: StateFolder) -> list[Values]:
    """Bring a cluster of modelled workers up, measure, take it down.

    Raises:
        SpecError: the model is not a modelled one, or the cluster cannot start. Nothing is left running.
    """
    modelled_shape(options.model)
    spec: Values = {
        "model": {"path": options.model, "max_model_len": 2 * options.new_tokens},
        "pools": {"mixed": {"workers": options.workers}},
        "kv": {"memory": "256MiB"},
        "batching": {"max_running": max(1, options.streams)},
        "router": {"policy": "least_loaded", "disaggregate": "never"},
        "goals": {"default": {"ttft_s": 3600.0, "tpot_s": 3600.0}},
    }
    with own_cluster(spec, f"bench-{os.getpid()}-gateway", folder) as state:
        return [row_of(options, asyncio.run(measure_turns(state.grpc[0], options)))]


async def measure_turns(address: str, options: GatewayOptions) -> list[Turn]:
    """Measure the gateway at an address and the echo, turn by turn."""
    async with AsyncClient(address) as client:
        status = await client.status()
    pid = next(gateway.pid for gateway in status.gateways)
    turns = []
    for _ in range(options.runs):
        idle_cores = await measure_idle(pid, min(IDLE_S, options.duration_s))
        gateway = await measure_streams(
            address, pid, GENERATE_METHOD, _generate_requests(options.new_tokens), options.per_run
        )
        with _echo_server() as (echo_address, echo_pid):
            pace = _echo_requests(options.streams / gateway.tokens_per_s)
            echo = await measure_streams(echo_address, echo_pid, ECHO_METHOD, pace, options.per_run)
        turns.append(Turn(idle_cores, gateway, echo))
    return turns


def row_of(options: GatewayOptions, turns: list[Turn]) -> Values:
    """The result: medians over the turns."""
    costs = [turn.gateway.cores_per_1000_tokens_per_s for turn in turns]
    limits = [turn.echo.cores_per_1000_tokens_per_s for turn in turns]
    return {
        "model": options.model,
        "workers": options.workers,
        "streams": options.streams,
        "connections": options.connections,
        "runs": len(turns),
        "tokens_per_s": median(turn.gateway.tokens_per_s for turn in turns),
        "tokens_per_message": median(turn.gateway.tokens / turn.gateway.messages for turn in turns),
        "cores": median(turn.gateway.cores for turn in turns),
        "idle_cores": median(turn.idle_cores for turn in turns),
        "cores_per_1000_tokens_per_s": median(costs),
        "spread": spread(costs),
        "peer": "grpc.aio-echo",
        "echo_tokens_per_s": median(turn.echo.tokens_per_s for turn in turns),
        "echo_cores_per_1000_tokens_per_s": median(limits),
        "echo_spread": spread(limits),
        "fraction_of_limit": median(limits) / median(costs) if median(costs) else None,
    }


def _generate_requests(new_tokens: int) -> Iterator[bytes]:
    """Prompts that begin differently, so that no worker has them cached."""
    for number in count():
        ids = [number % 30_000, *range(1, PROMPT_TOKENS)]
        sampling = pb.SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        yield pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling).SerializeToString()


def _echo_requests(interval_s: float) -> Iterator[bytes]:
    """The echo streams what a gateway's middle message looks like."""
    message = pb.GenerateResponse(request_id="0123456789abcdef", index=1000, token_ids=[12_345]).SerializeToString()
    while True:
        yield ECHO_REQUEST.pack(interval_s, len(message)) + message


@contextmanager
def _echo_server() -> Iterator[tuple[str, int]]:
    """An echo in a process of its own: its address and pid."""
    command = [sys.executable, "-m", "twinpool.cluster.bench.echo"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        if not port:
            raise Internal("the echo server ended before it listened")
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.stdin.close()
        try:
            process.wait(ECHO_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def check_options(options: GatewayOptions) -> None:
    """Raise SpecError for a load that makes no sense, before anything starts."""
    if options.connections > options.streams:
        raise SpecError(f"--connections: {options.connections} are over the {options.streams} streams")
