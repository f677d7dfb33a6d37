"""What `twinpool bench parity` compares: a modelled model slow enough for a laptop, and the demo's real one.

Values only.
"""

from pathlib import Path

from twinpool.cluster.bench.parity import Subject
from twinpool.cluster.bench.parity_trace import Lengths
from twinpool.core.messages import Goal

MAX_MODEL_LEN = 1024


def modelled(shape: str) -> Subject:
    """A modelled shape, whose steps sleep: two cores carry several such workers."""
    values = {"model": {"path": shape, "max_model_len": MAX_MODEL_LEN}, "kv": {"memory": "64MiB"}}
    return Subject("modelled", values, Lengths((64, 512), (16, 96)), Goal(0.5, 0.05))


def engine(model: Path) -> Subject:
    """A real model on the real engine."""
    values = {
        "model": {"path": str(model), "max_model_len": MAX_MODEL_LEN},
        "kv": {"memory": "64MiB"},
        "batching": {"chunk_tokens": 256},
    }
    return Subject("engine", values, Lengths((32, 512), (16, 64)), Goal(0.3, 0.03))
