"""Object ids that look like Stripe's and are the same for the same seed and history.

An id is a digest of the seed, its prefix and how many of that prefix came before, so that neither
polling nor the number of other objects changes which id the third payment gets.
"""

from __future__ import annotations

import hashlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def scrambled(text: str, length: int) -> str:
    """`length` characters that depend on nothing but `text`."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    letters = []
    for _ in range(length):
        number, remainder = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[remainder])
    return "".join(letters)


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
