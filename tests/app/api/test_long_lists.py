"""A list costs the same when it is long: as many statements, and each by an index.

Source: issue 3 ("the same number of queries at 10 and at 100,000 rows, with indexes to match").
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, select, text

from app.core.tables import Event, File, Job, Project
from app.services import jobs, models, permissions, webhooks
from tests.app.api.server import BOTH, Server
from tests.many import multiply, new_ids

MANY, PAGE = 100_000, 10
# What a plan says when it reads a whole table, or orders rows by hand.
SLOW = ("SCAN {}", "TEMP B-TREE", "Seq Scan", "Sort")
TUNED = "ft:tiny/base-model:personal::AbCd1234"


@contextmanager
def _statements(server: Server) -> Iterator[list[tuple[str, Any]]]:
    """Yield the statements the server runs within the block."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(server.context.db.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(server.context.db.engine, "before_cursor_execute", note)


def _get(server: Server, address: str) -> tuple[list[str], list[tuple[str, Any]]]:
    """Return the ids on a page, and the statements it took beside the key's own."""
    with _statements(server) as seen:
        answer = server.raw("GET", address)
    assert answer.status_code == 200, answer.text
    return [row["id"] for row in answer.json()["data"]], [one for one in seen if "api_keys" not in one[0]]


def _grow(server: Server, job_id: str, file_id: str, *, start: int, times: int) -> None:
    later = {"created_at": f"created_at + {start} + i"}
    with server.context.db.transaction() as session:
        event_id = session.scalars(select(Event.id).where(Event.job_id == job_id, Event.seq == 1)).one()
        multiply(session, Job, source=job_id, times=times, changes=later | {"id": new_ids(f"ftjob-{start}-")})
        multiply(
            session, File, source=file_id, times=times, changes=later | {"id": new_ids(f"file-{start}-")}
        )
        changes = {"id": new_ids(f"ftevent-{start}-"), "seq": f"seq + {start} + i", "number": None}
        multiply(session, Event, source=event_id, times=times, changes=changes)
    # Planners go by what they know of a table's size.
    with server.context.db.transaction() as session:
        session.execute(text("ANALYZE"))


def _plan(server: Server, statement: str, parameters: Any) -> str:
    explain = "EXPLAIN QUERY PLAN" if server.context.db.is_sqlite else "EXPLAIN"
    with server.context.db.engine.connect() as connection:
        rows = connection.exec_driver_sql(f"{explain} {statement}", parameters)
        return "\n".join(str(row[-1]) for row in rows)


@BOTH
def test_a_page_costs_the_same_at_100_000_rows(server: Server, job_id: str, training_file: str) -> None:
    lists = {
        "/v1/fine_tuning/jobs": "fine_tuning_jobs",
        "/v1/files": "files",
        f"/v1/fine_tuning/jobs/{job_id}/events": "job_events",
    }
    _grow(server, job_id, training_file, start=1_000, times=PAGE + 5)
    few = {}
    for address in lists:
        ids, _ = _get(server, f"{address}?limit={PAGE}")
        few[address] = len(_get(server, f"{address}?limit={PAGE}&after={ids[3]}")[1])
    _grow(server, job_id, training_file, start=10_000, times=MANY)
    for address, table in lists.items():
        ids, _ = _get(server, f"{address}?limit={PAGE}")
        assert len(ids) == PAGE
        middle = ids[0].rpartition("-")[0] + f"-{MANY // 2}"
        page, statements = _get(server, f"{address}?limit={PAGE}&after={middle}")
        assert [int(one.rpartition("-")[2]) for one in page] == [MANY // 2 - n for n in range(1, PAGE + 1)]
        assert len(statements) == few[address]
        reading = [one for one in statements if f"FROM {table}" in one[0]]
        assert reading
        for statement, parameters in reading:
            plan = _plan(server, statement, parameters)
            assert "INDEX" in plan.upper(), plan
            for slow in SLOW:
                assert slow.format(table) not in plan, plan


@BOTH
def test_short_lists_have_their_index_too(server: Server, job_id: str) -> None:
    """Permissions and webhook endpoints: no full scan, no sort."""
    with server.context.db.transaction() as session:
        job = jobs.get_job(session, project_id=server.project_id, job_id=job_id)
        models.add_tuned(session, job=job, model_id=TUNED, kind="tuned", uri="x", details={})
        [permission] = permissions.create_permissions(
            session, project_id=server.project_id, model_id=TUNED, project_ids=[server.project_id]
        )
        endpoint, _ = webhooks.create_endpoint(
            session,
            settings=server.context.settings,
            project_id=server.project_id,
            name="x",
            url="https://8.8.8.8/",
            event_types=["fine_tuning.job.failed"],
        )
        later: dict[str, str | None] = {"created_at": "created_at + i", "id": new_ids("we_")}
        multiply(session, type(endpoint), source=endpoint.id, times=2_000, changes=later)
        projects: dict[str, str | None] = {"id": new_ids("proj_many_")}
        multiply(session, Project, source=server.project_id, times=2_000, changes=projects)
        later |= {"id": new_ids("cp_"), "project_id": new_ids("proj_many_")}
        multiply(session, type(permission), source=permission.id, times=2_000, changes=later)
    with server.context.db.transaction() as session:
        session.execute(text("ANALYZE"))
    for address, table in (
        (f"/v1/fine_tuning/checkpoints/{TUNED}/permissions", "permissions"),
        ("/v1/webhook_endpoints", "webhook_endpoints"),
    ):
        _, statements = _get(server, f"{address}?limit=5")
        reading = [one for one in statements if f"FROM {table}" in one[0]]
        assert reading
        for statement, parameters in reading:
            plan = _plan(server, statement, parameters)
            for slow in SLOW:
                assert slow.format(table) not in plan, plan
