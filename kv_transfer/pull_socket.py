"""How two workers on one host meet: a Unix socket that carries the key of a pool, then short messages, each whole.

The socket's name is abstract, so that nothing is left in a file system when a worker is killed. Such names have no
permissions: the ticket's secret and the peer's user id, which the kernel vouches for, decide who enters. Knows no KV.
"""

import hmac
import os
import re
import secrets
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from twinpool.kv_transfer.link import LinkError, Ticket
from twinpool.kv_transfer.pull_pool import PoolKey, PullMemory

SECRET_BYTES = 16
_READY = b"ready"
_NAME = re.compile(r"twinpool-[0-9a-f]{32}")
_GREETING_TIMEOUT_S = 1.0  # for one caller: a silent one holds up the right one only so long


def new_socket() -> socket.socket:
    """A socket of the kind used here, not connected. Raises LinkError when none can be had."""
    with _as_link_error("no Unix socket"):
        return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def listen_on_host() -> tuple[socket.socket, Ticket]:
    """Listen under a new name; the ticket is good for whoever presents its secret first.

    Raises:
        LinkError: this machine allows no such socket.
    """
    name, secret = f"twinpool-{secrets.token_hex(16)}", secrets.token_bytes(SECRET_BYTES)
    listener = new_socket()
    try:
        listener.bind(f"\0{name}")
        listener.listen()
    except OSError as error:
        listener.close()
        raise LinkError(f"cannot listen on a Unix socket: {error}") from None
    return listener, Ticket(name, 0, secret)


def accept(
    listener: socket.socket, secret: bytes, memory: PullMemory, timeout_s: float
) -> tuple[socket.socket, PoolKey]:
    """Wait for the source with the secret; returns the connection and the key that it brought.

    Both are the caller's, the key's descriptors too.

    Others are hung up on. Ends at once when ``listener`` is shut down.

    Raises:
        LinkError: it did not come in time.
    """
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        connection = _next_caller(listener, left_s)
        if connection is None:
            break
        key = _greeted(connection, secret, memory, min(left_s, _GREETING_TIMEOUT_S))
        if key is not None:
            return connection, key
        connection.close()
    raise LinkError("the source did not come to the link: timed out")


def connect(connection: socket.socket, ticket: Ticket, memory: PullMemory, timeout_s: float) -> None:
    """Call the target, show the ticket, hand over the key of this worker's pool and wait for ``welcome``.

    Raises:
        LinkError: nobody is there, the ticket is not theirs, or the target cannot open the pool.
    """
    key = memory.key()
    if not _NAME.fullmatch(ticket.host):
        raise LinkError("the ticket is not for a link of this kind")
    connection.settimeout(timeout_s)
    with _as_link_error("cannot reach the target"):
        connection.connect(f"\0{ticket.host}")
    if not _is_of_our_user(connection):
        raise LinkError("the target belongs to another user")
    with _as_link_error("cannot hand the pool over"):
        socket.send_fds(connection, [_greeting(memory, ticket.secret) + key.plain], key.fds)
    if receive(connection, len(_READY), timeout_s) != _READY:
        raise LinkError("the target does not speak as one")


def welcome(connection: socket.socket) -> None:
    """Tell the source that its key is good."""
    send(connection, _READY)


def send(connection: socket.socket, message: bytes) -> None:
    """Send one message. Raises LinkError when the other end is gone, or shut down."""
    with _as_link_error("the link broke"):
        connection.send(message)


def receive(connection: socket.socket, num_bytes: int, timeout_s: float) -> bytes:
    """Return the next message, which has exactly this many bytes.

    Raises:
        LinkError: it has not, the other end is gone, or nothing came in time.
    """
    connection.settimeout(timeout_s)
    with _as_link_error("nothing came over the link"):
        message = connection.recv(num_bytes + 1)
    if not message:
        raise LinkError("the link was closed by the other end")
    if len(message) != num_bytes:
        raise LinkError(f"a message of {len(message)} bytes or more came where {num_bytes} were due")
    return message


def _next_caller(listener: socket.socket, timeout_s: float) -> socket.socket | None:
    """Whoever connects next; None when nobody did.

    ``accept`` alone would not notice that the listener is shut down: it then finds nothing, again and again.
    """
    listener.setblocking(False)
    poll = select.poll()
    with _as_link_error("the source did not come to the link"):
        poll.register(listener, select.POLLIN)
        events = poll.poll(timeout_s * 1000)
        if not events:
            return None
        if events[0][1] & ~select.POLLIN:
            raise LinkError("the link was closed")
        return listener.accept()[0]


def _greeting(memory: PullMemory, secret: bytes) -> bytes:
    return f"twinpool {memory.kind} 1 ".encode() + secret


def _greeted(connection: socket.socket, secret: bytes, memory: PullMemory, timeout_s: float) -> PoolKey | None:
    """The key that a caller brought with the right secret; None, and nothing is kept, of anybody else."""
    expected, fds = _greeting(memory, secret), list[int]()
    size = len(expected) + memory.key_bytes
    connection.settimeout(timeout_s)
    with suppress(OSError):
        if _is_of_our_user(connection):
            flags = socket.MSG_CMSG_CLOEXEC
            message, fds, _, _ = socket.recv_fds(connection, size + 1, memory.num_fds, flags)
            is_right = hmac.compare_digest(message[: len(expected)], expected)
            if is_right and len(message) == size and len(fds) == memory.num_fds:
                return PoolKey(message[len(expected) :], tuple(fds))
    for fd in fds:
        os.close(fd)
    return None


def _is_of_our_user(connection: socket.socket) -> bool:
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.geteuid())


@contextmanager
def _as_link_error(what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise LinkError(f"{what}: timed out") from None
    except OSError as error:
        raise LinkError(f"{what}: {error.strerror or error}") from None
