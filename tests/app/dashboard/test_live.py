"""The stream: nothing lost, nothing repeated, whatever happens between page, drop and reconnect."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from app.core.context import Context
from app.core.tables import Job
from app.dashboard import live
from app.dashboard.live import Hub
from app.services import events, jobs
from tests.app.dashboard.seed import Seeded

POLL = 0.01


def say(context: Context, job_id: str, *, times: int = 1) -> int:
    """Append events to a job and return the last one's place."""
    with context.db.transaction() as session:
        for number in range(times):
            seq = events.append(session, job_id=job_id, message=f"event {number}").seq
    return seq


def ids(text: str) -> list[int]:
    """Return the ids in a piece of a stream."""
    return [int(found) for found in re.findall(r"^id: (\d+)$", text, re.MULTILINE)]


async def until(stream: AsyncIterator[str], is_enough: Callable[[str], bool]) -> str:
    """Read a stream until what was read is enough."""
    read = ""
    async with asyncio.timeout(20):
        async for piece in stream:
            read += piece
            if is_enough(read):
                break
    return read


def follow(context: Context, seeded: Seeded, after: int, tab: str = "metrics") -> AsyncIterator[str]:
    """Open a stream of the running job on a hub of its own."""
    hub = Hub(context.db, poll_seconds=POLL)
    return hub.stream(job_id=seeded.running, tab=tab, login="x", after=after)


def test_resumes_after_the_last_id_without_loss_or_repeat(context: Context, seeded: Seeded) -> None:
    async def scenario() -> list[int]:
        first = say(context, seeded.running)
        seen: list[int] = []
        for _ in range(4):
            stream = follow(context, seeded, seen[-1] if seen else first)
            last = await asyncio.to_thread(say, context, seeded.running, times=3)
            read = await until(stream, lambda text, last=last: last in ids(text))
            await asyncio.to_thread(say, context, seeded.running, times=2)
            await stream.aclose()  # type: ignore[attr-defined]
            seen += ids(read)
        last = say(context, seeded.running)
        seen += ids(await until(follow(context, seeded, seen[-1]), lambda text: last in ids(text)))
        assert seen == list(range(first + 1, last + 1))
        return seen

    assert len(asyncio.run(scenario())) == 21


def test_events_during_the_replay_come_once(context: Context, seeded: Seeded) -> None:
    async def scenario() -> None:
        first = say(context, seeded.running, times=30) - 30
        stream = follow(context, seeded, first)
        read, last = "", 0
        async with asyncio.timeout(20):
            async for piece in stream:
                read += piece
                if len(ids(read)) in (1, 10, 29):
                    last = await asyncio.to_thread(say, context, seeded.running)
                if last and last in ids(read):
                    break
        assert ids(read) == list(range(first + 1, last + 1))

    asyncio.run(scenario())


def test_a_long_backlog_is_replayed_whole(
    context: Context, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "REPLAY_EVENTS", 7)

    async def scenario() -> None:
        last = say(context, seeded.running, times=40)
        read = await until(follow(context, seeded, last - 40), lambda text: last in ids(text))
        assert ids(read) == list(range(last - 39, last + 1))

    asyncio.run(scenario())


def test_a_status_without_an_event_is_shown(context: Context, seeded: Seeded) -> None:
    async def scenario() -> None:
        stream = follow(context, seeded, say(context, seeded.running))
        await until(stream, lambda text: "Running · step 12" in text)

        def move() -> None:
            with context.db.transaction() as session:
                session.execute(update(Job).where(Job.id == seeded.running).values(step=13))

        waiting = asyncio.create_task(until(stream, lambda text: "step 13 of 20" in text))
        await asyncio.sleep(5 * POLL)
        await asyncio.to_thread(move)
        assert not ids(await waiting)

    asyncio.run(scenario())


def test_ends_with_the_job(context: Context, seeded: Seeded) -> None:
    async def scenario() -> str:
        stream = follow(context, seeded, say(context, seeded.running))
        await until(stream, lambda text: "job-status" in text)

        def cancel() -> None:
            with context.db.transaction() as session:
                jobs.cancel_job(session, project_id=seeded.project_id, job_id=seeded.running)

        await asyncio.to_thread(cancel)
        return await until(stream, lambda _text: False)

    read = asyncio.run(scenario())
    assert 'data-status="cancelled"' in read
    assert read.endswith("event: ended\ndata: {}\n\n")


