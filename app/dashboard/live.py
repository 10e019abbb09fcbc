"""Live updates of a job's page: one tail task per process reads new events and feeds every open stream.

A message with an id is one event of the job, its id the event's `seq`; a message without one re-renders
the page's parts and may be repeated. No database session is held while a stream waits.

Source: WHATWG HTML, server-sent events (`Last-Event-ID`).
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from app.core.db import Database
from app.core.status import TERMINAL
from app.core.tables import Event, Job
from app.dashboard import job_view, render, series
from app.services import events, progress
from app.services.progress import Mark

POLL_SECONDS = 0.15
PING_SECONDS = 15.0
MAX_AGE_SECONDS = 3600.0
QUEUE_MESSAGES = 1000
MAX_STREAMS = 500
MAX_STREAMS_A_LOGIN = 20
REPLAY_EVENTS = 500

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """A piece of a stream. `seq` is the last event it knows of; only an event carries an id."""

    seq: int
    text: str
    is_event: bool
    ends: bool = False


@dataclass(frozen=True, slots=True)
class ViewMessage(Message):
    """A re-rendered page, for the clients that have this tab open."""

    tab: str = ""


@dataclass(eq=False, slots=True)
class Client:
    """One open page."""

    job_id: str
    tab: str
    login: str
    messages: asyncio.Queue[Message] = field(default_factory=lambda: asyncio.Queue(QUEUE_MESSAGES))
    is_lost: bool = False


class Hub:
    """The process's open streams and the task that feeds them, which runs while there are any."""

    def __init__(self, db: Database, *, poll_seconds: float = POLL_SECONDS) -> None:
        self.db = db
        self.poll_seconds = poll_seconds
        self.clients: set[Client] = set()
        self._marks: dict[str, Mark] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_ended = False

    def end(self) -> None:
        """Close every stream, and each that is opened later: the pages reconnect to the next process."""
        self._is_ended = True
        for client in self.clients:
            client.is_lost = True
            # Wakes the one that waits; one that has a full queue does not wait.
            if client.messages.empty():
                client.messages.put_nowait(Message(-1, "", False))

    def has_room(self, login: str) -> bool:
        """Say whether one more stream may be opened."""
        mine = Counter(client.login for client in self.clients)[login]
        return len(self.clients) < MAX_STREAMS and mine < MAX_STREAMS_A_LOGIN

    async def stream(self, *, job_id: str, tab: str, login: str, after: int) -> AsyncIterator[str]:
        """Yield a job's messages from the event after `after`, for ever or until the job has ended."""
        client = Client(job_id, tab, login, is_lost=self._is_ended)
        # Subscribed before the replay is read: what happens meanwhile waits in the queue.
        self.clients.add(client)
        try:
            yield "retry: 2000\n\n"
            seq, ended = after, False
            while True:
                replay = await asyncio.to_thread(self._news, job_id, seq, {tab})
                for message in replay:
                    seq = max(seq, message.seq)
                    ended = ended or message.ends
                    yield message.text
                if sum(message.is_event for message in replay) < REPLAY_EVENTS:
                    break
            deadline = asyncio.get_running_loop().time() + MAX_AGE_SECONDS
            while not ended and not client.is_lost and asyncio.get_running_loop().time() < deadline:
                self._keep_tailing(job_id, seq)
                try:
                    message = await asyncio.wait_for(client.messages.get(), PING_SECONDS)
                except TimeoutError:
                    yield ": ping\n\n"
                    continue
                if message.seq < seq or (message.is_event and message.seq == seq):
                    continue
                seq, ended = message.seq, message.ends
                yield message.text
            if ended:
                yield "event: ended\ndata: {}\n\n"
        finally:
            self.clients.discard(client)

    def _keep_tailing(self, job_id: str, seq: int) -> None:
        if job_id not in self._marks:
            self._marks[job_id] = _unknown(seq)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._tail())

    async def _tail(self) -> None:
        while self.clients:
            try:
                await self._look()
            except Exception:  # boundary: a failed look is logged and tried again
                logger.exception("live: a look at the database failed")
                await asyncio.sleep(1.0)
            await asyncio.sleep(self.poll_seconds)
        self._marks.clear()

    async def _look(self) -> None:
        wanted = {client.job_id for client in self.clients}
        for gone in self._marks.keys() - wanted:
            del self._marks[gone]
        marks = await asyncio.to_thread(self._read_marks, sorted(self._marks))
        for job_id, mark in marks.items():
            known = self._marks.get(job_id)
            if known is None or known == mark:
                continue
            tabs = {client.tab for client in self.clients if client.job_id == job_id}
            messages = await asyncio.to_thread(self._news, job_id, known.seq, tabs)
            seq = max((m.seq for m in messages if m.is_event), default=known.seq)
            # A full batch means that more is waiting.
            self._marks[job_id] = mark if seq == mark.seq else _unknown(seq)
            self._send(job_id, messages)

    def _send(self, job_id: str, messages: Sequence[Message]) -> None:
        for client in self.clients:
            if client.job_id != job_id or client.is_lost:
                continue
            try:
                for message in messages:
                    if not isinstance(message, ViewMessage) or message.tab == client.tab:
                        client.messages.put_nowait(message)
            except asyncio.QueueFull:
                # It reconnects and goes on after the last id it saw.
                client.is_lost = True

    def _read_marks(self, job_ids: Sequence[str]) -> dict[str, Mark]:
        with self.db.reading() as session:
            return progress.marks(session, job_ids=job_ids)

    def _news(self, job_id: str, seq: int, tabs: set[str]) -> list[Message]:
        """Return the events after `seq` as messages, then one view per tab."""
        with self.db.reading() as session:
            job = session.get(Job, job_id)
            if job is None:
                return []
            found = events.events_since(session, job_id=job_id, seq=seq, limit=REPLAY_EVENTS)
            messages: list[Message] = [Message(event.seq, event_text(event), True) for event in found]
            last = found[-1].seq if found else seq
            ends = job.status in TERMINAL and last >= job.event_seq
            for tab in sorted(tabs):
                view = job_view.live_view(session, job, tab=tab)
                text = sse(render.render("jobs/_live.html", view))
                messages.append(ViewMessage(last, text, False, ends, tab))
        return messages


def _unknown(seq: int) -> Mark:
    """Return a mark that differs from every real one, so that the next look sends a view."""
    return Mark(seq, "", -1, None)


def event_text(event: Event) -> str:
    """Return an event as a named message: its place, kind and, of metrics, its point of the chart."""
    made = series.point(event.data) if event.type == "metrics" else None
    data = {"id": event.id, "seq": event.seq, "type": event.type, "point": made.wire() if made else None}
    return sse(json.dumps(data, separators=(",", ":")), event="job-event", id=event.seq)


def sse(data: str, *, event: str | None = None, id: int | None = None) -> str:
    """Return one message of an event stream."""
    head = (f"id: {id}\n" if id is not None else "") + (f"event: {event}\n" if event else "")
    # Any of three line ends would cut the data short.
    lines = data.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return head + "".join(f"data: {line}\n" for line in lines) + "\n"
