"""Twinpool serves large language models with prefill and decode on separate pools of workers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinpool.client.client import AsyncClient as AsyncClient
    from twinpool.client.client import Client as Client
    from twinpool.client.errors import ConnectionFailed as ConnectionFailed
    from twinpool.client.results import GenerationResult as GenerationResult
    from twinpool.client.results import StreamEvent as StreamEvent
    from twinpool.client.timeout import Timeout as Timeout
    from twinpool.core.errors import TwinpoolError as TwinpoolError
    from twinpool.core.messages import Goal as Goal
    from twinpool.core.messages import SamplingParams as SamplingParams

__version__ = "0.1.0"

_EXPORTS = {
    "AsyncClient": "twinpool.client.client",
    "Client": "twinpool.client.client",
    "ConnectionFailed": "twinpool.client.errors",
    "GenerationResult": "twinpool.client.results",
    "Goal": "twinpool.core.messages",
    "SamplingParams": "twinpool.core.messages",
    "StreamEvent": "twinpool.client.results",
    "Timeout": "twinpool.client.timeout",
    "TwinpoolError": "twinpool.core.errors",
}
__all__ = [
    "AsyncClient",
    "Client",
    "ConnectionFailed",
    "GenerationResult",
    "Goal",
    "SamplingParams",
    "StreamEvent",
    "Timeout",
    "TwinpoolError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import twinpool`` costs nothing."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'twinpool' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
