"""Every random draw of a job, derived by name from the job's one seed.

Nothing about randomness is ever saved: a draw depends on its name alone, not on the draws before it nor on
the batch around it. Called by the sampler (one uniform a token), the prompt order and the adapter's first
weights.
"""

from hashlib import blake2b

_BITS = 52


def derive(seed: int, *name: str | int) -> int:
    """Return the 63-bit number that belongs to this name under this seed."""
    text = "\x1f".join(str(part) for part in (seed, *name))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(seed: int, *name: str | int) -> float:
    """Return a uniform number strictly between 0 and 1 for this name under this seed."""
    # Half a unit away from both ends: an inverse-CDF draw must see neither 0 nor 1.
    return ((derive(seed, *name) >> (63 - _BITS)) + 0.5) / (1 << _BITS)


def shuffled(count: int, seed: int, *name: str | int) -> list[int]:
    """Return 0..count-1 in the order this name has under this seed."""
    return sorted(range(count), key=lambda index: (derive(seed, *name, index), index))
