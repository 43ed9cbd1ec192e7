"""Exported heads of a world's database, kept where the database cannot change them."""

from __future__ import annotations

from payment_service.application.export_heads import export_heads
from payment_service.application.verify_heads import Findings, verify_heads
from payment_service.domain.heads import EventEntry, Heads, RecordEntry
from tests.support.world import World

Entries = list[EventEntry | RecordEntry]


async def exported(world: World) -> tuple[Heads, Entries]:
    """The heads of now, with every entry that they cover."""
    assert world.service is not None
    app, entries = world.service.app, Entries()
    heads = await export_heads(app.database, app.signer, entries.append, whole=True)
    return heads, entries


async def held_against(world: World, heads: Heads, entries: Entries) -> Findings:
    """What the verification says of the database as it is now."""
    assert world.service is not None
    events = [one for one in entries if isinstance(one, EventEntry)]
    records = [one for one in entries if isinstance(one, RecordEntry)]
    return await verify_heads(world.service.app.database, heads, events, records)
