"""What the codecs of `twinpool bench transfer` change in the demo model's answers, as columns of its rows.

Knows which model and prompts; codec_error.py measures.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import twinpool
from twinpool.cluster.bench.codec_error import CodecError, measure_codec_errors
from twinpool.cluster.demo import PROMPTS
from twinpool.core.errors import SpecError
from twinpool.kv_transfer.codec import CodecName
from twinpool.model.tokenizer import TextTokenizer

Values = dict[str, Any]
MODEL = "examples/models/tiny"
SOURCE_PROMPTS = 3  # pieces of this code beside the demo's prompts, which are shorter than a block
SOURCE_TOKENS = 256
NEW_TOKENS = 64
COLUMNS = ("codec_error.changed_share", "codec_error.mean_logprob_error", "codec_error.max_logprob_error")


def codec_errors(codecs: Sequence[str]) -> dict[str, Values]:
    """By codec: the share of greedy tokens that changed, and errors of log-probabilities.

    Raises:
        SpecError: this is no clone of the repository, which alone has the demo model.
    """
    model = Path(twinpool.__file__).resolve().parents[2] / MODEL
    tokenizer = TextTokenizer.load(model)
    if tokenizer is None:
        raise SpecError(f"--codec-errors: no demo model at {model}; it is in clones of the repository")
    texts = [path.read_text() for path in sorted(Path(__file__).parent.glob("transfer*.py"))[:SOURCE_PROMPTS]]
    prompts = [tokenizer.encode(text)[:SOURCE_TOKENS] for text in (*PROMPTS, *texts)]
    found = measure_codec_errors(str(model), prompts, [CodecName(name) for name in codecs], new_tokens=NEW_TOKENS)
    return {str(error.codec): _values(error) for error in found}


def _values(error: CodecError) -> Values:
    values = asdict(error) | {"model": MODEL, "changed_share": error.changed_tokens / error.tokens}
    del values["codec"]
    return values
