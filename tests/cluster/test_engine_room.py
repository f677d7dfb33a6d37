"""What `bench engine` counts before it writes or loads anything."""

import shutil
from typing import NamedTuple

import pytest

from twinpool.cluster.bench import engine_room
from twinpool.cluster.bench.engine_ours import EngineSetup
from twinpool.core.errors import SpecError
from twinpool.model.config import load_model_config
from twinpool.model.shape import load_shape

SETUP = EngineSetup("dummy:qwen3-0.6b", "bfloat16", threads=1, max_model_len=128, concurrency=8)
PEER_BYTES = 2 * load_model_config(SETUP.model).num_parameters


class Usage(NamedTuple):
    free: int


def room(monkeypatch: pytest.MonkeyPatch, memory: int, disk: int) -> None:
    monkeypatch.setattr(engine_room, "available_bytes", lambda: memory)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(disk))


def needed_bytes() -> int:
    shape = load_shape(SETUP.model, SETUP.dtype)
    peer_kv_bytes = SETUP.concurrency * SETUP.max_model_len * shape.kv_token_bytes
    return shape.weight_bytes + PEER_BYTES + SETUP.worker_config().kv_bytes + peer_kv_bytes


def test_both_weights_and_both_kvs_must_fit_into_memory_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, needed_bytes(), PEER_BYTES)
    engine_room.check_room(SETUP)
    room(monkeypatch, needed_bytes() - 1, PEER_BYTES)
    with pytest.raises(SpecError, match=r"--model: dummy:qwen3-0\.6b: .* this machine has .* free") as caught:
        engine_room.check_room(SETUP)
    assert "\n" not in str(caught.value)


def test_a_dummy_checkpoint_must_fit_onto_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, needed_bytes(), PEER_BYTES - 1)
    with pytest.raises(SpecError, match=r"its checkpoint needs .* TMPDIR"):
        engine_room.check_room(SETUP)
