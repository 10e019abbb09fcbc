"""endpoint: a user's own HTTP service gives the score. POST {sample, item, trace_id}, back comes {"score"}.

Every call goes through `core.outbound`, which refuses private addresses the operator has not allowed.
Called by `grade`, through `means`.

Source: Azure's preview of endpoint graders: payloads up to 1 MB, three retries.
"""

import json
import random
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.core.errors import InvalidRequest
from app.core.outbound import Answer, OutboundError, check_url, post
from app.graders.case import Case
from app.graders.json_text import NotJson, compact, read_json
from app.graders.kinds import Endpoint
from app.graders.pace import pace_of
from app.graders.result import Grade, GradeErrors, graders_fault, infrastructure_fault

MOST_BYTES = 1024 * 1024
TRIES = 4
MOST_WAIT = 30.0

_FAILED = GradeErrors(other_error=True)


@dataclass(slots=True)
class Endpoints:
    """The way to endpoints: which private hosts are allowed, how long one may take.

    Units: seconds. `backoff` is the pause before the first retry, doubled before each further one.
    """

    allow: Sequence[str] = ()
    timeout: float = 600.0
    backoff: float = 0.5

    def grade(self, grader: Endpoint, case: Case) -> Grade:
        """Ask the endpoint for the score of one answer; a dead endpoint is nobody's 0."""
        payload = {"sample": case.sample, "item": case.item, "trace_id": f"trace_{secrets.token_hex(16)}"}
        body = compact(payload).encode("utf-8", "replace")
        if len(body) > MOST_BYTES:
            return graders_fault(
                f"The request would have {len(body):,} bytes; an endpoint is sent at most {MOST_BYTES:,}.",
                _FAILED,
            )
        try:
            check_url(grader.url, allow=self.allow)
        except InvalidRequest as refused:
            return graders_fault(refused.message, _FAILED)
        headers = {"content-type": "application/json", **(grader.headers or {})}
        problem = ""
        for attempt in range(TRIES):
            pace_of(grader.url, grader.rate_limit or 0).wait()
            wait = self.backoff * 2**attempt * random.uniform(0.75, 1.25)
            try:
                answer = post(grader.url, body, headers, allow=self.allow, seconds=self.timeout)
            except OutboundError as error:
                problem = error.message
            else:
                if not (answer.status_code == 429 or answer.status_code >= 500):
                    return _read(answer)
                problem = f"It answered with status {answer.status_code}: {answer.excerpt}"
                wait = max(wait, answer.retry_after or 0.0)
            if attempt + 1 < TRIES:
                time.sleep(min(wait, MOST_WAIT))
        return infrastructure_fault(f"The endpoint gave no score in {TRIES} tries. {problem}", _FAILED)


def _read(answer: Answer) -> Grade:
    if not 200 <= answer.status_code < 300:
        return graders_fault(
            f"The endpoint answered with status {answer.status_code}: {answer.excerpt}", _FAILED
        )
    try:
        document = read_json(answer.body.decode("utf-8", "replace"))
    except NotJson as error:
        return graders_fault(f"The endpoint's answer cannot be read: {error}.", _FAILED)
    score = document.get("score") if isinstance(document, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float):
        shown = json.dumps(document)[:200]
        return graders_fault(f'The endpoint must answer {{"score": number}}, but sent {shown}.', _FAILED)
    return Grade(reward=float(score))
