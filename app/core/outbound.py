"""The guard for addresses that users send: parse once, resolve once, judge every address, connect to those.

`check_url` and `check_name` spare a user a wrong address when an endpoint is saved; `post` judges again
each time, which is what counts, as a name may answer differently tomorrow. Addresses the operator sets
don't come here. Which are public stands in addresses.py, how one is reached in pinned.py.
Called by services/webhooks.py, app/api/webhooks.py, worker/delivery.py and the endpoint grader.

Source: reliability.md §4; RFC 9110 §10.2.3 (Retry-After).
"""

import contextlib
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache

import httpcore

from app.core import clock
from app.core.addresses import Address, AllowList, is_metadata, is_public, parse_literal
from app.core.errors import InvalidRequest
from app.core.pinned import Deadline, PinnedBackend

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
MOST_BYTES = 64 * 1024
EXCERPT_CHARACTERS = 500

# One grammar, narrower than any URL parser: what it refuses, two parsers might read differently.
_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?:\[(?P<six>[0-9a-f:.]*:[0-9a-f:.]*)\]|(?P<name>[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    # Printable ASCII, but '#' and the backslash.
    r"(?P<path>(?:[/?][!\"$-\[\]-~]*)?)",
    re.ASCII | re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": 80, "https": 443}

Resolver = Callable[[str, int], Sequence[str]]


class OutboundError(InvalidRequest):
    """The address gave no answer, or may not be asked."""


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed address. Nothing reads the text again after this."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Units: latency and retry_after in seconds."""

    status_code: int
    latency: float
    excerpt: str
    retry_after: float | None = None
    body: bytes = b""


def check_url(url: str, *, allow: Sequence[str]) -> None:
    """Refuse an address that could never be delivered to. It asks no name server: see `post`.

    Raises: InvalidRequest with param `url`.
    """
    parse(url, AllowList.parse(allow))


def check_name(url: str, *, allow: Sequence[str], resolver: Resolver | None = None) -> None:
    """Refuse an address whose name leads somewhere private today; a name that doesn't resolve yet may pass.

    It asks a name server, so no transaction may be open. Raises: InvalidRequest with param `url`.
    """
    listed = AllowList.parse(allow)
    target = parse(url, listed)
    with contextlib.suppress(OutboundError):
        addresses = _resolve(target, resolver or system_resolver, Deadline.after(TOTAL_SECONDS))
        for address in addresses:
            _judge(address, listed, host=target.host)


def parse(url: str, allow: AllowList) -> Target:
    """Read an address, judging everything but what its name resolves to. Raises: InvalidRequest."""
    target = _read(url)
    literal = parse_literal(target.host)
    listed = allow.holds_host(target.host)
    if target.scheme == "http" and not listed:
        raise _refused("The URL must start with 'https://'.")
    if target.port not in (80, 443) and not 1024 <= target.port <= 65535:
        raise _refused(f"Port {target.port} is not allowed: use 80, 443, or 1024 and above.")
    local = target.host == "localhost" or target.host.endswith(".localhost")
    if literal is not None:
        _judge(literal, allow, host=target.host)
    elif local and not listed:
        raise _refused(f"'{target.host}' is not a public address.")
    return target


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    allow: Sequence[str],
    resolver: Resolver | None = None,
    seconds: float = TOTAL_SECONDS,
) -> Answer:
    """Send one POST and return its answer, whatever its status. Redirects are answers, not followed.

    Raises: OutboundError when the address may not be asked or gives no answer within `seconds`.
    """
    deadline, listed = Deadline.after(seconds), AllowList.parse(allow)
    try:
        target = parse(url, listed)
        addresses = _resolve(target, resolver or system_resolver, deadline)
        for address in addresses:  # every one: a single private answer spoils the name
            _judge(address, listed, host=target.host)
        return _exchange(target, addresses, body, headers, deadline)
    except OutboundError:
        raise
    except InvalidRequest as problem:
        raise OutboundError(problem.message, param="url") from problem
    except (TimeoutError, httpcore.TimeoutException) as problem:
        raise OutboundError(f"No answer within {seconds:g} seconds.", param="url") from problem
    except (OSError, httpcore.NetworkError, httpcore.ProtocolError) as problem:
        raise OutboundError(f"No answer: {_reason(problem)}.", param="url") from problem


def system_resolver(host: str, port: int) -> list[str]:
    """Ask the machine's name service. Raises: OSError, UnicodeError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _read(url: str) -> Target:
    match = _URL.fullmatch(url) if len(url) <= 2048 else None
    if match is None:
        raise _refused(
            "The URL is not valid: write 'https://host/path' in plain ASCII, without user name or fragment."
        )
    scheme, host = match["scheme"].lower(), (match["six"] or match["name"]).lower()
    # Resolvers read a host that ends in a number as IPv4, in decimal, octal and hex; we in one notation only.
    numeric = match["six"] is not None or re.search(r"(^|\.)([0-9]+|0x[0-9a-f]*)$", host) is not None
    if len(host) > 253 or (numeric and parse_literal(host) is None):
        raise _refused(f"The URL is not valid: '{host[:100]}' is no host name or address.")
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme]
    return Target(scheme, host, port, match["path"] if match["path"].startswith("/") else "/" + match["path"])


def _judge(address: Address, allow: AllowList, *, host: str) -> None:
    if is_metadata(address):
        raise _refused(f"'{host}' is an address no webhook may reach.")
    if not (is_public(address) or host in allow.names or allow.holds_address(address)):
        raise _refused(f"'{host}' is not a public address.")


def _resolve(target: Target, resolver: Resolver, deadline: Deadline) -> list[Address]:
    literal = parse_literal(target.host)
    if literal is not None:
        return [literal]
    answers: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolver(target.host, target.port))
        except Exception as problem:  # handed to the caller below
            answers.put(problem)

    # getaddrinfo knows no timeout, so a name server that hangs costs a thread, never the dispatcher.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=deadline.within(CONNECT_SECONDS))
    except queue.Empty:
        raise OutboundError(f"'{target.host}' does not resolve in time.", param="url") from None
    if isinstance(answer, Exception):
        raise OutboundError(f"'{target.host}' does not resolve.", param="url") from answer
    addresses = [parse_literal(text) for text in answer]
    if not addresses or None in addresses:
        raise OutboundError(f"'{target.host}' does not resolve.", param="url")
    return [address for address in addresses if address is not None]


def _exchange(
    target: Target,
    addresses: Sequence[Address],
    body: bytes,
    headers: Mapping[str, str],
    deadline: Deadline,
) -> Answer:
    backend = PinnedBackend(target.host, target.port, addresses, deadline, CONNECT_SECONDS)
    sent = {**headers, "host": target.authority, "accept-encoding": "identity", "connection": "close"}
    url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
    started = time.monotonic()
    with (
        httpcore.ConnectionPool(_certificates(), network_backend=backend, max_connections=1) as pool,
        pool.stream("POST", url, headers=list(sent.items()), content=body) as response,
    ):
        latency = time.monotonic() - started
        found = {name.lower(): value for name, value in response.headers}
        wait = retry_after(found.get(b"retry-after", b""), clock.now())
        body = _beginning(response)
        return Answer(response.status, latency, _excerpt(body), wait, body)


@cache
def _certificates() -> ssl.SSLContext:
    return httpcore.default_ssl_context()


def _beginning(response: httpcore.Response) -> bytes:
    data = bytearray()
    # The status is the answer already; a body that stalls or breaks takes nothing from it.
    with contextlib.suppress(
        OSError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError
    ):
        for piece in response.iter_stream():
            data += piece
            if len(data) >= MOST_BYTES:
                break
    return bytes(data[:MOST_BYTES])


def _excerpt(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    # Control characters have no place in a log, and Postgres refuses NUL in a text.
    return re.sub(r"[\x00-\x20\x7f\ufffd]+", " ", text).strip()[:EXCERPT_CHARACTERS]


def retry_after(value: bytes, now: float) -> float | None:
    """Return the seconds a Retry-After header asks for, None when it asks for nothing readable."""
    text = value.decode("ascii", "replace").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _reason(problem: Exception) -> str:
    if isinstance(problem, ssl.SSLCertVerificationError):
        return f"its certificate is not valid ({problem.verify_message})"
    if isinstance(problem, ssl.SSLError):
        return "it speaks no TLS we know"
    if isinstance(problem, ConnectionRefusedError):
        return "the connection was refused"
    return "the connection broke off" if not str(problem) else str(problem)[:200]


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="url")
