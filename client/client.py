"""The public clients of a Twinpool cluster: ``Client`` blocks, ``AsyncClient`` is for asyncio.

Knows protos/ and core/ only, so that using a cluster needs neither torch nor Ray. Both clients share everything but
the waiting.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from twinpool.client.endpoints import ChannelFactory, Endpoints
from twinpool.client.question import Question
from twinpool.client.request import Prompt, build_request, check_tenant
from twinpool.client.results import ClusterStatus, GenerationResult, ModelInfo
from twinpool.client.stream import AsyncTokenStream, TokenStream
from twinpool.client.timeout import Timeout, choose_timeout
from twinpool.client.watchdog import Watchdog
from twinpool.core.messages import Goal
from twinpool.protos.twinpool.v1 import cluster_pb2, generation_pb2


class _Connected:
    """What both clients hold and ask."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        timeout: Timeout | None,
        tenant: str | None,
        make_channel: ChannelFactory,
    ) -> None:
        self._tenant = check_tenant(tenant) or None
        self._timeout = choose_timeout(timeout, Timeout())
        self._endpoints = Endpoints(addresses, self._timeout.connect_s, make_channel)

    def _question(self, request: Any, *, of_all: bool = False) -> Question:
        return Question(self._endpoints, self._timeout.answer_s, request, of_all=of_all)


class Client(_Connected):
    """A blocking client; threads may share one.

    Args:
        addresses: ``"host:port"`` of a gateway, or several: the next one is tried when one is unavailable.
        timeout: limits of every call; a call may bring its own.
        tenant: whose limits and prefix cache every call uses, a name under ``tenants:`` of the cluster's YAML or any
            other of 1 to 40 lower-case letters, digits and hyphens; None for ``default``. Nobody checks who you are.

    Raises:
        TypeError: addresses of another type; ValueError: one is not host:port; InvalidRequest: the tenant is no name.
            Connections are made on first use.
    """

    def __init__(
        self, addresses: str | Sequence[str], *, timeout: Timeout | None = None, tenant: str | None = None
    ) -> None:
        super().__init__(addresses, timeout, tenant, grpc.insecure_channel)
        self._watchdog = Watchdog()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; streams still open end with Cancelled. Idempotent."""
        for channel in self._endpoints.close():
            channel.close()
        self._watchdog.close()

    def generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        goal: Goal | None = None,
        goal_class: str | None = None,
        request_id: str | None = None,
        timeout: Timeout | None = None,
        echo: bool = False,
        lossless_kv: bool = False,
        **sampling: Any,
    ) -> GenerationResult:
        """Return the whole answer to a prompt. Arguments and errors are those of ``stream`` and its iteration."""
        request = build_request(prompt, model, goal, goal_class, request_id, sampling, echo, lossless_kv, self._tenant)
        with TokenStream(self._endpoints, request, choose_timeout(timeout, self._timeout), self._watchdog) as stream:
            for _ in stream:
                pass
            return stream.result

    def stream(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        goal: Goal | None = None,
        goal_class: str | None = None,
        request_id: str | None = None,
        timeout: Timeout | None = None,
        echo: bool = False,
        lossless_kv: bool = False,
        **sampling: Any,
    ) -> TokenStream:
        """Send a prompt and return the stream of its tokens; leaving the stream early cancels the request.

        Args:
            prompt: text, a list of token ids, or a list of chat messages ``{"role": ..., "content": ...}``.
            model: None for the cluster's only model.
            goal: upper bounds for this request; takes precedence over ``goal_class``.
            goal_class: a name under ``goals:`` of the cluster's YAML; None for its default.
            request_id: None to let the gateway choose.
            timeout: None for the client's; ``connect_s`` is always the client's.
            echo: the text of each answer begins with the prompt's.
            lossless_kv: compute from exact KV only, in a cluster that moves KV in a lossy codec (``transfer.codec``).
            sampling: fields of ``SamplingParams`` by name: ``max_tokens=64, temperature=0.0, seed=7``. ``stop`` may be
                one string or a list, ``logit_bias`` is a dict. None is as good as not given.

        Raises:
            TypeError: an unknown keyword, or a prompt of another type. Nothing was sent.
            InvalidRequest: a value outside its limits. Nothing was sent.
        """
        request = build_request(prompt, model, goal, goal_class, request_id, sampling, echo, lossless_kv, self._tenant)
        return TokenStream(self._endpoints, request, choose_timeout(timeout, self._timeout), self._watchdog)

    def models(self) -> tuple[ModelInfo, ...]:
        """Return the models that the cluster serves."""
        return self._ask(self._question(generation_pb2.ListModelsRequest())).models()

    def status(self) -> ClusterStatus:
        """Return the cluster's workers and gateways, as the gateway that answers sees them."""
        return self._ask(self._question(cluster_pb2.GetStatusRequest())).status()

    def cancel(self, request_id: str) -> bool:
        """Cancel a request at whichever gateway has it; False when none that answers knows it, or it has ended."""
        return self._ask(self._question(generation_pb2.CancelRequest(request_id=request_id), of_all=True)).found()

    def _ask(self, question: Question) -> Question:
        for call in question.calls():
            with question:
                question.hear(call())
        return question


class AsyncClient(_Connected):
    """``Client`` for asyncio: the same calls, awaited. Use one per event loop."""

    def __init__(
        self, addresses: str | Sequence[str], *, timeout: Timeout | None = None, tenant: str | None = None
    ) -> None:
        super().__init__(addresses, timeout, tenant, grpc.aio.insecure_channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; streams still open end with Cancelled. Idempotent."""
        for channel in self._endpoints.close():
            await channel.close()

    async def generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        goal: Goal | None = None,
        goal_class: str | None = None,
        request_id: str | None = None,
        timeout: Timeout | None = None,
        echo: bool = False,
        lossless_kv: bool = False,
        **sampling: Any,
    ) -> GenerationResult:
        """Return the whole answer to a prompt; as ``Client.generate``."""
        request = build_request(prompt, model, goal, goal_class, request_id, sampling, echo, lossless_kv, self._tenant)
        async with AsyncTokenStream(self._endpoints, request, choose_timeout(timeout, self._timeout)) as stream:
            async for _ in stream:
                pass
            return stream.result

    def stream(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        goal: Goal | None = None,
        goal_class: str | None = None,
        request_id: str | None = None,
        timeout: Timeout | None = None,
        echo: bool = False,
        lossless_kv: bool = False,
        **sampling: Any,
    ) -> AsyncTokenStream:
        """Send a prompt and return the stream of its tokens; as ``Client.stream``. Call it in a running event loop."""
        request = build_request(prompt, model, goal, goal_class, request_id, sampling, echo, lossless_kv, self._tenant)
        return AsyncTokenStream(self._endpoints, request, choose_timeout(timeout, self._timeout))

    async def models(self) -> tuple[ModelInfo, ...]:
        """Return the models that the cluster serves."""
        return (await self._ask(self._question(generation_pb2.ListModelsRequest()))).models()

    async def status(self) -> ClusterStatus:
        """Return the cluster's workers and gateways, as the gateway that answers sees them."""
        return (await self._ask(self._question(cluster_pb2.GetStatusRequest()))).status()

    async def cancel(self, request_id: str) -> bool:
        """Cancel a request at whichever gateway has it; as ``Client.cancel``."""
        question = self._question(generation_pb2.CancelRequest(request_id=request_id), of_all=True)
        return (await self._ask(question)).found()

    async def _ask(self, question: Question) -> Question:
        for call in question.calls():
            with question:
                question.hear(await call())
        return question
