"""A creating request that is sent again makes nothing twice: by key, and by the clients' own retries."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
from sqlalchemy import func, select, update

from app.core import clock
from app.core.tables import Acceptance, File, Job
from app.services import acceptances
from tests.app.api.server import BOTH, LINES, METHOD, MODEL, Server

KEY = {"Idempotency-Key": "order-7"}
AGAIN = {"x-stainless-retry-count": "1"}


def _job(training_file: str, **more: object) -> dict[str, object]:
    return {"model": MODEL, "training_file": training_file, "method": METHOD, "seed": 1} | more


def _count(server: Server, table: type[Job] | type[File]) -> int:
    with server.context.db.reading() as session:
        query = select(func.count()).select_from(table).where(table.project_id == server.project_id)
        return session.scalars(query).one()


def _upload(server: Server, headers: dict[str, str], data: bytes = LINES, name: str = "a.jsonl") -> dict:
    answer = server.raw(
        "POST", "/v1/files", headers=headers, files={"file": (name, data)}, data={"purpose": "fine-tune"}
    )
    body: dict = answer.json()
    return body


@BOTH
def test_an_idempotency_key_makes_one_job(server: Server, training_file: str) -> None:
    first = server.raw("POST", "/v1/fine_tuning/jobs", headers=KEY, json=_job(training_file))
    assert first.status_code == 200, first.text
    # The same content with its keys in another order is the same body.
    turned = dict(reversed(_job(training_file).items()))
    again = server.raw("POST", "/v1/fine_tuning/jobs", headers=KEY, json=turned)
    assert again.json()["id"] == first.json()["id"]
    other = server.raw("POST", "/v1/fine_tuning/jobs", headers=KEY, json=_job(training_file, seed=2))
    error = other.json()["error"]
    assert (other.status_code, error["code"], error["param"]) == (
        400,
        "idempotency_key_reused",
        "Idempotency-Key",
    )
    assert "order-7" in error["message"]
    assert _count(server, Job) == 1
    _, key = server.new_key("other")
    theirs = server.raw("POST", "/v1/files", headers={**KEY, "authorization": f"Bearer {key}"})
    assert theirs.json()["error"]["code"] == "unsupported_content_type"


@BOTH
def test_requests_at_once_under_one_key_make_one_job(server: Server, training_file: str) -> None:
    def send(_n: int) -> str:
        answer = server.raw("POST", "/v1/fine_tuning/jobs", headers=KEY, json=_job(training_file))
        job_id: str = answer.json()["id"]
        return job_id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(send, range(6)))) == 1
    assert _count(server, Job) == 1


def test_an_idempotency_key_makes_one_file(server: Server) -> None:
    first = _upload(server, KEY)
    assert _upload(server, KEY)["id"] == first["id"]
    for changed in (_upload(server, KEY, LINES + LINES), _upload(server, KEY, name="b.jsonl")):
        assert changed["error"]["code"] == "idempotency_key_reused"
    assert _count(server, File) == 1
    assert len(server.stored()) == 1


@pytest.mark.parametrize("value", ["", "x" * 256, "\xff"])
def test_a_key_that_can_not_be_kept_is_refused(server: Server, training_file: str, value: str) -> None:
    headers = {"Idempotency-Key": value.encode("latin-1")}
    answer = server.raw("POST", "/v1/fine_tuning/jobs", headers=headers, json=_job(training_file))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_a_refused_request_uses_up_no_key(server: Server, training_file: str) -> None:
    wrong = server.raw("POST", "/v1/fine_tuning/jobs", headers=KEY, json=_job("file-x"))
    assert wrong.status_code == 400
    right = server.raw("POST", "/v1/fine_tuning/jobs", headers=KEY, json=_job(training_file))
    assert right.status_code == 200


def test_a_retry_returns_what_the_lost_answer_named(server: Server, training_file: str) -> None:
    def send(headers: dict[str, str], **more: object) -> str:
        answer = server.raw("POST", "/v1/fine_tuning/jobs", headers=headers, json=_job(training_file, **more))
        job_id: str = answer.json()["id"]
        return job_id

    first = send({"x-stainless-retry-count": "0"})
    assert send(AGAIN) == send({"x-stainless-retry-count": "2"}) == first
    # Asked for on purpose: another job.
    second = send({"x-stainless-retry-count": "0"})
    assert second != first
    assert send(AGAIN) == second
    assert send(AGAIN, seed=5) not in (first, second)
    with server.context.db.transaction() as session:
        session.execute(update(Acceptance).values(created_at=clock.now() - acceptances.TWIN_SECONDS - 1))
    assert send(AGAIN) not in (first, second)


def test_a_retried_upload_makes_no_twin_unless_the_first_is_gone(
    client: openai.OpenAI, server: Server
) -> None:
    first = _upload(server, {})
    assert _upload(server, AGAIN)["id"] == first["id"]
    assert len(server.stored()) == 1
    client.files.delete(first["id"])
    assert _upload(server, AGAIN)["id"] != first["id"]
    assert len(server.stored()) == 1


@contextmanager
def _cutting(port: int, cuts: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the port of a relay that takes `cuts` answers off the wire, and the answers it took."""
    taken: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def relay() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            with near, socket.create_connection(("127.0.0.1", port)) as far:
                back = threading.Thread(target=_pump, args=(far, near, taken, cuts))
                back.start()
                while data := _read(near):
                    far.sendall(data)
                far.close()
                back.join()

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    yield listener.getsockname()[1], taken
    listener.close()


def _pump(far: socket.socket, near: socket.socket, taken: list[bytes], cuts: int) -> None:
    while data := _read(far):
        if len(taken) < cuts:
            taken.append(data)
            near.shutdown(socket.SHUT_RDWR)
            return
        near.sendall(data)


def _read(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65_536)
    except OSError:
        return b""


@BOTH
def test_a_cut_connection_makes_no_twin(server: Server, training_file: str) -> None:
    with _cutting(server.port, cuts=2) as (port, taken):
        base = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=base, api_key=server.key, max_retries=2) as client:
            job = client.fine_tuning.jobs.create(**_job(training_file))  # type: ignore[arg-type]
        # The server had accepted both times.
        assert [answer[:15] for answer in taken] == [b"HTTP/1.1 200 OK"] * 2
    with server.context.db.reading() as session:
        query = select(Job.id).where(Job.project_id == server.project_id)
        assert session.scalars(query).all() == [job.id]


def test_a_cut_upload_makes_no_twin(server: Server) -> None:
    with _cutting(server.port, cuts=1) as (port, taken):
        base = f"http://127.0.0.1:{port}/v1"
        with openai.OpenAI(base_url=base, api_key=server.key, max_retries=2) as client:
            file = client.files.create(file=("a.jsonl", LINES), purpose="fine-tune")
        assert [answer[:15] for answer in taken] == [b"HTTP/1.1 200 OK"]
    assert [name.split("/")[-1] for name in server.stored()] == [file.id]


def test_old_acceptances_are_forgotten(server: Server, training_file: str) -> None:
    server.raw("POST", "/v1/fine_tuning/jobs", headers=KEY, json=_job(training_file))
    with server.context.db.transaction() as session:
        acceptances.forget_old(session)
        kept = session.scalars(select(func.count()).select_from(Acceptance)).one()
        session.execute(update(Acceptance).values(created_at=clock.now() - acceptances.KEPT_SECONDS - 1))
        acceptances.forget_old(session)
        assert (kept, session.scalars(select(func.count()).select_from(Acceptance)).one()) == (2, 0)
