"""Makes the runner that a worker's configuration asks for; a modelled one without importing torch."""

from twinpool.core.messages import WorkerConfig
from twinpool.model.batch import Runner


def load_runner(config: WorkerConfig) -> Runner:
    """Load weights and allocate KV memory; may take long.

    Raises:
        SpecError: the model cannot be read, is not supported, or does not fit the memory given.
    """
    # So that a worker on this host may be shown it, and links may send from blocks where they lie.
    shared_kv = config.link in ("auto", "shm", "gloo")
    if config.model.startswith("modelled:"):
        from twinpool.model.modelled_runner import load_modelled

        return load_modelled(
            config.model,
            max_model_len=config.max_model_len,
            kv_bytes=config.kv_bytes,
            block_tokens=config.block_tokens,
            shared_kv=shared_kv,
        )
    from twinpool.model.runner import TorchRunner

    return TorchRunner.load(
        config.model,
        max_model_len=config.max_model_len,
        kv_bytes=config.kv_bytes,
        block_tokens=config.block_tokens,
        dtype=config.dtype,
        threads=config.threads,
        deterministic=config.deterministic,
        quantization=config.quantization,
        shared_kv=shared_kv,
    )
