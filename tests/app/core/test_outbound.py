"""The guard lets users reach the open internet and nothing else, whatever the address looks like."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from itertools import chain, repeat
from threading import Thread

import pytest

from app.core import outbound
from app.core.errors import InvalidRequest
from app.core.outbound import OutboundError, check_name, check_url, post, retry_after
from tests.receiver import Receiver, listening

LOOPBACK = ["127.0.0.1"]

REFUSED = [
    # Schemes and shapes.
    "",
    "hooks.example.com/x",
    "http://hooks.example.com/x",
    "file:///etc/passwd",
    "gopher://hooks.example.com/x",
    "dict://hooks.example.com:11211/",
    "ftp://hooks.example.com/x",
    "unix:///run/x.sock",
    "https:hooks.example.com",
    "https:/hooks.example.com",
    "https:///hooks.example.com",
    "https://",
    "https://.",
    "https://hooks..example.com/",
    "https://hooks.example.com./",
    f"https://{'a' * 64}.example.com/",
    "https://" + "a." * 130 + "com/",
    "https://hooks.example.com/" + "x" * 2048,
    # Userinfo, fragments, backslashes, line breaks: where two parsers disagree.
    "https://user@hooks.example.com/",
    "https://user:secret@hooks.example.com/",
    "https://hooks.example.com@127.0.0.1/",
    "https://hooks.example.com:443@127.0.0.1/",
    "https://127.0.0.1#@hooks.example.com/",
    "https://hooks.example.com/#fragment",
    "https://hooks.example.com\\@127.0.0.1/",
    "https:\\\\127.0.0.1/",
    "https://127.0.0.1\\.hooks.example.com/",
    "https://hooks.example.com/\r\nX-Injected: 1",
    "https://hooks.example.com\r\n/",
    "https://hooks.example.com/a b",
    "https://hooks.example.com/\t",
    "https://hooks.example.com\x00/",
    " https://hooks.example.com/",
    "https://hooks.example.com/\n",
    "https://hooks%2eexample.com/",
    "https://%31%32%37.0.0.1/",
    # Ports.
    "https://hooks.example.com:22/",
    "https://hooks.example.com:25/",
    "https://hooks.example.com:0/",
    "https://hooks.example.com:444/",
    "https://hooks.example.com:65536/",
    "https://hooks.example.com:/",
    "https://hooks.example.com:-1/",
    "https://hooks.example.com:٤٤٣/",
    # IPv4 in every notation.
    "https://127.0.0.1/",
    "https://127.1/",
    "https://127.0.1/",
    "https://0/",
    "https://0.0.0.0/",
    "https://2130706433/",
    "https://017700000001/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0x7f.1/",
    "https://0177.0.0.1/",
    "https://0177.0.0.01/",
    "https://127.0.0.1.0x/",
    "https://8.8.8.08/",
    "https://134744072/",
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://192.0.0.192/",
    "https://192.0.2.1/",
    "https://198.18.0.1/",
    "https://198.51.100.7/",
    "https://203.0.113.9/",
    "https://224.0.0.1/",
    "https://240.0.0.1/",
    "https://255.255.255.255/",
    # Unicode digits and dots.
    "https://①②⑦.⓪.⓪.①/",
    "https://１２７.0.0.1/",
    "https://127。0。0。1/",
    "https://127．0．0．1/",
    "https://bücher.example/",
    "https://ｌocalhost/",
    # IPv6.
    "https://[::]/",
    "https://[::1]/",
    "https://[0:0:0:0:0:0:0:1]/",
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b:1::7f00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    "https://[2001:db8::1]/",
    "https://[3fff::1]/",
    "https://[fc00::1]/",
    "https://[fd12:3456::1]/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fe80::1%eth0]/",
    "https://[ff02::1]/",
    "https://[127.0.0.1]/",
    "https://[::1/",
    "https://::1/",
    "https://[v1.x]/",
    # Metadata services.
    "https://169.254.169.254/latest/meta-data/",
    "https://[::ffff:169.254.169.254]/",
    "https://[fd00:ec2::254]/",
    "https://100.100.100.200/",
    "https://168.63.129.16/",
    # Names of this machine.
    "https://localhost/",
    "https://LOCALHOST:8443/",
    "https://hooks.localhost/",
]


@pytest.mark.parametrize("url", REFUSED)
def test_an_address_that_is_not_public_is_refused(url: str) -> None:
    """By the text alone: no name server is asked, and no connection made."""

    def no_name_server(host: str, port: int) -> list[str]:
        raise AssertionError(f"resolved {host}")

    with pytest.raises(InvalidRequest) as refusal:
        check_url(url, allow=[])
    assert refusal.value.param == "url"
    with pytest.raises(OutboundError):
        post(url, b"{}", {}, allow=[], resolver=no_name_server)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.com",
        "https://hooks.example.com/a/b?c=d&e=%20",
        "HTTPS://Hooks.Example.COM:443/",
        "https://hooks.example.com:8443/x",
        "https://a_b-c.example.com?x=1",
        "https://xn--bcher-kva.example/",
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]/",
        "https://[::ffff:8.8.8.8]/",
    ],
)
def test_a_public_address_is_taken(url: str) -> None:
    """Ordinary addresses pass."""
    check_url(url, allow=[])


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        ["10.1.2.3"],
        ["169.254.169.254"],
        ["::1"],
        ["fe80::1%eth0"],
        ["::ffff:192.168.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["8.8.8.8", "127.0.0.1"],
        ["2606:4700:4700::1111", "fd00::1"],
    ],
)
def test_every_address_behind_a_name_must_be_public(answer: list[str]) -> None:
    """One private address among many refuses the name, when it is saved and when it is used."""
    with pytest.raises(OutboundError, match=r"not a public address|no webhook may reach"):
        post("https://hooks.example.com/", b"{}", {}, allow=[], resolver=lambda host, port: answer)
    with pytest.raises(InvalidRequest):
        check_name("https://hooks.example.com/", allow=[], resolver=lambda host, port: answer)


def test_metadata_is_refused_even_when_allowed() -> None:
    """An operator who opens everything has still not opened the cloud's credentials."""
    everything = ["0.0.0.0/0", "::/0", "inside.example"]
    for host in (
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::]",
        "[::169.254.169.254]",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "192.0.0.192",
        "168.63.129.16",
    ):
        with pytest.raises(InvalidRequest, match="no webhook may reach"):
            check_url(f"http://{host}/", allow=everything)
    with pytest.raises(OutboundError, match="no webhook may reach"):
        answer = ["169.254.169.254"]
        post("http://inside.example/", b"{}", {}, allow=everything, resolver=lambda host, port: answer)


