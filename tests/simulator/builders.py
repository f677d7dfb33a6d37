"""Small scenarios, outcomes and steps with good defaults."""

from typing import Any

from twinpool.core.messages import Goal, Role
from twinpool.router.estimate import LinearForm
from twinpool.router.power import PowerForm
from twinpool.simulator.observer import Steps
from twinpool.simulator.outcome import Ending, Outcome
from twinpool.simulator.scenario import GoalClass, Scenario, SimulatedWorker, WorkerKind
from twinpool.simulator.trace import TraceRequest

GOAL = Goal(1.0, 0.1)


def kind(**more: Any) -> WorkerKind:
    return WorkerKind(
        **({"name": "k", "truth": LinearForm(), "kv_token_bytes": 64, "num_blocks": 100, "block_tokens": 16} | more)
    )


def scenario(**more: Any) -> Scenario:
    """One prefill worker (0) and one decode worker (1)."""
    one = more.pop("kind", kind())
    workers = (SimulatedWorker("prefill-0", Role.PREFILL, one), SimulatedWorker("decode-0", Role.DECODE, one))
    return Scenario(**({"workers": workers, "goals": {"default": GoalClass(GOAL)}} | more))


def outcome(**more: Any) -> Outcome:
    """Arrives at 0, first token at 0.5, ends at 1.5 with 11 tokens: TPOT 0.1."""
    values: dict[str, Any] = {
        "index": 0,
        "offered": TraceRequest(0.0, 100, 11),
        "goal": GOAL,
        "ending": Ending.COMPLETED,
        "arrival_s": 0.0,
        "first_token_s": 0.5,
        "end_s": 1.5,
        "num_tokens": 11,
        "prefill_worker": 0,
        "decode_worker": 1,
    }
    return Outcome(**(values | more))


def steps(worker: int = 0, started_s: float = 0.0, ended_s: float = 1.0, **more: Any) -> Steps:
    values = {"num_steps": 1, "prefill_tokens": 0, "num_prompts": 0, "batch": 0, "context_tokens": 0, "held_blocks": 0}
    return Steps(worker, started_s, ended_s, **(values | more))


POWER = PowerForm(idle_w=100.0, prefill_w=700.0, decode_w=400.0, full_prefill_tokens=512, full_batch=10)
