"""How often someone may ask: token buckets in this process's memory, and the headers that tell of them.

Called by the guard on the event loop, so there is nothing to lock. Several web processes each count alone.

Source: OpenAI's `x-ratelimit-*-requests` headers.
"""

import math
import time
from dataclasses import dataclass

from app.core.errors import RateLimited

_MOST_KNOWN = 10_000


@dataclass(slots=True)
class _Bucket:
    left: float
    seen: float


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a limit. Units: seconds until it is whole again."""

    limit: int
    remaining: int
    reset: float

    def headers(self) -> dict[str, str]:
        """Return the headers of an answer."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": _duration(self.reset),
        }


class Limit:
    """So many a minute for each name; an unused allowance adds up to one minute's."""

    def __init__(self, per_minute: int, what: str) -> None:
        self.per_minute = per_minute
        self.what = what
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str) -> Allowance:
        """Count one for `name`. Raises: RateLimited when nothing is left."""
        now = time.monotonic()
        rate = self.per_minute / 60
        if len(self._buckets) > _MOST_KNOWN:
            self._forget(now)
        bucket = self._buckets.setdefault(name, _Bucket(self.per_minute, now))
        bucket.left = min(self.per_minute, bucket.left + (now - bucket.seen) * rate)
        bucket.seen = now
        if bucket.left < 1:
            allowance = Allowance(self.per_minute, 0, (self.per_minute - bucket.left) / rate)
            wait = math.ceil((1 - bucket.left) / rate)
            raise RateLimited(
                f"Rate limit reached: {self.per_minute} {self.what} per minute. Please try again in {wait}s.",
                headers=allowance.headers() | {"retry-after": str(wait)},
            )
        bucket.left -= 1
        return Allowance(self.per_minute, int(bucket.left), (self.per_minute - bucket.left) / rate)

    def _forget(self, now: float) -> None:
        # A bucket that has had a minute is full again, which is what an unknown name has.
        self._buckets = {name: b for name, b in self._buckets.items() if now - b.seen < 60}


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
