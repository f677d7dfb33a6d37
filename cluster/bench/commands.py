"""The commands of `twinpool bench`. Each imports what it measures when it is run, so that others start fast."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from twinpool.cluster.bench.kernels_command import kernels
from twinpool.cluster.bench.simulator_command import simulator
from twinpool.cluster.cli_options import AddressOption, JsonOption, TenantOption, addresses, folder, silence_grpc
from twinpool.core.errors import Internal

app = typer.Typer(help="Measure this machine, beside what it is compared with.", no_args_is_help=True)
app.command()(kernels)

SeedOption = Annotated[int, typer.Option(help="of prompts and arrivals", min=0)]
POSITIVE = 1e-6


class Arrivals(StrEnum):
    """The spelling of arrivals.Process, which imports numpy."""

    POISSON = "poisson"
    GAMMA = "gamma"


class Dtype(StrEnum):
    """What weights are kept in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Quantization(StrEnum):
    """How our weights are kept; the peer's never are."""

    NONE = "none"
    INT8 = "int8"


class Switch(StrEnum):
    """What is measured of something that can be on or off."""

    ON = "on"
    OFF = "off"
    BOTH = "both"

    @property
    def states(self) -> tuple[bool, ...]:
        return {Switch.ON: (True,), Switch.OFF: (False,), Switch.BOTH: (True, False)}[self]


class KVDtype(StrEnum):
    """What KV is kept in."""

    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class ModelledPrefill(StrEnum):
    """What the source's engine does while a prefill lasts."""

    WAITS = "waits"
    COMPUTES = "computes"


class Part(StrEnum):
    """What is compared with the simulator."""

    MODELLED = "modelled"
    ENGINE = "engine"
    BOTH = "both"


def _whole_numbers(text: str) -> tuple[int, ...]:
    values = [part.strip() for part in text.split(",")]
    if not all(value.isascii() and value.isdigit() and 0 < int(value) <= 4096 for value in values):
        raise typer.BadParameter(f"must be whole numbers from 1 to 4096 such as 1,8, not {text!r}")
    return tuple(dict.fromkeys(map(int, values)))


