"""Whether a machine has the memory and the disk that `bench engine` needs for a model.

Knows sizes; reads no weight.
"""

import shutil
import tempfile

from twinpool.cluster.bench.engine_ours import EngineSetup
from twinpool.cluster.free_memory import available_bytes, mib
from twinpool.core.errors import SpecError
from twinpool.model.config import load_model_config
from twinpool.model.dummy_shapes import DUMMY
from twinpool.model.kv_layout import ITEM_BYTES
from twinpool.model.shape import load_shape


def check_room(setup: EngineSetup) -> None:
    """See that both sides fit into memory at once, and the checkpoint of a `dummy:` shape into the temporary folder.

    Args:
        setup: of the highest concurrency that is measured; its dtype is a dtype's name.

    Raises:
        SpecError: they do not. Nothing was written.
    """
    shape = load_shape(setup.model, setup.dtype, setup.quantization)
    peer_bytes = load_model_config(setup.model).num_parameters * ITEM_BYTES[setup.dtype]
    peer_kv_bytes = setup.concurrency * setup.max_model_len * shape.kv_token_bytes
    kv_bytes = setup.worker_config().kv_bytes + peer_kv_bytes
    needed, free = shape.weight_bytes + peer_bytes + kv_bytes, available_bytes()
    if needed > free:
        what = f"{mib(shape.weight_bytes)} of our weights, {mib(peer_bytes)} of transformers' and {mib(kv_bytes)} of KV"
        raise SpecError(f"--model: {setup.model}: {what} need {mib(needed)}; this machine has {mib(free)} free")
    folder = tempfile.gettempdir()
    disk_free = shutil.disk_usage(folder).free
    if setup.model.startswith(DUMMY) and peer_bytes > disk_free:
        what = f"its checkpoint needs {mib(peer_bytes)} in {folder}, which has {mib(disk_free)} free"
        raise SpecError(f"--model: {setup.model}: {what}; TMPDIR names another folder")
