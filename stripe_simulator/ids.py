"""Object ids that look like Stripe's and are the same for the same seed and history.

An id is a digest of the seed, its prefix and how many of that prefix came before, so that neither
polling nor the number of other objects changes which id the third payment gets.
"""

from __future__ import annotations

import hashlib

ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_LETTERS = bytes(ALPHABET[byte % len(ALPHABET)] for byte in range(256))


def scrambled(text: str, length: int) -> str:
    """Up to 64 characters that depend on nothing but `text`."""
    return hashlib.sha512(text.encode()).digest()[:length].translate(_LETTERS).decode()


class Ids:
    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.counters: dict[str, int] = {}
        self.changed = False

    def new(self, prefix: str, length: int = 24) -> str:
        """The next id of a prefix, such as `pi_3...`."""
        count = self.counters.get(prefix, 0) + 1
        self.counters[prefix] = count
        self.changed = True
        return prefix + scrambled(f"{self.seed}:{prefix}:{count}", length)