def test_clients_get_their_own_tab(context: Context, seeded: Seeded) -> None:
    async def scenario() -> None:
        hub = Hub(context.db, poll_seconds=POLL)
        after = say(context, seeded.running)
        streams = [
            hub.stream(job_id=seeded.running, tab=tab, login="x", after=after)
            for tab in ("metrics", "events")
        ]
        for stream in streams:
            await until(stream, lambda text: "job-head" in text)
        reading = [
            asyncio.create_task(until(stream, lambda text: text.count("hx-partial") > 2))
            for stream in streams
        ]
        await asyncio.sleep(5 * POLL)
        await asyncio.to_thread(say, context, seeded.running)
        metrics, timeline = await asyncio.gather(*reading)
        assert 'hx-target="#verdict"' in metrics
        assert 'hx-target="#verdict"' not in timeline
        assert len(hub.clients) == 2
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        assert not hub.clients

    asyncio.run(scenario())


def test_a_slow_client_is_let_go_to_resume(
    context: Context, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "QUEUE_MESSAGES", 3)

    async def scenario() -> list[int]:
        hub = Hub(context.db, poll_seconds=POLL)
        first = say(context, seeded.running)
        stream = hub.stream(job_id=seeded.running, tab="metrics", login="x", after=first)
        await until(stream, lambda text: "job-head" in text)
        waiting = asyncio.create_task(anext(aiter(stream)))
        await asyncio.sleep(5 * POLL)
        last = await asyncio.to_thread(say, context, seeded.running, times=20)
        seen = ids(await waiting + await until(stream, lambda _text: False))
        assert seen == list(range(first + 1, first + 1 + len(seen)))
        assert len(seen) < 20
        again = hub.stream(job_id=seeded.running, tab="metrics", login="x", after=seen[-1])
        return seen + ids(await until(again, lambda text: last in ids(text)))

    assert len(asyncio.run(scenario())) == 20


def test_an_ending_process_ends_its_streams_but_no_run(context: Context, seeded: Seeded) -> None:
    async def scenario() -> str:
        hub = Hub(context.db, poll_seconds=POLL)
        after = say(context, seeded.running)
        stream = hub.stream(job_id=seeded.running, tab="metrics", login="x", after=after)
        read = await until(stream, lambda text: "job-head" in text)
        waiting = asyncio.create_task(until(stream, lambda _text: False))
        await asyncio.sleep(5 * POLL)
        hub.end()
        late = hub.stream(job_id=seeded.running, tab="metrics", login="x", after=after)
        read += await waiting + await until(late, lambda _text: False)
        assert not hub.clients
        return read

    assert "event: ended" not in asyncio.run(scenario())


def test_one_login_may_not_take_every_stream(
    browser: TestClient, context: Context, seeded: Seeded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MAX_STREAMS_A_LOGIN", 0)
    answer = browser.get(f"/finetune/{seeded.running}/stream")
    assert answer.status_code == 503


def test_stream_over_http(browser: TestClient, context: Context, seeded: Seeded) -> None:
    with context.db.reading() as session:
        last = session.get_one(Job, seeded.succeeded).event_seq
    answer = browser.get(
        f"/finetune/{seeded.succeeded}/stream?after=0", headers={"last-event-id": str(last - 2)}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache, no-transform"
    assert ids(answer.text) == [last - 1, last]
    assert answer.text.endswith("event: ended\ndata: {}\n\n")


def test_stream_is_for_the_signed_in_and_their_jobs(browser: TestClient, seeded: Seeded) -> None:
    assert browser.get("/finetune/ftjob-none/stream").status_code == 404
    browser.cookies.clear()
    assert browser.get(f"/finetune/{seeded.running}/stream").status_code == 401


def test_metrics_carry_their_point(context: Context, seeded: Seeded) -> None:
    with context.db.reading() as session:
        event = events.metrics_events(session, job_id=seeded.running)[0]
        text = live.event_text(event)
    told = json.loads(text.split("data: ")[1])
    assert told["point"][:3] == [0, None, 0.25]
    assert text.startswith(f"id: {event.seq}\nevent: job-event\n")


def test_no_line_end_can_cut_a_message() -> None:
    assert live.sse("a\r\nb\rc\nid: 9") == "data: a\ndata: b\ndata: c\ndata: id: 9\n\n"
