"""What a gateway and a launcher need to know of a model without loading it, and without torch."""

from dataclasses import dataclass

from twinpool.model.config import load_model_config
from twinpool.model.kv_layout import ITEM_BYTES
from twinpool.model.modelled_shape import PREFIX, modelled_shape


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that requests are checked against."""

    vocab_size: int
    max_position_embeddings: int
    kv_token_bytes: int  # one token over all layers, as kept
    weight_bytes: int


def load_shape(path: str, dtype: str) -> ModelShape:
    """Read the shape of an HF directory, or of a ``dummy:`` or ``modelled:`` one.

    Raises:
        SpecError: there is no such model, or it is not supported.
    """
    if path.startswith(PREFIX):
        shape = modelled_shape(path)
        return ModelShape(shape.vocab_size, shape.max_position_embeddings, shape.kv_token_bytes, 0)
    config = load_model_config(path)
    item_bytes = ITEM_BYTES[config.dtype if dtype == "auto" else dtype]
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * item_bytes
    weight_bytes = config.num_parameters * item_bytes
    return ModelShape(config.vocab_size, config.max_position_embeddings, per_token, weight_bytes)
