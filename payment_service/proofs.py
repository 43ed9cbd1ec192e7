"""Commands that write exported heads into a file, and check files against the books or alone."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from payment_service.application.export_heads import TrailBroken, export_heads
from payment_service.application.verify_heads import Findings, Verdict, verify_heads
from payment_service.bootstrap import open_database, signer_of, verifier_of
from payment_service.config import Settings
from payment_service.domain.bundles import Checked, check_bundle, signature_of
from payment_service.domain.errors import Refusal
from payment_service.domain.heads import (
    EventEntry,
    Heads,
    Malformed,
    RecordEntry,
    Roots,
    event_from_line,
    heads_from_json,
    record_from_line,
)
from payment_service.domain.ports.database import Database
from payment_service.maintenance import CannotRun, sentence_of

_EVENT: Final = "e "
_RECORD: Final = "r "
#: The statement is the last line, and short.
_STATEMENT_BYTES: Final = 4096

Say = Callable[[str], None]


async def write_heads(settings: Settings, out: Path, say: Say) -> None:
    """Writes the heads of now with every entry that they cover. Raises :class:`CannotRun`.

    The statement is the last line, because it is known last. The file appears when it is whole.
    """
    signer = signer_of(settings)
    draft = out.with_name(f"{out.name}.partial")
    async with _database(settings) as database:
        try:
            with draft.open("w", encoding="utf-8") as file:

                def write(entry: EventEntry | RecordEntry) -> None:
                    mark = _EVENT if isinstance(entry, EventEntry) else _RECORD
                    file.write(f"{mark}{entry.line}\n")

                heads = await export_heads(database, signer, write, whole=True)
                file.write(json.dumps(heads.to_json(), sort_keys=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
            draft.replace(out)
        except TrailBroken as fault:
            raise CannotRun(f"{fault}: verify the books against the last heads") from None
        except OSError as fault:
            raise CannotRun(f"{out} cannot be written ({type(fault).__name__})") from None
        finally:
            draft.unlink(missing_ok=True)
    say(f"{heads.events} events and {heads.records} records are in {out}")
    say(
        f"signed by key {heads.key_id}"
        if heads.signature
        else "NOT SIGNED: a person who can change the file can change what it proves. "
        "Set HEADS_SIGNING_KEY_FILE in production"
    )


async def check_heads(settings: Settings, path: Path, public_key: Path | None, say: Say) -> Verdict:
    """Holds the database against a file of heads, and says what was found."""
    heads = read_statement(path)
    signature = signature_of(heads, verifier_of(public_key))
    say(f"{path}: {heads.events} events, {heads.time:%Y-%m-%d %H:%M:%S} UTC; {signature.sentence}")
    if signature.is_wrong:
        return Verdict.DIFFERS
    records = [one for one in read_entries(path) if isinstance(one, RecordEntry)]
    if not _is_whole(path, heads):
        say("the file is damaged: its entries are not those of its statement")
        return Verdict.DIFFERS
    async with _database(settings) as database:
        findings = await verify_heads(database, heads, _events_of(path), records)
    _report(findings, say)
    return findings.verdict


def check_bundle_file(path: Path, public_key: Path | None, say: Say) -> Checked:
    """Checks a bundle without a database, and says what it proves and what it does not prove."""
    try:
        checked = check_bundle(path.read_bytes(), verifier_of(public_key))
    except OSError as fault:
        raise CannotRun(f"{path} cannot be read ({type(fault).__name__})") from None
    except Malformed as fault:
        raise CannotRun(f"{path} is no bundle of this service: {fault}") from None
    for sentence in checked.proven:
        say(f"proven: {sentence}")
    for sentence in checked.unproven:
        say(f"NOT PROVEN: {sentence}")
    for sentence in checked.faults:
        say(f"WRONG: {sentence}")
    return checked


def read_statement(path: Path) -> Heads:
    """Returns the statement of a file. Raises :class:`CannotRun`."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - _STATEMENT_BYTES, 0))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
        return heads_from_json(json.loads(last))
    except OSError as fault:
        raise CannotRun(f"{path} cannot be read ({type(fault).__name__})") from None
    except Malformed as fault:
        raise CannotRun(f"{path} has no heads of this service: {fault}") from None
    except ValueError:
        raise CannotRun(
            f"{path} has no heads of this service: it was cut off, or is another file"
        ) from None


def read_entries(path: Path) -> Iterator[EventEntry | RecordEntry]:
    """Yields the entries of a file, one after the other. Raises :class:`CannotRun`."""
    position = number = 0
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                if line.startswith(_EVENT):
                    position += 1
                    yield event_from_line(position, line[len(_EVENT) : -1])
                elif line.startswith(_RECORD):
                    number += 1
                    yield record_from_line(number, line[len(_RECORD) : -1])
            except Malformed as fault:
                raise CannotRun(f"{path} is damaged: {fault}") from None


def _events_of(path: Path) -> Iterator[EventEntry]:
    return (entry for entry in read_entries(path) if isinstance(entry, EventEntry))


def _is_whole(path: Path, heads: Heads) -> bool:
    roots = Roots()
    for entry in read_entries(path):
        if isinstance(entry, EventEntry):
            roots.add_event(entry)
        else:
            roots.add_record(entry)
    return roots.fit(heads)


def _report(findings: Findings, say: Say) -> None:
    if findings.verdict is Verdict.AGREES:
        say("the database has everything that was exported, unchanged, and contradicts nothing")
    for sentence in findings.sentences:
        say(sentence)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[Database]:
    database = open_database(settings)
    try:
        yield database
    except Refusal as fault:
        raise CannotRun(sentence_of(fault)) from None
    finally:
        await database.close()
