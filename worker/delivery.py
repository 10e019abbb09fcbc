"""Sends due webhooks: claim, post outside any transaction, record. It decides nothing about schedules.

A crash between post and record leaves the lease to run out, and the same delivery goes again under the
same id. Called by the tasks `deliver` and `sweep`.
"""

import logging
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from app.core import clock
from app.core.context import Context
from app.core.outbound import Answer, OutboundError, post
from app.services import deliveries
from app.services.deliveries import Claim, Failure

# A slow endpoint holds one of these and no more, as it has one delivery in flight at a time.
PARALLEL = 8
# A task lasts seconds: what is still due after these waits for the next nudge or sweep.
CLAIM_SECONDS = 20.0

logger = logging.getLogger(__name__)


def deliver_due(context: Context, *, limit: int = 100) -> int:
    """Attempt up to `limit` due deliveries and return how many were attempted."""
    attempted, until = 0, time.monotonic() + CLAIM_SECONDS
    in_flight: set[Future[None]] = set()
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="delivery") as pool:
        while attempted < limit and time.monotonic() < until:
            with context.db.transaction() as session:
                claim = deliveries.claim_delivery(session)
            if claim is not None:
                in_flight.add(pool.submit(_attempt, context, claim))
                attempted += 1
            elif not in_flight:
                break
            if claim is None or len(in_flight) == PARALLEL:
                # Whatever ends may free its endpoint for the next delivery.
                done, in_flight = wait(in_flight, return_when=FIRST_COMPLETED)
                for attempt in done:
                    attempt.result()
        for attempt in in_flight:
            attempt.result()
    return attempted


def _attempt(context: Context, claim: Claim) -> None:
    message, started = claim.message, time.monotonic()
    headers = message.headers(clock.seconds(clock.now()))
    allow = context.settings.listed(context.settings.webhook_allow)
    outcome: Answer | Failure
    try:
        outcome = post(message.url, message.body, headers, allow=allow)
    except OutboundError as problem:
        outcome = Failure(problem.message, time.monotonic() - started)
    with context.db.transaction() as session:
        if not deliveries.record_attempt(session, claim=claim, outcome=outcome):
            logger.warning("%s: the lease was lost before the attempt was recorded", message.id)
