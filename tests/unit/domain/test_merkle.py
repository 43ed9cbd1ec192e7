"""The Merkle tree: RFC 9162's own vectors, every proof of many sizes, and no forged one."""

from __future__ import annotations

import hashlib

import pytest

from payment_service.domain import merkle
from payment_service.domain.merkle import Tree, leaf_hash, path_in, root_by_path, root_of

#: The inputs and roots of Certificate Transparency's reference implementation.
_INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "60616263" * 4]
_ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    4: "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
}


def leaves_of(count: int) -> list[bytes]:
    return [leaf_hash(str(number).encode()) for number in range(count)]


def test_the_empty_tree_is_the_hash_of_nothing() -> None:
    assert root_of([]) == Tree().root() == hashlib.sha256(b"").digest()


@pytest.mark.parametrize("size", _ROOTS)
def test_roots_are_those_of_certificate_transparency(size: int) -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in _INPUTS[:size]]
    assert root_of(leaves).hex() == _ROOTS[size]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 100])
def test_every_entry_has_a_proof_and_no_other_place_does(size: int) -> None:
    leaves = leaves_of(size)
    root = root_of(leaves)
    for index, leaf in enumerate(leaves):
        path = path_in(leaves, index)
        assert root_by_path(leaf, index, size, path) == root
        assert root_by_path(leaf_hash(b"another"), index, size, path) != root
        for other in range(size):
            if other != index:
                assert root_by_path(leaf, other, size, path) != root
        assert root_by_path(leaf, index, size, [*path, root]) is None
        assert not path or root_by_path(leaf, index, size, path[:-1]) is None
    assert root_by_path(leaves[0], size, size, []) is None
    assert root_by_path(leaves[0], -1, size, []) is None


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 11, 16, 17, 63, 64, 65])
def test_a_tree_of_kept_blocks_is_the_same_tree(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merkle, "BLOCK", 4)
    whole = Tree()
    for number in range(size):
        whole.append(str(number).encode())
    leaves = leaves_of(size)
    assert (whole.size, whole.root()) == (size, root_of(leaves))
    for kept in range(size // 4 + 1):
        continued = Tree(whole.blocks[:kept])
        for number in range(kept * 4, size):
            continued.append(str(number).encode())
        assert continued.root() == whole.root()
    for index, leaf in enumerate(leaves):
        block = leaves[index // 4 * 4 : index // 4 * 4 + 4]
        path = whole.path(index, block)
        assert path == path_in(leaves, index)
        assert root_by_path(leaf, index, size, path) == whole.root()


def test_a_node_is_no_leaf() -> None:
    """Without the first byte an inner node could be passed off as an entry."""
    leaves = leaves_of(2)
    assert leaf_hash(leaves[0] + leaves[1]) != root_of(leaves)