@app.command()
def engine(
    model: Annotated[list[str] | None, typer.Option(help="directory or dummy:SHAPE; may be repeated")] = None,
    dtype: Annotated[Dtype, typer.Option(help="of both sides; auto is the model's own")] = Dtype.AUTO,
    threads: Annotated[int, typer.Option(help="CPU threads of each side", min=1, max=1024)] = 1,
    concurrency: Annotated[str, typer.Option(help="requests at once, one after the other setting")] = "1,8",
    prompt_tokens: Annotated[int, typer.Option(help="of each prompt", min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(help="of each answer", min=1)] = 64,
    runs: Annotated[int, typer.Option(help="alternated, after one to warm up", min=1)] = 5,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="our arithmetic")] = False,
    quantization: Annotated[Quantization, typer.Option(help="of our weights")] = Quantization.NONE,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Tokens per second of our engine, beside `generate` of the transformers library."""
    if deterministic and quantization is not Quantization.NONE:
        raise typer.BadParameter("--quantization cannot be had with --deterministic")
    settings: dict[str, Any] = {
        "dtype": str(dtype),
        "threads": threads,
        "concurrency": _whole_numbers(concurrency),
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "runs": runs,
        "seed": seed,
        "deterministic": deterministic,
        "quantization": str(quantization),
    }
    from twinpool.cluster.bench.engine import COLUMNS, EngineOptions, bench_engine, unequal
    from twinpool.cluster.bench.report import print_report

    rows = [row for name in model or ["dummy:tiny"] for row in bench_engine(EngineOptions(name, **settings))]
    print_report("bench engine", rows, COLUMNS, as_json=as_json)
    if told := unequal(rows):
        raise Internal("; ".join(told))


@app.command()
def serve(
    rate: Annotated[float, typer.Option(help="mean requests per second", min=POSITIVE, max=1e6)],
    duration: Annotated[
        float | None, typer.Option(help="seconds in which requests arrive; 30 without --requests", min=POSITIVE)
    ] = None,
    requests: Annotated[int | None, typer.Option(help="most requests that arrive", min=1)] = None,
    cluster: Annotated[str | None, typer.Option(help="name of a running cluster; by default the only one")] = None,
    address: AddressOption = None,
    compare: Annotated[
        Path | None, typer.Option(help="YAML of a cluster to bring up, and then as mixed workers", metavar="FILE")
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="of --compare; 1 unless given", min=1, max=100)] = None,
    arrivals: Annotated[Arrivals, typer.Option(help="how gaps are distributed")] = Arrivals.POISSON,
    cv: Annotated[float | None, typer.Option(help="of gamma gaps: deviation over mean", min=0.01, max=100)] = None,
    lengths: Annotated[
        Path | None, typer.Option(help=".csv or .jsonl with prompt_tokens and new_tokens", metavar="FILE")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="without --lengths", min=1)] = 128,
    new_tokens: Annotated[int, typer.Option(help="without --lengths", min=1)] = 64,
    goal_ttft: Annotated[float, typer.Option(help="seconds", min=POSITIVE, max=86_400)] = 1.0,
    goal_tpot: Annotated[float, typer.Option(help="seconds", min=POSITIVE, max=86_400)] = 0.05,
    goal_class: Annotated[str | None, typer.Option(help="whose priority and deadline requests have")] = None,
    tenant: TenantOption = None,
    drain: Annotated[float, typer.Option(help="seconds after the last arrival; then requests are cut", min=0)] = 60.0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Offer a load at a rate, whatever becomes of it, and say how many requests met their goals."""
    from twinpool.cluster.bench.report import print_report
    from twinpool.cluster.bench.serve import load_options

    if arrivals is not Arrivals.GAMMA and cv is not None:
        raise typer.BadParameter("--cv is for --arrivals gamma")
    if compare is None and rounds is not None:
        raise typer.BadParameter("--rounds is for --compare")
    if compare is not None and (cluster is not None or address is not None):
        raise typer.BadParameter("--compare brings its own clusters up: name none")
    options = load_options(
        rate,
        duration,
        requests,
        process=str(arrivals),
        cv=4.0 if cv is None else cv,
        lengths_path=lengths,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        goal_ttft_s=goal_ttft,
        goal_tpot_s=goal_tpot,
        drain_s=drain,
        seed=seed,
        goal_class=goal_class,
        tenant=tenant,
    )
    if compare is not None:
        from twinpool.cluster.bench.compare import COLUMNS, compare_modes

        print_report("bench serve", compare_modes(compare, options, rounds or 1, folder()), COLUMNS, as_json=as_json)
    else:
        from twinpool.cluster.bench.serve import COLUMNS as SERVE_COLUMNS
        from twinpool.cluster.bench.serve import bench_serve

        rows = bench_serve(options, lambda: addresses(cluster, address))
        print_report("bench serve", rows, SERVE_COLUMNS, as_json=as_json)


@app.command()
def gateway(
    model: Annotated[str, typer.Option(help="a modelled: shape")] = "modelled:paced",
    workers: Annotated[int, typer.Option(help="mixed workers behind the gateway", min=1, max=64)] = 2,
    streams: Annotated[int, typer.Option(help="open at once", min=1, max=4096)] = 64,
    connections: Annotated[int, typer.Option(help="that the streams share", min=1, max=4096)] = 8,
    duration: Annotated[float, typer.Option(help="seconds of each measurement", min=0.1, max=600)] = 10.0,
    runs: Annotated[int, typer.Option(help="of gateway and echo, alternated", min=1)] = 3,
    as_json: JsonOption = False,
) -> None:
    """CPU time that a gateway takes for streamed tokens, beside a bare gRPC server that streams as many."""
    silence_grpc()
    from twinpool.cluster.bench.gateway import COLUMNS, GatewayOptions, bench_gateway, check_options
    from twinpool.cluster.bench.report import print_report

    options = GatewayOptions(model, workers, streams, connections, duration, runs)
    check_options(options)
    print_report("bench gateway", bench_gateway(options, folder()), COLUMNS, as_json=as_json)


