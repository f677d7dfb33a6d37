"""Shows a simulated run's report as tables for people.

Knows the report's keys; computes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

Values = Mapping[str, Any]
RANKS = ("p50", "p90", "p99")
LATENCIES = (
    ("ttft_s", "first token (TTFT)"),
    ("tpot_s", "per later token (TPOT)"),
    ("itl_s", "gap between tokens (ITL)"),
    ("e2e_s", "whole answer"),
)
PHASES = (
    ("held_s", "held in the router"),
    ("queued_s", "queued at the prefill worker"),
    ("prefill_s", "prefill"),
    ("handoff_s", "handoff, first token to decode batch"),
    ("wire_s", "KV bytes on the wire"),
    ("exposed_s", "of these, after the prefill"),
)
LUCK = 0.1  # seeds that differ by so large a share of the requests are worth a word
SWEPT = ("goodput/s", "TTFT p90", "TPOT p90", "busiest pool")


def print_run(console: Console, title: str, values: Values, goals: Mapping[str, Values]) -> None:
    """One run: what became of the requests, how fast, where the time went, what the workers did, what it cost."""
    console.print(Text(title, style="bold"))
    console.print(_requests_line(values))
    console.print(_goodput_line(values))
    if values["reasons"]:
        told = ", ".join(f"{count} x {reason}" for reason, count in values["reasons"].items())
        console.print(Text(f"not completed: {told}"))
    console.print()
    console.print(_latencies(values, goals))
    console.print()
    console.print(_phases(values["phases"]))
    console.print()
    console.print(_pools(values["utilisation"]))
    if len(values["by_class"]) > 1:
        console.print()
        console.print(_classes(values["by_class"]))
    lines = list(_other_lines(values))
    if lines:
        console.print()
        console.print(Group(*map(Text, lines)))


def print_sweep(console: Console, sweep: Values) -> None:
    """The curve, and the rate that was found."""
    table = _table("requests/s", "met", *(["of each seed"] if len(sweep["seeds"]) > 1 else []), *SWEPT)
    for point in sweep["points"]:
        spread = f"{_share(point['slo_attainment_least'])} to {_share(point['slo_attainment_most'])}"
        table.add_row(
            _rate(point["rate_rps"]),
            _share(point["slo_attainment"]),
            *([spread] if len(sweep["seeds"]) > 1 else []),
            _number(point["goodput_rps"]),
            _seconds(point["ttft_p90_s"]),
            _seconds(point["tpot_p90_s"]),
            f"{point['busiest_pool']} {_share(point['busiest_pool_busy'])}",
        )
    console.print(table)
    for line in sweep_lines(sweep):
        console.print(Text(line))
    console.print()


def print_trace(console: Console, values: Values) -> None:
    """A trace in numbers."""
    when = ", with no times of their own: --rate draws them"
    if values["duration_s"] is not None:
        mean = f"{_number(values['mean_rate_rps'])} requests/s on average"
        when = f" in {_seconds(values['duration_s'])}: {mean}"
    console.print(f"{values['requests']:,} requests ({values['format']}){when}; {values['skipped']:,} lines skipped")
    table = _table("tokens", "mean", "std", "p50", "p90", "p99", "max")
    for name in ("prompt", "output"):
        told = values[f"{name}_tokens"]
        rest = (f"{told[key]:,}" for key in ("p50", "p90", "p99", "max"))
        table.add_row(name, f"{told['mean']:,.1f}", f"{told['std']:,.1f}", *rest)
    console.print(table)
    if len(values["goal_classes"]) > 1:
        console.print("classes: " + ", ".join(f"{count:,} {name}" for name, count in values["goal_classes"].items()))


def sweep_lines(sweep: Values) -> Iterable[str]:
    """What was found, by which rule, and how far it is to be believed."""
    seeds = sweep["seeds"]
    is_many = len(seeds) > 1
    of_seeds = f"mean of seeds {seeds[0]} to {seeds[-1]}" if is_many else f"seed {seeds[0]} alone: try --seeds 3"
    yield f"{_found_words(sweep)} ({of_seeds})"
    if sweep["is_one_draw"]:
        yield "every seed gave the same: times and lengths are the trace's own, unless --arrivals has them drawn"
    if told := _luck_words(sweep):
        yield told
    rise = f"rises by over {sweep['tolerance'] * 100:g} points from one rate to the next"
    if sweep["is_monotone"]:
        yield f"the search supposes that attainment falls with the rate: it nowhere {rise}"
    else:
        yield f"attainment {rise}, and the search supposes that it falls: look at the curve"
    yield "goodput/s is over the time until the last answer has ended: the shorter a run, the further below its rate"


def _luck_words(sweep: Values) -> str:
    """How much chance has to do with the rate found; nothing where seeds agree on both sides of the edge."""
    edge = [point for point in sweep["points"] if point["rate_rps"] in (sweep["rate_rps"], sweep["missed_rps"])]
    spread = max((point["slo_attainment_most"] - point["slo_attainment_least"] for point in edge), default=0.0)
    if spread < LUCK:
        return ""
    points = f"{spread * 100:.0f} points"
    return f"at this edge seeds differ by {points}: stay below it, or ask for more --seeds and longer runs"


def _found_words(sweep: Values) -> str:
    rate, wanted, points = sweep["rate_rps"], f"{sweep['attainment'] * 100:.4g}%", sweep["points"]
    if rate is None:
        return f"even {_rate(points[0]['rate_rps'])} requests/s, the lowest, is met for less than {wanted}"
    if not sweep["is_bounded"]:
        return f"{_rate(rate)} requests/s, the highest, is still met for {wanted} or more: raise it"
    missed = _rate(sweep["missed_rps"])
    return f"largest rate met for {wanted} or more: {_rate(rate)} requests/s; {missed} is not"


def _requests_line(values: Values) -> Text:
    counts = [f"{values['requests']:,} requests in {_seconds(values['duration_s'])}"]
    counts += [f"{values[name]:,} {name}" for name in ("completed", "rejected", "failed", "cut") if values[name]]
    counts += [f"{values['too_long']:,} too long and left out"] if values["too_long"] else []
    retried = sum(count for number, count in values["attempts"].items() if number != "1")
    return Text(", ".join(counts + ([f"{retried:,} tried more than once"] if retried else [])))


def _goodput_line(values: Values) -> Text:
    attainment, goodput = values["slo_attainment"], values["goodput_rps"]
    per_gpu = values["goodput_rps_per_gpu"]
    tokens = values["tokens_per_s"]
    return Text(
        f"{_share(attainment)} met their goals: {_number(goodput)} requests/s, {_number(per_gpu)} for each of "
        f"{values['gpus']} GPUs; {_number(tokens)} tokens/s"
    )


def _latencies(values: Values, goals: Mapping[str, Values]) -> Table:
    table = _table("of completed requests", *RANKS, *(["goal"] if len(goals) == 1 else []))
    goal = next(iter(goals.values())) if len(goals) == 1 else {}
    for key, words in LATENCIES:
        cells = [_seconds(values[key][rank]) for rank in RANKS]
        table.add_row(words, *cells, *([_seconds(goal[key]) if key in goal else ""] if goal else []))
    return table


def _phases(phases: Values) -> Table:
    table = _table("where the time went", "mean", *RANKS)
    for key, words in PHASES:
        table.add_row(words, *(_seconds(phases[key][name]) for name in ("mean", *RANKS)))
    return table


def _pools(pools: Values) -> Table:
    table = _table("pool", "workers", "busy", "prefill", "decode", "mixed", "KV used", "at most")
    for role, pool in pools.items():
        names = ("busy", "prefill", "decode", "mixed", "kv_used_mean", "kv_used_peak")
        table.add_row(role, str(pool["workers"]), *(_share(pool[name]) for name in names))
    return table


def _classes(classes: Values) -> Table:
    table = _table("class", "requests", "met", "TTFT p90", "goal", "TPOT p90", "goal")
    for name, one in classes.items():
        cells = [_share(one["slo_attainment"])]
        for key in ("ttft_s", "tpot_s"):
            cells += [_seconds(one[key]["p90"]), _seconds(one["goal"][key])]
        table.add_row(name, f"{one['requests']:,}", *cells)
    return table


def _other_lines(values: Values) -> Iterable[str]:
    transfers = values["transfers"]
    if transfers["count"]:
        share = _share(transfers["hidden_share"])
        hidden = f", {share} of their time on the wire hidden by computing" if transfers["wire_s"] else ""
        yield f"transfers: {transfers['count']:,} with {_bytes(transfers['bytes'])}{hidden}"
    if values["prefix_cache_hit_share"]:
        yield f"prefix cache: {_share(values['prefix_cache_hit_share'])} of prompt tokens"
    if cost := values["cost"]:
        per_million = _number(cost["usd_per_million_tokens"])
        yield f"cost: ${_number(cost['usd_per_hour'])} an hour, ${per_million} for a million tokens generated"
    if energy := values["energy"]:
        yield f"energy: {_number(energy['wh'])} Wh, {_number(energy['wh_per_request'])} Wh a request"
    if values["events"]:
        yield "workers: " + ", ".join(f"{count} {what}" for what, count in values["events"].items())
    if values["never_happened"]:
        yield f"never happened, as the last request had ended: {', '.join(values['never_happened'])}"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    if value == 0:
        return "0"
    return f"{value * 1e3:.3g} ms" if value < 0.9995 else f"{value:,.3g} s" if value < 1000 else f"{value:,.0f} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _rate(rate_rps: float) -> str:
    """All of its digits, as --rate takes them."""
    return f"{rate_rps:.10g}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _bytes(num_bytes: float) -> str:
    units: Sequence[str] = ("B", "kB", "MB", "GB", "TB")
    for unit in units[:-1]:
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} {units[-1]}"
