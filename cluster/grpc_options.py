"""The options of every gRPC server and channel inside a cluster, with the reason for each.

Knows no service. The public client keeps its own options, because it may not import this package.
"""

Options = tuple[tuple[str, int], ...]

CLIENT_MESSAGE_BYTES = 16 * 2**20
WORKER_MESSAGE_BYTES = 64 * 2**20  # an engine step of many requests, or a prompt of a million tokens
MAX_PENDING_REQUESTS = 100_000


def gateway_server_options() -> Options:
    """Return the options of a server that clients reach."""
    return (
        *_server(CLIENT_MESSAGE_BYTES),
        *_keepalive(time_ms=30_000, timeout_ms=10_000),
        ("grpc.max_connection_idle_ms", 300_000),  # a connection without streams is never pinged away
    )


def worker_server_options() -> Options:
    """Return the options of a worker's server; a peer that fell silent is noticed within about 4 s."""
    return (*_server(WORKER_MESSAGE_BYTES), *_keepalive(time_ms=2_000, timeout_ms=2_000))


def worker_channel_options() -> Options:
    """Return the options of a channel to a worker; a worker that fell silent is noticed within about 4 s."""
    return (
        *_message_bytes(WORKER_MESSAGE_BYTES),
        *_keepalive(time_ms=2_000, timeout_ms=2_000),
        ("grpc.http2.max_pings_without_data", 0),  # no limit: quiet streams are still watched
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 5_000),  # also how long one attempt to connect may take
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_http_proxy", 0),  # workers are never behind the proxy of the environment
    )


def _server(message_bytes: int) -> Options:
    return (
        *_message_bytes(message_bytes),
        # With the defaults (1000, 3000) bursts of streams end with CANCELLED in a random part of the calls.
        ("grpc.server.max_pending_requests", MAX_PENDING_REQUESTS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_REQUESTS),
        # Otherwise a second server may share a port in use, and each gets half of the connections.
        ("grpc.so_reuseport", 0),
        # Clients may ping as often as the channels here do, on quiet streams too; by default the third ping within
        # five minutes without data ends the connection.
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 0),
    )


def _message_bytes(limit: int) -> Options:
    return (("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit))


def _keepalive(time_ms: int, timeout_ms: int) -> Options:
    return (
        ("grpc.keepalive_time_ms", time_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # keepalive_timeout_ms alone leaves a 60 s ping timer
        ("grpc.keepalive_permit_without_calls", 1),
    )
