"""ExportPaymentProof: everything that proves one payment's history, for somebody outside."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from payment_service.application.app import App
from payment_service.application.export_heads import read_events
from payment_service.domain.bundles import Inclusion, bundle_of
from payment_service.domain.errors import Precondition, payment_not_found
from payment_service.domain.heads import EventEntry, Heads, Roots
from payment_service.domain.merkle import BLOCK, Tree, leaf_hash, root_by_path
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import Trail
from payment_service.domain.unreadable import UnreadableTrail

_BEFORE_ALL: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PaymentProof:
    """The bundle, and what it contains."""

    bundle: bytes
    events: int
    #: The heads that cover the payment, and up to which event; None if none do yet.
    heads: Heads | None
    covered: int


async def export_payment_proof(app: App, payment_id: str, *, with_texts: bool) -> PaymentProof:
    """Reads the payment and proves its newest exported event. Raises :class:`Refusal`."""
    trail = await app.database.read(_trail, payment_id)
    if trail is None:
        raise payment_not_found(payment_id)
    inclusion, covered = await _inclusion(app, payment_id)
    installation_id = await app.database.installation_id()
    return PaymentProof(
        bundle_of(trail, installation_id, inclusion, with_texts=with_texts),
        len(trail.events),
        inclusion.heads if inclusion else None,
        covered,
    )


async def _inclusion(app: App, payment_id: str) -> tuple[Inclusion | None, int]:
    """Returns the proof against the newest heads, and the sequence of the event that it is of."""
    heads = await app.database.read(_newest)
    if heads is None:
        return None, 0
    position = await app.database.read(_position, payment_id, heads.events)
    if not position:
        return None, 0
    kept = await app.database.read(_blocks)
    roots = Roots(events=Tree(kept[: heads.events // BLOCK]))
    await read_events(app.database, roots, heads.events, _keep_nothing)
    first = (position - 1) // BLOCK * BLOCK
    block = await app.database.read(_block, first, min(first + BLOCK, heads.events))
    leaves = [leaf_hash(entry.line.encode()) for entry in block]
    line = block[position - 1 - first].line
    path = roots.events.path(position - 1, leaves)
    inclusion = Inclusion(heads, position, line, path)
    if roots.events.root() != heads.events_root or not _leads_there(inclusion):
        app.alarms.trail_broken(position)
        raise Precondition(
            "TRAIL_DIFFERS_FROM_HEADS",
            "the stored events are not those of the exported heads; verify the books",
            {"payment_id": payment_id},
        )
    return inclusion, block[position - 1 - first].sequence


def _leads_there(inclusion: Inclusion) -> bool:
    leaf = leaf_hash(inclusion.line.encode())
    place, heads = inclusion.position - 1, inclusion.heads
    return root_by_path(leaf, place, heads.events, inclusion.path) == heads.events_root


def _trail(reader: Reader, payment_id: str) -> Trail | None:
    for found in reader.trails(_BEFORE_ALL, (_BEFORE_ALL, ""), 1, payment_id):
        if isinstance(found, UnreadableTrail):
            raise Precondition(
                "TRAIL_DIFFERS_FROM_HEADS",
                "the payment's row is not as it was recorded; verify the books",
                {"payment_id": payment_id},
            )
        return found
    return None


def _newest(reader: Reader) -> Heads | None:
    return reader.newest_heads()


def _position(reader: Reader, payment_id: str, until: int) -> int:
    return reader.position_of(payment_id, until)


def _blocks(reader: Reader) -> list[bytes]:
    return list(reader.head_blocks())


def _block(reader: Reader, first: int, until: int) -> list[EventEntry]:
    return list(reader.head_events(first, until, BLOCK))


def _keep_nothing(_: object) -> None:
    """Only the roots are wanted."""
