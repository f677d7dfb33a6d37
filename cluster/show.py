"""What the command line prints of a cluster and of requests: plain values for --json, tables for people."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from twinpool.client.results import Choice, ClusterStatus, GenerationResult, Timings, TokenLogprob

Values = dict[str, Any]


def status_as_dict(status: ClusterStatus) -> Values:
    """The stable keys of `twinpool status --json`."""
    values = asdict(status)
    for gateway in values["gateways"]:
        gateway["http"] = gateway["http"] or None
    return values


def print_status(status: Values) -> None:
    """The same as tables."""
    console = Console(highlight=False)
    load = f"{status['running_requests']} running, {status['queued_requests']} queued"
    console.print(f"{status['name']}: model {status['model']}, {load}")
    table = Table("worker", "role", "pid", "node", "state", "free blocks", "running", "waiting", "link", box=None)
    for worker in status["workers"]:
        blocks = f"{worker['free_blocks']}/{worker['total_blocks']}"
        row = [worker["id"], worker["role"], worker["pid"], worker["node"], worker["state"], blocks]
        table.add_row(*(str(cell) for cell in (*row, worker["running"], worker["waiting"], worker["link"])))
    console.print(table)
    for worker in status["workers"]:
        for line in (worker["cause"], transfer_line(worker["transfer"]), *link_lines(worker["links"])):
            if line:
                console.print(f"{worker['id']}: {line}", markup=False)
    if status["tenants"]:
        names = ("tenant", "queued", "running", "admitted", "refused", "prompt tokens", "output tokens")
        table = Table(*names, box=None)
        for tenant in status["tenants"]:
            table.add_row(*map(str, tenant.values()))
        console.print(table)
    for gateway in status["gateways"]:
        console.print(f"gateway {gateway['grpc']} (pid {gateway['pid']})")


def transfer_line(transfer: Values) -> str:
    """What a worker's handoffs wait for and what went wrong with some, in a line; empty when nothing is."""
    wrong = sum(count for outcome, count in transfer["outgoing"].items() if outcome != "committed")
    cause = f": {transfer['grant_cause']}" if transfer["grant_cause"] else ""
    parked = f"{transfer['parked_blocks']} blocks, for {transfer['oldest_parked_s']:.1f} s{cause}"
    parts = (
        (transfer["parked_handoffs"], f"handoffs parked ({parked})"),
        (transfer["room_waiting"], "handoffs wait for blocks"),
        (transfer["credit_waits"], f"waits for the target's window ({transfer['credit_wait_s']:.1f} s)"),
        (wrong, "handoffs not committed"),
        (transfer["link_reopenings"], "links opened again"),
        (transfer["digest_failures"], "groups came damaged"),
    )
    return "; ".join(f"{count} {what}" for count, what in parts if count)


def link_lines(links: Sequence[Values]) -> list[str]:
    """Which links a worker hands KV over, and why: a line for all targets of which that is the same."""
    targets: dict[tuple[str, str], list[str]] = {}
    for link in links:
        targets.setdefault((link["kind"], link["why"]), []).append(link["target"])
    return [f"to {', '.join(named)} over {kind or 'nothing'} ({why})" for (kind, why), named in targets.items()]


def result_as_dict(result: GenerationResult) -> Values:
    """The stable keys of `twinpool generate --json`. A token's bytes are told as text too, as far as they are text."""
    values: Values = _spelled(asdict(result))
    return values


def _spelled(value: Any) -> Any:
    """The same in what JSON knows."""
    if isinstance(value, dict):
        spelled = {key: _spelled(item) for key, item in value.items()}
        data = value.get("token")
        return spelled | {"token": _text(data), "bytes": list(data)} if isinstance(data, bytes) else spelled
    return [_spelled(item) for item in value] if isinstance(value, list | tuple) else value


def _text(token: bytes) -> str:
    return token.decode(errors="replace")


def ids_as_text(result: GenerationResult, choice: Choice, *, echo: bool = False) -> str:
    """An answer as `--token-ids` takes it, after its prompt's ids if that is asked for."""
    return ",".join(map(str, (*(result.prompt_token_ids if echo else ()), *choice.token_ids)))


def print_choices(result: GenerationResult, *, as_ids: bool = False, echo: bool = False) -> None:
    """Every answer under its number; ``echo`` is about ids alone: an echoed prompt is part of a text."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for choice in result.choices:
        console.print(f"--- {choice.index}: {len(choice.token_ids)} tokens, {choice.finish_reason}")
        console.print(ids_as_text(result, choice, echo=echo) if as_ids else choice.text)


def print_logprobs(result: GenerationResult) -> None:
    """How probable the prompt's tokens and those of each answer were, where it was asked for."""
    if result.prompt_logprobs:
        _print_logprobs("prompt", result.prompt_logprobs)
    for choice in result.choices:
        if choice.logprobs:
            _print_logprobs(f"answer {choice.index}", choice.logprobs)


def _print_logprobs(of: str, logprobs: Sequence[TokenLogprob]) -> None:
    table = Table(of, "id", "logprob", "most probable", box=None)
    for token in logprobs:
        top = "  ".join(f"{_shown(other.token, other.token_id)} {other.logprob:.3f}" for other in token.top)
        cells = (_shown(token.token, token.token_id), str(token.token_id), f"{token.logprob:.3f}", top)
        table.add_row(*(escape(cell) for cell in cells))
    Console(highlight=False).print(table)


def _shown(token: bytes, token_id: int) -> str:
    return repr(_text(token)) if token else f"<{token_id}>"


def print_timings(results: Sequence[GenerationResult]) -> None:
    """One row for each request: where it ran, and where its time went."""
    table = Table(
        *("#", "prefilled on", "decoded on", "prompt", "new", "queue ms", "prefill ms", "handoff ms"),
        *("TTFT ms", "TPOT ms", "KV moved", "transfer hidden"),
        box=None,
        header_style="bold",
    )
    for number, result in enumerate(results, start=1):
        timings, usage = result.timings, result.usage
        table.add_row(
            str(number),
            timings.prefill_worker,
            timings.decode_worker,
            str(usage.prompt_tokens),
            str(usage.completion_tokens),
            *(f"{seconds * 1e3:.1f}" for seconds in (timings.queue_s, timings.prefill_s, timings.handoff_s)),
            *(f"{seconds * 1e3:.1f}" for seconds in (timings.ttft_s, timings.tpot_s)),
            f"{timings.kv_bytes / 1024:.0f} KiB",
            hidden_share(timings),
        )
    Console(highlight=False, width=140).print(table)


def hidden_share(timings: Timings) -> str:
    """The part of the wire time that passed while the prompt was still being computed."""
    if timings.wire_s <= 0:
        return "-"
    return f"{1 - timings.exposed_s / timings.wire_s:.0%}"
