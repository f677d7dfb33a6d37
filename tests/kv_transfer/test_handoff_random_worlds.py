"""Many requests at once through two small targets, in seeded worlds where everything fails for a while.

A seed that fails is printed, with what to call to see it again.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from twinpool.kv_transfer.events import Action, Release
from twinpool.kv_transfer.phases import TargetPhase
from twinpool.kv_transfer.target import TargetHandoff
from twinpool.simulator.handoff_trouble import begin, check_world, make_trouble, settle

pytestmark = pytest.mark.slow

REPLAY = Path(__file__).resolve().parents[2] / "scripts" / "replay_handoffs"


@pytest.mark.parametrize("first", range(0, 300, 100))
def test_worlds_with_trouble_settle_with_every_request_done_and_nothing_left(first: int) -> None:
    for seed in range(first, first + 100):
        check_world(seed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_thousands_of_worlds_with_trouble_settle() -> None:
    for seed in range(1000, 9000):
        check_world(seed)


def test_worlds_without_trouble_need_one_attempt_and_no_link_is_closed() -> None:
    for seed in range(20):
        world, cluster = begin(seed)
        settle(world, cluster)
        assert {(call.outcome, call.epoch) for call in cluster.calls.values()} == {("done", 1)}


def test_the_same_seed_is_the_same_world() -> None:
    stories = []
    for _ in range(2):
        world, cluster = begin(7)
        make_trouble(world, cluster)
        settle(world, cluster)
        stories.append([(call.request_id, call.epoch, call.target, call.outcome) for call in cluster.calls.values()])
    assert stories[0] == stories[1]


def test_both_ends_do_die_in_these_worlds() -> None:
    """Else the tests above would show less than they say."""
    deaths = [line for seed in range(100) for line in check_world(seed)[1] if "dies" in line]
    assert sum("a target" in line for line in deaths) > 30
    assert sum("the source" in line for line in deaths) > 15


def test_a_world_that_fails_says_its_seed_and_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def finish_drain(target: TargetHandoff) -> list[Action]:  # frees blocks before the source has stopped
        target._enter(TargetPhase.ENDED)
        return [Release()]

    monkeypatch.setattr(TargetHandoff, "_finish_drain", finish_drain)
    with pytest.raises(AssertionError) as failure:
        for seed in range(100):
            check_world(seed)
    assert f"scripts/replay_handoffs {seed}" in failure.value.__notes__[0]


def test_a_seed_can_be_replayed_from_the_command_line() -> None:
    done = subprocess.run([sys.executable, REPLAY, "3"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("seed 3: settled at ")
    assert done.stdout.count(" under epoch ") == 8
    refused = subprocess.run([sys.executable, REPLAY, "x"], capture_output=True, text=True, timeout=60, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
