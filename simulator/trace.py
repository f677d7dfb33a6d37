"""What a trace says of each request: when it comes, how long it is, and how it begins.

Knows no file format (simulator/traces/ reads them) and no worker.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request as it will be offered.

    ``output_tokens`` is what the model will turn out to say: the world knows it, no policy does. ``max_tokens`` is the
    limit that its client sets; 0 stands for ``output_tokens``, which gives a policy the length away only where it takes
    limits for lengths.

    ``prefix_hashes`` name the leading pieces of the prompt, of ``hash_tokens`` tokens each: equal names, equal tokens
    up to the end of that piece. Empty: nothing is known to be shared.
    """

    arrival_s: float  # from the begin of the trace
    prompt_tokens: int
    output_tokens: int
    max_tokens: int = 0
    goal_class: str = "default"
    tenant: str = ""
    prefix_hashes: tuple[int, ...] = ()
    hash_tokens: int = 0
    line: int = field(default=0, compare=False)  # of its file, which tells what is wrong with it; 0: of none


Trace: TypeAlias = Iterable[TraceRequest]  # in order of arrival; read once, as it is needed
