"""What a gateway and a launcher need to know of a model without loading it, and without torch."""

from dataclasses import dataclass

from twinpool.model.config import ModelConfig, load_model_config
from twinpool.model.kv_layout import ITEM_BYTES, KVLayout
from twinpool.model.modelled_shape import PREFIX, modelled_shape


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that requests are checked against."""

    vocab_size: int
    max_position_embeddings: int  # with what rope scaling adds
    kv_token_bytes: int  # one token over all layers, as kept
    weight_bytes: int  # of weights kept, in every form
    kv_layout: KVLayout  # of blocks of one token; what computes it has no name yet


def load_shape(path: str, dtype: str, quantization: str = "none") -> ModelShape:
    """Read the shape of an HF directory, or of a ``dummy:`` or ``modelled:`` one.

    Raises:
        SpecError: there is no such model, or it is not supported.
    """
    if path.startswith(PREFIX):
        shape = modelled_shape(path)
        layout = KVLayout(shape.num_layers, shape.num_kv_heads, 1, shape.head_dim, "float32", path)
        return ModelShape(shape.vocab_size, shape.max_position_embeddings, shape.kv_token_bytes, 0, layout)
    config = load_model_config(path)
    dtype = config.dtype if dtype == "auto" else dtype
    layout = KVLayout(config.num_layers, config.num_kv_heads, 1, config.head_dim, dtype, path)
    weight_bytes = _count_weight_bytes(config, ITEM_BYTES[dtype], quantization)
    return ModelShape(config.vocab_size, config.max_context, layout.token_bytes, weight_bytes, layout)


def _count_weight_bytes(config: ModelConfig, item_bytes: int, quantization: str) -> int:
    """Beside the embedding all is multiplied by: a tied head is a packed copy, and int8 keeps a byte more of each."""
    embedding = config.vocab_size * config.hidden_size
    multiplied = config.num_parameters - (0 if config.tie_word_embeddings else embedding)
    return embedding * item_bytes + multiplied * (item_bytes + (quantization == "int8"))
