"""Twinpool serves large language models with prefill and decode on separate pools of workers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinpool.client.client import AsyncClient as AsyncClient
    from twinpool.client.client import Client as Client
    from twinpool.client.errors import ConnectionFailed as ConnectionFailed
    from twinpool.client.results import Choice as Choice
    from twinpool.client.results import GenerationResult as GenerationResult
    from twinpool.client.results import StreamEvent as StreamEvent
    from twinpool.client.results import TokenLogprob as TokenLogprob
    from twinpool.client.timeout import Timeout as Timeout
    from twinpool.core.errors import TwinpoolError as TwinpoolError
    from twinpool.core.messages import Goal as Goal
    from twinpool.core.sampling import SamplingParams as SamplingParams

__version__ = "0.1.0"

_EXPORTS = {
    "AsyncClient": "twinpool.client.client",
    "Choice": "twinpool.client.results",
    "Client": "twinpool.client.client",
    "ConnectionFailed": "twinpool.client.errors",
    "GenerationResult": "twinpool.client.results",
    "Goal": "twinpool.core.messages",
    "SamplingParams": "twinpool.core.sampling",
    "StreamEvent": "twinpool.client.results",
    "Timeout": "twinpool.client.timeout",
    "TokenLogprob": "twinpool.client.results",
    "TwinpoolError": "twinpool.core.errors",
}
__all__ = [
    "AsyncClient",
    "Choice",
    "Client",
    "ConnectionFailed",
    "GenerationResult",
    "Goal",
    "SamplingParams",
    "StreamEvent",
    "Timeout",
    "TokenLogprob",
    "TwinpoolError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import twinpool`` costs nothing."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'twinpool' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
