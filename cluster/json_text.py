"""Values as JSON that every reader takes: a number that JSON does not have (NaN, an infinity) is null.

Pure. Knows no value's meaning: whoever has a better word than null for one says it before.
"""

import json
import math
from typing import Any


def json_text(values: object, indent: int | None = None) -> str:
    """Return ``values`` as JSON, in ASCII, so that odd characters of texts stay escaped."""
    try:
        return json.dumps(values, allow_nan=False, indent=indent)
    except ValueError:  # rare: the values are gone through for it only then
        return json.dumps(_with_nulls(values), allow_nan=False, indent=indent)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {_with_nulls(key): _with_nulls(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_nulls(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
