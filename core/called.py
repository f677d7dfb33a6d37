"""What callers call the fields that the protocol's message calls otherwise.

Pure. Knows the names of fields, not their values.
"""

import re

_PROMPT = re.compile(r"(text|token_ids|chat)(?=$|\[)")


def as_called(field: str) -> str:
    """The field that a gateway names, as a caller gave it: the three kinds of prompt are one argument there."""
    kind = _PROMPT.match(field)
    return field if kind is None else "prompt" + field[kind.end() :]
