"""A connection to addresses already judged, and to nothing else, with one deadline over all it does.

The host name still goes out as SNI and Host, and certificates are checked against it. Names are never
resolved here, environment proxies don't exist at this floor. Called by outbound.py only.
"""

import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore

from app.core.addresses import Address

_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock by which everything must be over."""

    moment: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Return the deadline that lies `seconds` ahead."""
        return cls(time.monotonic() + seconds)

    def within(self, seconds: float) -> float:
        """Return the smaller of `seconds` and what is left. Raises: TimeoutError when nothing is."""
        left = self.moment - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return min(left, seconds)


class PinnedStream(httpcore.NetworkStream):
    """One socket whose every wait ends at the deadline, however slowly the other side drips."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._socket = connection
        self._deadline = deadline

    def _wait(self, timeout: float | None) -> None:
        self._socket.settimeout(self._deadline.within(float("inf") if timeout is None else timeout))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return what has arrived, at most `max_bytes`."""
        self._wait(timeout)
        return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        rest = memoryview(buffer)
        while rest:
            self._wait(timeout)
            rest = rest[self._socket.send(rest[:_PIECE]) :]

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Shake hands under the name the user wrote; a handshake that fails closes the socket."""
        try:
            self._wait(timeout)
            secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except BaseException:
            self._socket.close()
            raise
        return PinnedStream(secured, self._deadline)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Tell nothing: no part of the request depends on it."""
        return None


class PinnedBackend(httpcore.NetworkBackend):
    """Connects one host and port, through the addresses given, in their order."""

    def __init__(
        self, host: str, port: int, addresses: Sequence[Address], deadline: Deadline, connect_seconds: float
    ) -> None:
        self._place = (host, port)
        self._addresses = addresses
        self._deadline = deadline
        self._connect_seconds = connect_seconds

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers, all of them within the connect timeout."""
        if (host, port) != self._place:
            raise ConnectionRefusedError("this connection is pinned to another host")
        connecting = Deadline.after(self._deadline.within(self._connect_seconds))
        problem: OSError = ConnectionRefusedError("no address to connect to")
        for address in self._addresses:
            family = socket.AF_INET if address.version == 4 else socket.AF_INET6
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(connecting.within(self._connect_seconds))
                connection.connect((str(address), port))
                return PinnedStream(connection, self._deadline)
            except OSError as failure:
                connection.close()
                problem = failure
        raise problem

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        """Refuse: a user's address never means a socket of this machine."""
        raise ConnectionRefusedError("unix sockets are never reached")