@app.command()
def transfer(
    link: Annotated[str, typer.Option(help="gloo,shm, or all that this machine has")] = "all",
    codec: Annotated[str | None, typer.Option(help="raw,int8,fp8,int4,int2, or all; raw")] = None,
    sizes: Annotated[
        str | None, typer.Option("--bytes", help="KV of one request, such as 1MiB,1GiB; - for none; 1MiB,64MiB")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="a request of so many tokens too; 0: none; 2048", min=0, max=2**24)
    ] = None,
    tp: Annotated[str | None, typer.Option(help="tensor-parallel ranks of source:target: 1:1,2:4; 1:1")] = None,
    layers: Annotated[int, typer.Option(help="of the model", min=1, max=4096)] = 16,
    kv_heads: Annotated[int, typer.Option(help="of each layer", min=1, max=4096)] = 8,
    head_dim: Annotated[int, typer.Option(help="of each head", min=1, max=4096)] = 128,
    dtype: Annotated[KVDtype, typer.Option(help="of the KV")] = KVDtype.BFLOAT16,
    block_tokens: Annotated[int, typer.Option(help="of each block", min=1, max=4096)] = 16,
    streaming: Annotated[Switch, typer.Option(help="send layer groups as they are computed")] = Switch.BOTH,
    digest: Annotated[Switch, typer.Option(help="check every chunk on arrival")] = Switch.BOTH,
    limit_bytes_per_s: Annotated[str | None, typer.Option(help="of the link: none,1GB,100MB; none")] = None,
    produced_bytes_per_s: Annotated[
        str | None, typer.Option(help="KV that a modelled prefill produces; half of what the link can do", metavar="N")
    ] = None,
    prefill: Annotated[
        ModelledPrefill, typer.Option(help="whether it keeps a core busy or waits for a device")
    ] = ModelledPrefill.WAITS,
    chunk_tokens: Annotated[int, typer.Option(help="of each step of the prefill", min=1, max=2**20)] = 512,
    layers_per_group: Annotated[
        int | None, typer.Option(help="that are sent together; as the engine chooses", min=1, max=4096)
    ] = None,
    runs: Annotated[int, typer.Option(help="alternated, after one to warm up", min=1, max=1000)] = 5,
    codec_errors: Annotated[bool, typer.Option("--codec-errors", help="what codecs change in the demo model")] = False,
    full: Annotated[bool, typer.Option("--full", help="every codec, size, limit and number of ranks: long")] = False,
    as_json: JsonOption = False,
) -> None:
    """KV moved between two workers of this machine, beside what their link can do with one piece of memory.

    Without --codec, --bytes, --tokens, --tp and --limit-bytes-per-s: a little of each, within three minutes on two
    cores. With any of them: every combination of what they name, and of what is usual for those that are not given.
    """
    silence_grpc()
    from twinpool.cluster.bench.transfer_command import Asked, run_transfer
    from twinpool.model.kv_layout import KVLayout

    if tokens is not None and tokens % block_tokens:
        raise typer.BadParameter(f"--tokens: {tokens} are not whole blocks of {block_tokens}")
    run_transfer(
        KVLayout(layers, kv_heads, block_tokens, head_dim, str(dtype), model="bench"),
        Asked(codec, sizes, tokens, limit_bytes_per_s, tp),
        links=link,
        full=full,
        digests=digest.states,
        streaming=streaming.states,
        produced=produced_bytes_per_s,
        computes=prefill is ModelledPrefill.COMPUTES,
        chunk_tokens=chunk_tokens,
        layers_per_group=layers_per_group,
        runs=runs,
        codec_errors=codec_errors,
        as_json=as_json,
    )


@app.command()
def parity(
    part: Annotated[Part, typer.Option(help="what is run live beside the simulator")] = Part.BOTH,
    shape: Annotated[str, typer.Option(help="of the modelled part")] = "modelled:a100-13b",
    model: Annotated[Path | None, typer.Option(help="of the engine part; the demo's", metavar="DIR")] = None,
    pools: Annotated[str, typer.Option(help="prefill+decode workers, one after the other")] = "1+1,2+2",
    policies: Annotated[str, typer.Option(help="of the router, one after the other")] = "slo,least_loaded",
    loads: Annotated[str, typer.Option(help="shares of the rate at which 90 % still meet their goals")] = "0.5,0.8",
    runs: Annotated[int, typer.Option(help="of each live measurement", min=1, max=100)] = 3,
    duration: Annotated[float, typer.Option(help="seconds in which requests arrive", min=1.0, max=3600)] = 20.0,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """A live cluster and the simulated one from the same YAML and trace: how far apart are they?"""
    silence_grpc()
    from twinpool.cluster.bench.parity_command import run_parity

    run_parity(
        parts=("modelled", "engine") if part is Part.BOTH else (str(part),),
        shape=shape,
        model=model,
        pools=pools,
        policies=policies,
        loads=loads,
        runs=runs,
        duration_s=duration,
        seed=seed,
        folder=folder(),
        as_json=as_json,
    )


app.command()(simulator)