def test_the_allow_list_opens_what_it_names_and_no_more() -> None:
    """One listed address leaves its neighbours, other names and plain http to others closed."""
    check_url("http://10.0.0.5:9000/", allow=["10.0.0.5"])
    check_url("http://10.0.0.5/", allow=["10.0.0.0/24"])
    check_url("http://[fd00::7]/", allow=["fd00::/8"])
    check_url("http://Receiver/", allow=["receiver"])
    check_url("http://localhost:9000/", allow=["localhost"])
    for url in ("http://10.0.1.5/", "http://127.0.0.1/", "http://8.8.8.8/", "http://hooks.example.com/"):
        with pytest.raises(InvalidRequest):
            check_url(url, allow=["10.0.0.0/24", "receiver"])
    with pytest.raises(OutboundError, match="not a public"):
        post(
            "https://hooks.example.com/",
            b"{}",
            {},
            allow=["10.0.0.5"],
            resolver=lambda host, port: ["10.0.0.5", "10.0.0.6"],
        )
    with pytest.raises(InvalidRequest, match="Port 22"):
        check_url("http://10.0.0.5:22/", allow=["10.0.0.5"])


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver on loopback."""
    with listening() as receiver:
        yield receiver


def test_post_sends_the_bytes_and_headers(receiver: Receiver) -> None:
    """Body, path, query and Host arrive as given, and the answer's status and start come back."""
    receiver.statuses, receiver.answer = [503], b"busy\x00 \xff" + b"x" * 2000
    receiver.headers = {"Retry-After": "7"}
    answer = post(f"{receiver.url}?a=b", b'{"a":1}', {"X-Test": "yes"}, allow=LOOPBACK)
    assert (answer.status_code, answer.retry_after) == (503, 7.0)
    assert answer.excerpt.startswith("busy x") and len(answer.excerpt) == outbound.EXCERPT_CHARACTERS
    [request] = receiver.received
    assert (request.path, request.body) == ("/hook?a=b", b'{"a":1}')
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert (request.headers["x-test"], request.headers["accept-encoding"]) == ("yes", "identity")


def test_redirects_are_answers(receiver: Receiver) -> None:
    """A redirect to loopback is not followed."""
    with listening() as inside:
        receiver.statuses, receiver.headers = [307], {"Location": inside.url}
        assert post(receiver.url, b"{}", {}, allow=LOOPBACK).status_code == 307
        assert inside.received == []


