"""Numbers, dates and durations as a person reads them. Every figure on a page passes through here.

Templates get these as filters; nothing here knows a page. All of it is English.
"""

from datetime import UTC, datetime

DASH = "–"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share of 1 as a percentage: `0.925` is `93%`."""
    return DASH if share is None else f"{share * 100:.{digits}f}%"


def points(difference: float | None) -> str:
    """Return a difference of shares in signed whole points: `+31`, `−4`, `0`."""
    if difference is None:
        return DASH
    rounded = round(difference * 100)
    return "0" if rounded == 0 else f"+{rounded}" if rounded > 0 else f"−{-rounded}"


def score(value: float | None, digits: int = 3) -> str:
    """Return a reward or a loss with fixed digits and a real minus sign."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number that always shows its sign: `+0.99`."""
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−")


def count(value: float | None) -> str:
    """Return a whole number with thousands set apart."""
    return DASH if value is None else f"{round(value):,}"


def compact(value: float | None) -> str:
    """Return a short form of a number that may be tiny: `0.0001` is `1e-4`."""
    if value is None:
        return DASH
    if value != 0 and abs(value) < 0.001:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def parameters(number: float) -> str:
    """Return a model's size as people say it: `135M`, `1.5B`."""
    millions = number / 1e6
    if millions >= 1000:
        return f"{millions / 1000:.1f}B"
    return f"{millions:.0f}M" if millions >= 1 else f"{number / 1000:.0f}k"


def size(amount: int | None) -> str:
    """Return bytes in the unit a person would pick."""
    if amount is None:
        return DASH
    value, unit = float(amount), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{amount} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def duration(seconds: float | None) -> str:
    """Return a duration in its two largest units: `4 min 12 s`."""
    if seconds is None:
        return DASH
    if seconds < 0.095:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, smaller_name in (
        (_DAY, "d", _HOUR, "h"),
        (_HOUR, "h", _MINUTE, "min"),
        (_MINUTE, "min", 1, "s"),
    ):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name} {rest} {smaller_name}" if rest else f"{whole // unit} {name}"
    return f"{whole} s"


def about(seconds: float | None) -> str:
    """Return a forecast, coarse because it is one: `4 min`, `under a minute`."""
    if seconds is None:
        return DASH
    if seconds < _MINUTE:
        return "under a minute"
    if seconds < 90 * _MINUTE:
        return f"{round(seconds / _MINUTE)} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.1f} h"
    return f"{round(seconds / _DAY)} days"


def ago(moment: float | None, now: float) -> str:
    """Return how long ago something was: `2 min ago`, `3 Nov`."""
    if moment is None:
        return DASH
    passed = now - moment
    if passed < 45:
        return "just now"
    if passed < 90 * _MINUTE:
        return f"{max(1, round(passed / _MINUTE))} min ago"
    if passed < 22 * _HOUR:
        return f"{round(passed / _HOUR)} h ago"
    if passed < 7 * _DAY:
        return f"{max(1, round(passed / _DAY))} d ago"
    then = datetime.fromtimestamp(moment, UTC)
    today = datetime.fromtimestamp(now, UTC)
    day = f"{then.day} {then:%b}"
    return day if then.year == today.year else f"{day} {then.year}"


def absolute(moment: float | None) -> str:
    """Return the full moment, for a title: `22 Nov 2026, 13:05:09 UTC`."""
    if moment is None:
        return DASH
    then = datetime.fromtimestamp(moment, UTC)
    return f"{then.day} {then:%b %Y, %H:%M:%S} UTC"


def iso(moment: float) -> str:
    """Return the moment for a `datetime` attribute."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def middle(text: str, keep: int = 20) -> str:
    """Shorten an id in its middle, where ids differ least: `ftjob-7f2c…03e84d`."""
    if len(text) <= keep:
        return text
    tail = keep // 3
    return f"{text[: keep - tail - 1]}…{text[-tail:]}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Return a count with its noun: `1 file`, `3 files`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
