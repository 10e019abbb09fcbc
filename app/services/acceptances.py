"""Acceptances: a creating request that is sent again returns what it made, and makes no twin.

Two ways to be the same request: an Idempotency-Key, which a caller chooses and which holds for two days;
or, as OpenAI's clients send no such key when they retry on their own, a retry count above 0 with the
same API key and body as one accepted within ten minutes. Called by the routes that create jobs and files.

Source: draft-ietf-httpapi-idempotency-key-header; `x-stainless-retry-count` of OpenAI's clients.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.core import clock
from app.core.errors import InvalidRequest
from app.core.tables import Acceptance, ApiKey

KEPT_SECONDS = 48 * 3_600.0
TWIN_SECONDS = 600.0

Noun = Literal["job", "file"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a request says about itself: whose it is, its Idempotency-Key, whether it is a retry."""

    key_id: str
    idempotency_key: str | None
    is_retry: bool


def body_hash(body: Mapping[str, Any]) -> str:
    """Return the hash of a request's content, whatever the order of its keys."""
    return sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def accepted_before(session: Session, *, attempt: Attempt, noun: Noun, body_sha256: str) -> str | None:
    """Return the id of what this very request made before, or None when it is to be done now.

    Holds the key's row until the transaction ends: a retry waits for the attempt it repeats.

    Raises: InvalidRequest when the Idempotency-Key came with another body.
    """
    session.get_one(ApiKey, attempt.key_id, with_for_update={"key_share": True})
    mine = Acceptance.key_id == attempt.key_id, Acceptance.noun == noun
    if attempt.idempotency_key is not None:
        found = session.scalars(
            select(Acceptance).where(*mine, Acceptance.idempotency_key == attempt.idempotency_key)
        ).one_or_none()
        if found is None:
            return None
        if found.body_sha256 != body_sha256:
            raise InvalidRequest(
                f"The Idempotency-Key '{attempt.idempotency_key}' was used for another request before. "
                "Use a new key for a new request.",
                param="Idempotency-Key",
                code="idempotency_key_reused",
            )
        return found.object_id
    if attempt.is_retry:
        since = clock.now() - TWIN_SECONDS
        query = select(Acceptance.object_id).where(
            *mine, Acceptance.body_sha256 == body_sha256, Acceptance.created_at > since
        )
        return session.scalars(query.order_by(Acceptance.created_at.desc()).limit(1)).first()
    return None


def accept(session: Session, *, attempt: Attempt, noun: Noun, body_sha256: str, object_id: str) -> None:
    """Note what a request made, in the transaction that makes it."""
    session.add(
        Acceptance(
            key_id=attempt.key_id,
            noun=noun,
            body_sha256=body_sha256,
            idempotency_key=attempt.idempotency_key,
            object_id=object_id,
            created_at=clock.now(),
        )
    )
    session.flush()


def forget_old(session: Session) -> None:
    """Delete what is too old to be asked for again. Called by the sweep."""
    session.execute(delete(Acceptance).where(Acceptance.created_at < clock.now() - KEPT_SECONDS))