def test_the_environment_names_no_proxy(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies of the environment would resolve names for us, unjudged."""
    with listening() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        assert post(receiver.url, b"{}", {}, allow=LOOPBACK).status_code == 200
        assert proxy.received == []


def test_a_name_is_resolved_once(receiver: Receiver) -> None:
    """A name server that changes its mind after the check (rebinding) changes nothing."""
    answers = [["127.0.0.1"], ["10.9.9.9"]]
    asked: list[tuple[str, int]] = []

    def rebinding(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return answers.pop(0)

    url = f"http://receiver.example:{receiver.port}/"
    assert post(url, b"{}", {}, allow=["receiver.example"], resolver=rebinding).status_code == 200
    assert asked == [("receiver.example", receiver.port)]
    assert receiver.received[0].headers["host"] == f"receiver.example:{receiver.port}"


def test_a_failed_lookup_ends_the_attempt() -> None:
    """No second, unjudged lookup follows one that failed (a bug others had)."""

    def fails(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "unknown")

    for resolver in (fails, lambda host, port: [], lambda host, port: ["nonsense"]):
        with pytest.raises(OutboundError, match="does not resolve"):
            post("https://hooks.example.com/", b"{}", {}, allow=[], resolver=resolver)
    check_name("https://hooks.example.com/", allow=[], resolver=fails)


def test_the_next_address_is_tried(receiver: Receiver) -> None:
    """An address that refuses doesn't hide one that answers."""
    url = f"http://receiver.example:{receiver.port}/"
    answer = post(
        url, b"{}", {}, allow=["receiver.example"], resolver=lambda host, port: ["::1", "127.0.0.1"]
    )
    assert answer.status_code == 200


@contextmanager
def raw_server(pieces: Iterable[bytes] = (), *, pause: bool = False) -> Iterator[tuple[int, list[bytes]]]:
    """Answer one connection with `pieces`, then close it, or keep it open and silent when `pause`.

    The list holds the first bytes that came in, then every piece that went out.
    """
    seen: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            connection, _ = server.accept()
            with connection:
                seen.append(connection.recv(65536))
                for piece in pieces:
                    connection.sendall(piece)
                    seen.append(piece)
                while pause and connection.recv(65536):
                    pass

    thread = Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1], seen
    finally:
        server.close()
        thread.join(5)


def test_tls_speaks_the_name_not_the_address() -> None:
    """SNI carries the host the user wrote although the connection goes to a checked address."""
    with raw_server() as (port, seen):
        with pytest.raises(OutboundError, match="No answer"):
            post(
                f"https://hooks.example.test:{port}/",
                b"{}",
                {},
                allow=["127.0.0.1"],
                resolver=lambda host, port: ["127.0.0.1"],
            )
        assert b"hooks.example.test" in seen[0]


def test_silence_ends_at_the_deadline() -> None:
    """A receiver that says nothing, or stops in the middle, costs no more than the deadline."""
    with raw_server(pause=True) as (port, _), pytest.raises(OutboundError, match=r"No answer within 0\.3 s"):
        post(f"http://127.0.0.1:{port}/", b"{}", {}, allow=LOOPBACK, seconds=0.3)
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"
    with raw_server([begun], pause=True) as (port, _):
        answer = post(f"http://127.0.0.1:{port}/", b"{}", {}, allow=LOOPBACK, seconds=0.3)
        assert (answer.status_code, answer.excerpt) == (200, "part")


def test_no_more_than_64_kb_is_read() -> None:
    """An endless answer is cut off."""
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"
    with raw_server(chain([begun], repeat(b"x" * 65536))) as (port, seen):
        assert post(f"http://127.0.0.1:{port}/", b"{}", {}, allow=LOOPBACK).status_code == 200
    # What lies in the two sockets' buffers was sent and never read.
    assert len(seen) < 300


@pytest.mark.parametrize(
    "answer", [b"", b"\x00\x01\x02 not http\r\n\r\n", b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000]
)
def test_nonsense_is_no_answer(answer: bytes) -> None:
    """What isn't HTTP is a failed attempt, never an exception of another kind."""
    with raw_server([answer]) as (port, _), pytest.raises(OutboundError, match="No answer"):
        post(f"http://127.0.0.1:{port}/", b"{}", {}, allow=LOOPBACK)


def test_compressed_answers_stay_compressed(receiver: Receiver) -> None:
    """A small gzip answer never becomes a large one in memory."""
    receiver.headers, receiver.answer = {"Content-Encoding": "gzip"}, b"\x1f\x8b-not-really-gzip"
    assert "not-really-gzip" in post(receiver.url, b"{}", {}, allow=LOOPBACK).excerpt


def test_retry_after_reads_seconds_and_dates() -> None:
    """Both forms of RFC 9110, and nothing else."""
    assert retry_after(b"120", 0.0) == 120.0
    assert retry_after(formatdate(1_000_060, usegmt=True).encode(), 1_000_000.0) == 60.0
    assert retry_after(formatdate(1_000_000, usegmt=True).encode(), 1_000_060.0) == 0.0
    for text in (b"", b"soon", b"-5", b"1e9", b"\xff"):
        assert retry_after(text, 0.0) is None
