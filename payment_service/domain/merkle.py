"""The Merkle tree of RFC 9162 over a list that only grows, and proofs that it has an entry.

The roots of complete blocks never change again, so they can be kept: then a root or a proof of
millions of entries takes one block of entries and the roots of all others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

#: How many entries a block has. A power of two, so that each block is a subtree.
BLOCK: Final = 1024
#: The root of a tree without entries.
EMPTY: Final = hashlib.sha256().digest()


def leaf_hash(entry: bytes) -> bytes:
    """Returns the hash of an entry. The first byte keeps a leaf from being taken for a node."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Returns the hash of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Returns the root over hashes of entries."""
    if not leaves:
        return EMPTY
    if len(leaves) == 1:
        return leaves[0]
    middle = _split(len(leaves))
    return node_hash(root_of(leaves[:middle]), root_of(leaves[middle:]))


def path_in(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Returns what an entry's hash is joined with on its way to the root, the nearest first."""
    if len(leaves) <= 1:
        return []
    middle = _split(len(leaves))
    if index < middle:
        return [*path_in(leaves[:middle], index), root_of(leaves[middle:])]
    return [*path_in(leaves[middle:], index - middle), root_of(leaves[:middle])]


def root_by_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """Returns the root that a proof leads to, or None if the proof does not fit this place."""
    if not 0 <= index < size:
        return None
    turns: list[bool] = []  # Whether the entry is in the left subtree, from the root downwards.
    while size > 1:
        middle = _split(size)
        turns.append(index < middle)
        index, size = (index, middle) if index < middle else (index - middle, size - middle)
    if len(turns) != len(path):
        return None
    found = leaf
    for left, other in zip(reversed(turns), path, strict=True):
        found = node_hash(found, other) if left else node_hash(other, found)
    return found


class Tree:
    """A tree that entries are appended to. It keeps the roots of its blocks, and the last leaves.

    ``blocks`` are the roots of complete blocks that were kept from an earlier tree.
    """

    def __init__(self, blocks: Iterable[bytes] = ()) -> None:
        self.blocks = list(blocks)
        self._last: list[bytes] = []

    @property
    def size(self) -> int:
        return len(self.blocks) * BLOCK + len(self._last)

    def append(self, entry: bytes) -> None:
        self._last.append(leaf_hash(entry))
        if len(self._last) == BLOCK:
            self.blocks.append(root_of(self._last))
            self._last = []

    def root(self) -> bytes:
        return root_of_blocks(self._subtrees()) if self.size else EMPTY

    def path(self, index: int, block: Sequence[bytes]) -> list[bytes]:
        """Returns the proof of an entry. ``block`` are the hashes of the entries of its block."""
        number, place = divmod(index, BLOCK)
        return [*path_in(block, place), *path_in(self._subtrees(), number)]

    def _subtrees(self) -> list[bytes]:
        return [*self.blocks, root_of(self._last)] if self._last else list(self.blocks)


def root_of_blocks(subtrees: Sequence[bytes]) -> bytes:
    """Returns the root over complete blocks and the last, perhaps incomplete one.

    The tree over the blocks has the same shape as the upper part of the tree over the entries,
    because an incomplete block stands at the right edge.
    """
    return root_of(subtrees)


def _split(size: int) -> int:
    """Returns the largest power of two that is less than ``size``."""
    return 1 << (size - 1).bit_length() - 1
