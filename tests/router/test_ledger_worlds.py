"""Exactly once, whatever fails: the ledger in random worlds of workers that stall, repeat, contradict and die."""

import random
from collections import deque
from dataclasses import dataclass, field

import pytest

from twinpool.core.errors import AttemptsExhausted, Corrupted, Internal
from twinpool.core.messages import FailureKind, FinishReason, Goal, Request
from twinpool.core.sampling import SamplingParams
from twinpool.router.ledger import Ledger
from twinpool.router.recovery import Decision, GiveUp, Retarget, Retry
from twinpool.router.route import Route

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
PROMPT = (1, 2, 3)


def next_token(context: tuple[int, ...], computed_in: int) -> int:
    """What a worker samples after ``context`` in epoch ``computed_in``: attempts differ, as their arithmetic may."""
    return hash((context, computed_in)) % 10**9


def is_last(token: int) -> bool:
    return token % 16 == 0


@dataclass
class World:
    """Workers that compute at their own pace, and one client that checks all it gets."""

    rng: random.Random
    max_tokens: int
    max_attempts: int
    ledger: Ledger = field(init=False)
    said: dict[str, deque[tuple[int, int, tuple[int, ...], FinishReason | None]]] = field(default_factory=dict)
    pending: Retry | Retarget | None = None
    sent: list[int] = field(default_factory=list)
    ends: list[object] = field(default_factory=list)
    prefill_epoch: int = 0
    epochs: int = 1

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.max_attempts)
        request = Request("r", 0, PROMPT, len(PROMPT), SamplingParams(max_tokens=self.max_tokens), Goal(1, 1))
        self.ledger.open(request, 0.0)
        self.pending = Retry(request, frozenset(), (), FailureKind.PREEMPTED)
        self.said = {worker_id: deque() for worker_id in "pqde"}

    def dispatch(self) -> None:
        pending, self.pending = self.pending, None
        assert pending is not None
        attempt = pending.request
        decode = self.rng.choice("de") if attempt.max_new_tokens > 1 else None
        if isinstance(pending, Retarget):
            prefill = pending.parked_on
        else:
            prefill = decode if decode and self.rng.random() < 0.3 else self.rng.choice("pq")
            self.prefill_epoch = attempt.epoch
        self.ledger.dispatched("r", Route(prefill, decode, "test"))
        self.epochs = attempt.epoch + 1
        self.compute(attempt, prefill, decode, is_retarget=isinstance(pending, Retarget))

    def compute(self, attempt: Request, prefill: str, decode: str | None, *, is_retarget: bool) -> None:
        """Queue all that the workers of one attempt will say; a retarget's prefill token is said again, or not."""
        context, said = attempt.token_ids, list[tuple[int, FinishReason | None]]()
        for epoch in [self.prefill_epoch] + [attempt.epoch] * attempt.max_new_tokens:
            token = next_token(context, epoch)
            context += (token,)
            finish = STOP if is_last(token) else LENGTH if len(context) - len(PROMPT) == self.max_tokens else None
            said.append((token, finish))
            if finish:
                break
        if not is_retarget or self.rng.random() < 0.5:
            self.said[prefill].append((attempt.epoch, attempt.num_emitted, (said[0][0],), said[0][1]))
        index = 1
        while decode is not None and index < len(said):
            some = said[index : index + self.rng.randint(1, 2)]
            tokens = tuple(token for token, _ in some)
            self.said[decode].append((attempt.epoch, attempt.num_emitted + index, tokens, some[-1][1]))
            index += len(some)

    def hear(self, worker_id: str) -> None:
        """Deliver a worker's next message, perhaps twice."""
        message = self.said[worker_id][0]
        if self.rng.random() < 0.8:
            self.said[worker_id].popleft()
        accepted = self.ledger.delta("r", *message)
        assert not accepted.token_ids or accepted.index == len(self.sent)
        self.sent += accepted.token_ids
        if accepted.finish_reason is not None:
            self.end(accepted.finish_reason)

    def nearby(self) -> str:
        """Mostly workers that the request needs."""
        return "".join(self.ledger.entry("r").workers) * 3 + "pqde"

    def fail(self) -> None:
        kind = self.rng.choice(list(FailureKind))
        epoch = max(0, self.epochs - 1 - self.rng.choice([0, 0, 0, 1]))
        self.apply(self.ledger.failure("r", epoch, kind, self.rng.choice(self.nearby()), "test", 0.0))

    def lose(self) -> None:
        worker_id = self.rng.choice(self.nearby())
        self.said[worker_id].clear()
        for decision in self.ledger.worker_lost(worker_id, 0.0):
            self.apply(decision)

    def apply(self, decision: Decision | None) -> None:
        match decision:
            case Retry() | Retarget():
                self.pending = decision
            case GiveUp(_, error, _):
                self.end(error)
            case None:
                pass

    def end(self, how: object) -> None:
        self.ends.append(how)
        self.pending = None

    def step(self, *, calm: bool) -> bool:
        """One thing happens; False when nothing can."""
        talkers = [worker_id for worker_id, messages in self.said.items() if messages]
        moves = [lambda: self.hear(self.rng.choice(talkers))] * 3 if talkers else []
        moves += [self.dispatch] * 3 if self.pending else []
        moves += [] if calm else [self.fail, self.lose]
        if moves:
            self.rng.choice(moves)()
        self.ledger.check()
        return bool(moves)

    def check_stream(self) -> None:
        """Every token follows from all those before it, by one attempt's arithmetic."""
        for index, token in enumerate(self.sent):
            context = PROMPT + tuple(self.sent[:index])
            assert token in {next_token(context, epoch) for epoch in range(self.epochs)}
            assert not is_last(token) or index == len(self.sent) - 1

    def check_end(self) -> None:
        """There was one end, and it is the right one."""
        assert len(self.ends) == 1
        match self.ends[0]:
            case FinishReason.STOP:
                assert is_last(self.sent[-1])
            case FinishReason.LENGTH:
                assert len(self.sent) == self.max_tokens
            case error:
                assert isinstance(error, AttemptsExhausted | Corrupted | Internal)
        self.ledger.close("r")
        self.ledger.check()


@pytest.mark.parametrize("block", range(10))
def test_whatever_happens_the_client_sees_one_answer_once(block: int) -> None:
    for seed in range(block * 100, block * 100 + 100):
        rng = random.Random(seed)
        world = World(rng, max_tokens=rng.randint(1, 12), max_attempts=rng.choice([1, 3, 100, 100]))
        for _ in range(rng.randint(0, 60)):
            world.step(calm=False)
        while world.step(calm=True):
            pass
        world.check_stream()
        world.check_end()


@pytest.mark.parametrize("seed", range(50))
def test_without_failures_one_attempt_suffices(seed: int) -> None:
    world = World(random.Random(seed), max_tokens=8, max_attempts=1)
    while world.step(calm=True):
        pass
    world.check_stream()
    world.check_end()
    assert world.epochs == 1
