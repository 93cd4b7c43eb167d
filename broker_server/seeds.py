"""Randomness that depends on (seed, round, client) alone, so that a resumed run repeats itself."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed in 0 to 2**31 - 1 from the parts; different parts give unrelated seeds."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1
