"""The options hold the measured remedies, and a port in use is refused instead of shared."""

import asyncio

import grpc
import pytest

from twinpool.cluster.grpc_options import (
    CLIENT_MESSAGE_BYTES,
    gateway_server_options,
    worker_channel_options,
    worker_server_options,
)

pytestmark = pytest.mark.slow

ALL = [gateway_server_options(), worker_server_options(), worker_channel_options()]


@pytest.mark.parametrize("options", ALL)
def test_no_option_is_given_twice_and_pings_time_out_when_keepalive_does(options: tuple[tuple[str, int], ...]) -> None:
    values = dict(options)
    assert len(values) == len(options)
    assert values["grpc.http2.ping_timeout_ms"] == values["grpc.keepalive_timeout_ms"]


def test_a_message_of_the_client_limit_is_the_largest_a_gateway_takes() -> None:
    assert dict(gateway_server_options())["grpc.max_receive_message_length"] == CLIENT_MESSAGE_BYTES


def test_servers_accept_the_pings_of_our_channels() -> None:
    ping_ms = dict(worker_channel_options())["grpc.keepalive_time_ms"]
    assert dict(worker_server_options())["grpc.http2.min_ping_interval_without_data_ms"] < ping_ms


def test_a_port_in_use_is_refused() -> None:
    async def scenario() -> None:
        first = grpc.aio.server(options=gateway_server_options())
        port = first.add_insecure_port("127.0.0.1:0")
        await first.start()
        try:
            with pytest.raises(RuntimeError, match=str(port)):
                grpc.aio.server(options=gateway_server_options()).add_insecure_port(f"127.0.0.1:{port}")
        finally:
            await first.stop(None)

    asyncio.run(scenario())


def test_a_burst_of_streams_is_served_whole() -> None:
    async def echo(request: bytes, context: object) -> bytes:
        return request

    async def scenario() -> int:
        server = grpc.aio.server(options=worker_server_options())
        handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=worker_channel_options()) as channel:
                call = channel.unary_unary("/t.T/Echo")
                return len(await asyncio.gather(*(call(b"x") for _ in range(2000))))
        finally:
            await server.stop(None)

    assert asyncio.run(scenario()) == 2000
