"""Proof that leaves the house: exported heads, and the bundle of one payment."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from dev.postgres import EmbeddedPostgres
from marketplace.payments.v1 import adjustments_pb2, operations_pb2
from payment_service.adapters.signatures.ed25519 import load_verifier
from payment_service.application import verify_heads as verification
from payment_service.application.export_heads import TrailBroken, export_heads, export_if_due
from payment_service.application.verify_heads import Verdict
from payment_service.config import Settings
from payment_service.domain import merkle
from payment_service.domain.bundles import Checked, check_bundle
from payment_service.domain.heads import Malformed
from payment_service.maintenance import CannotRun
from payment_service.proofs import check_bundle_file, check_heads, write_heads
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.heads import exported, held_against
from tests.support.nursery import Nursery
from tests.support.restore import back_up
from tests.support.world import World, until

StartWorld: TypeAlias = Callable[..., Awaitable[World]]


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public key, in files."""
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "heads.pem", tmp_path / "heads.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def settings_of(world: World, **fields: Any) -> Settings:
    given: dict[str, Any] = {"database_url": world.database_url, **fields}
    return Settings(**given)


async def in_the_feed(world: World) -> None:
    """Waits until every event has its position."""
    await world.settle_down()

    async def probe() -> bool:
        return world.sql("SELECT count(*) FROM feed_pending") == [(0,)]

    await until(probe, "every event has a position")


async def stopped(world: World) -> None:
    """No loop changes anything any more."""
    await in_the_feed(world)
    assert world.service is not None
    await world.service.stop()
    await world.service.start(loops=False)
    await world.channel.channel_ready()


async def proof_of(world: World, payment_id: str, **fields: Any) -> Any:
    return await world.operations.ExportPaymentProof(
        adjustments_pb2.ExportPaymentProofRequest(payment_id=payment_id, **fields)
    )


def checked(bundle: bytes, public: Path | None = None) -> Checked:
    return check_bundle(bundle, load_verifier(public) if public else None)


# ---- heads ----


async def test_books_that_go_on_still_agree_with_earlier_heads(world: World) -> None:
    payment = await world.captured()
    await in_the_feed(world)
    heads, entries = await exported(world)
    await world.refund(payment.payment_id, 1_000)
    await world.captured(payment.expert_id)
    await in_the_feed(world)
    found = await held_against(world, heads, entries)
    assert (found.verdict, found.sentences) == (Verdict.AGREES, [])


async def test_a_restored_backup_is_older_and_not_tampered_with(
    world: World, postgres: EmbeddedPostgres
) -> None:
    payment = await world.captured()
    await stopped(world)
    backup = await back_up(postgres, world)
    await world.refund(payment.payment_id, 1_000)
    assert world.service is not None
    world.service.start_loops()
    await in_the_feed(world)
    heads, entries = await exported(world)
    await backup.restore(world)
    found = await held_against(world, heads, entries)
    assert found.verdict is Verdict.OLDER
    assert "earlier state" in found.sentences[0]
    assert found.payments == {payment.payment_id: payment.version + 1}
    # The books go on after the restore, and are still of an earlier state: not what was exported.
    world.service.start_loops()
    await world.captured(payment.expert_id)
    await in_the_feed(world)
    found = await held_against(world, heads, entries)
    assert found.verdict is Verdict.OLDER


async def test_an_end_that_was_cut_off_is_no_backup(
    world: World, as_superuser: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What belongs to the lost events in time is still there."""
    payment = await world.captured()
    await stopped(world)
    heads, entries = await exported(world)
    for table in ("feed", "postings", "texts", "events"):
        as_superuser(world, f"DELETE FROM {table} WHERE payment_id = %s", payment.payment_id)  # noqa: S608
    for table in ("movements", "operations", "payments"):
        as_superuser(world, f"DELETE FROM {table} WHERE payment_id = %s", payment.payment_id)  # noqa: S608
    as_superuser(world, "UPDATE idempotency_keys SET payment_id = NULL, operation_id = NULL")
    # Without slack: here everything happened within seconds.
    monkeypatch.setattr(verification, "_SLACK", timedelta(0))
    found = await held_against(world, heads, entries)
    assert found.verdict is Verdict.DIFFERS
    assert "has rows of the time that is missing" in found.sentences[0]
    assert found.payments == {payment.payment_id: 1}


async def test_heads_of_another_installation_prove_nothing_here(world: World) -> None:
    heads, entries = await exported(world)
    found = await held_against(world, replace(heads, installation_id="ins_other"), entries)
    assert found.verdict is Verdict.DIFFERS
    assert "another installation" in found.sentences[0]


async def test_the_job_exports_once_in_its_time_and_keeps_blocks(
    start_world: StartWorld, monkeypatch: pytest.MonkeyPatch, as_superuser: Callable[..., int]
) -> None:
    monkeypatch.setattr(merkle, "BLOCK", 4)
    monkeypatch.setattr("payment_service.application.export_heads.BLOCK", 4)
    monkeypatch.setattr("payment_service.application.export_payment_proof.BLOCK", 4)
    world = await start_world()
    await world.captured()
    await stopped(world)
    assert world.service is not None
    app = world.service.app
    await export_heads(app.database, app.signer, lambda _: None)
    again, _ = await exported(world)
    kept = world.sql("SELECT events, events_root FROM exported_heads ORDER BY heads_id DESC")
    assert {(events, bytes(root)) for events, root in kept[:2]} == {
        (again.events, again.events_root)
    }
    assert world.sql("SELECT count(*) FROM head_blocks") == [(again.events // 4,)]
    before = world.sql("SELECT count(*) FROM exported_heads")
    await export_if_due(app)
    await export_if_due(app)
    assert world.sql("SELECT count(*) FROM exported_heads") == before  # It was due at the start.
    as_superuser(world, "UPDATE events SET hash = sha256(hash) WHERE sequence = 1")
    with pytest.raises(TrailBroken):
        await exported(world)
    as_superuser(world, "DELETE FROM feed")
    with pytest.raises(TrailBroken):
        await export_heads(app.database, app.signer, lambda _: None)


async def test_a_file_is_signed_and_checked(
    start_world: StartWorld, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    world = await start_world()
    await world.captured()
    await in_the_feed(world)
    settings = settings_of(world, heads_signing_key_file=private)
    file, said = tmp_path / "heads.txt", list[str]()
    await write_heads(settings, file, said.append)
    assert "signed by key" in said[-1]
    assert await check_heads(settings, file, public, said.append) is Verdict.AGREES
    # Another key's signature is none, and neither is a statement that was changed.
    other = tmp_path / "other.pub"
    other.write_bytes(
        Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    assert await check_heads(settings, file, other, said.append) is Verdict.DIFFERS
    whole = file.read_text()
    file.write_text(whole.replace('"events": ', '"events": 1'))
    assert await check_heads(settings, file, public, said.append) is Verdict.DIFFERS
    # An entry that was changed or taken out of the file does not pass for tampering of the books.
    file.write_text(whole.partition("\n")[2])
    assert await check_heads(settings, file, public, said.append) is Verdict.DIFFERS
    assert "the file is damaged" in said[-1]
    for content in ("", "nonsense\n", whole[: len(whole) // 2]):
        file.write_text(content)
        with pytest.raises(CannotRun):
            await check_heads(settings, file, public, said.append)
    unsigned = settings_of(world)
    await write_heads(unsigned, file, said.append)
    assert "NOT SIGNED" in said[-1]
    assert await check_heads(unsigned, file, None, said.append) is Verdict.AGREES
    assert await check_heads(unsigned, file, public, said.append) is Verdict.DIFFERS


async def test_erasing_a_user_keeps_heads_and_bundles_valid(world: World) -> None:
    payment = await world.escrowed(description="a canary", client_id="client-e")
    await world.capture(payment.payment_id, notes="canary notes")
    await in_the_feed(world)
    heads, entries = await exported(world)
    bundle = (await proof_of(world, payment.payment_id, include_texts=True)).bundle
    assert b"canary notes" in bundle
    await world.operations.EraseUser(
        operations_pb2.EraseUserRequest(
            user_id="client-e", kind=operations_pb2.USER_KIND_CLIENT, reason="ticket 7"
        )
    )
    assert (await held_against(world, heads, entries)).verdict is Verdict.AGREES
    assert checked(bundle).faults == []
    again = (await proof_of(world, payment.payment_id, include_texts=True)).bundle
    assert b"canary" not in again
    assert checked(again).faults == []


async def command(
    nursery: Nursery, world: World, *arguments: str, **environment: str
) -> tuple[int, str]:
    """Runs the program itself. Returns its exit code and what it prints."""
    told = {**os.environ, "DATABASE_URL": world.database_url, **environment}
    done = await asyncio.to_thread(nursery.run, "payment_service", *arguments, env=told)
    return done.returncode, done.stdout + done.stderr


async def test_the_commands_say_by_their_exit_code_what_they_found(
    nursery: Nursery,
    world: World,
    postgres: EmbeddedPostgres,
    as_superuser: Callable[..., int],
    keys: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    private, public = (str(key) for key in keys)
    payment = await world.captured()
    await stopped(world)
    backup = await back_up(postgres, world)
    await world.refund(payment.payment_id, 1_000)
    assert world.service is not None
    world.service.start_loops()
    await in_the_feed(world)
    file, bundle = str(tmp_path / "heads.txt"), tmp_path / "bundle.json"
    signed = {"HEADS_SIGNING_KEY_FILE": private}
    code, said = await command(nursery, world, "export-heads", "--out", file, **signed)
    assert (code, "signed by key" in said) == (0, True), said
    against = ("verify", "--heads", file, "--public-key", public)
    code, said = await command(nursery, world, *against)
    assert (code, "unchanged" in said) == (0, True), said
    bundle.write_bytes((await proof_of(world, payment.payment_id)).bundle)
    code, said = await command(nursery, world, "verify", "--bundle", str(bundle), DATABASE_URL="")
    assert (code, "NOT PROVEN: events 1 to" in said) == (0, True), said
    alone = ("verify", "--bundle", str(bundle), "--public-key", public)
    code, said = await command(nursery, world, *alone, DATABASE_URL="")
    assert (code, "NOT PROVEN" in said) == (0, False), said
    genuine = bundle.read_bytes()
    stripped = json.loads(genuine)
    del stripped["heads"], stripped["inclusion"]
    bundle.write_text(json.dumps(stripped))
    code, said = await command(nursery, world, *alone, DATABASE_URL="")
    assert (code, "NOT PROVEN: no exported heads" in said) == (3, True), said
    bundle.write_bytes(genuine)
    bundle.write_bytes(bundle.read_bytes().replace(b"payment.captured", b"payment.expired"))
    code, said = await command(nursery, world, "verify", "--bundle", str(bundle), DATABASE_URL="")
    assert (code, "WRONG: " in said) == (1, True), said
    as_superuser(world, "UPDATE events SET time = time - interval '1 hour' WHERE sequence = 2")
    code, said = await command(nursery, world, *against)
    assert (code, f"payment {payment.payment_id}: event 2" in said) == (1, True), said
    await backup.restore(world)
    code, said = await command(nursery, world, *against)
    assert (code, "earlier state" in said) == (3, True), said
    for wrong in (
        ("verify",),
        ("verify", "--heads", file, "--bundle", str(bundle)),
        ("verify", "--heads", str(bundle)),
        ("verify", "--heads", file, "--public-key", private),
        ("export-heads", "--out", str(tmp_path / "nowhere" / "heads.txt")),
    ):
        code, said = await command(nursery, world, *wrong)
        assert (code, "Traceback" in said) == (2, False), said
    code, said = await command(
        nursery, world, "export-heads", "--out", file, HEADS_SIGNING_KEY_FILE=str(bundle)
    )
    assert (code, "HEADS_SIGNING_KEY_FILE" in said) == (2, True), said


# ---- bundles ----


async def test_a_bundle_proves_a_payment_without_a_database(
    start_world: StartWorld, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    private, public = keys
    world = await start_world(heads_signing_key_file=private)
    payment = await world.captured()
    for _ in range(3):
        await world.captured(payment.expert_id)
    await world.refund(payment.payment_id, 1_000)
    await in_the_feed(world)
    heads, _ = await exported(world)
    proof = await proof_of(world, payment.payment_id)
    version = (await world.get(payment.payment_id)).version
    assert (proof.event_count, proof.covered_sequence) == (version, version)
    assert proof.heads_time.ToDatetime() == heads.time.replace(tzinfo=None)
    assert payment.payment_intent_id.encode() in proof.bundle
    found = checked(proof.bundle, public)
    assert found.faults == []
    assert any(f"events 1 to {version} were there" in one for one in found.proven)
    said: list[str] = []
    file = tmp_path / "bundle.json"
    file.write_bytes(proof.bundle)
    assert not check_bundle_file(file, public, said.append).unproven
    # What has come since is in the bundle, and said to be newer.
    await world.refund(payment.payment_id, 1_000)
    await in_the_feed(world)
    later = await proof_of(world, payment.payment_id)
    assert later.covered_sequence == version
    found = checked(later.bundle, public)
    assert found.faults == []
    assert any(f"events from {version + 1} on are newer" in one for one in found.unproven)
    await check_books(world)


async def test_whatever_is_changed_in_a_bundle_is_found(
    start_world: StartWorld, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    world = await start_world(heads_signing_key_file=private)
    payment = await world.captured()
    await world.refund(payment.payment_id, 1_000)
    await in_the_feed(world)
    await exported(world)
    bundle = json.loads((await proof_of(world, payment.payment_id, include_texts=True)).bundle)

    def changed(change: Callable[[Any], object]) -> list[str]:
        other = json.loads(json.dumps(bundle))
        change(other)
        try:
            return checked(json.dumps(other).encode(), public).faults
        except Malformed as fault:
            return [str(fault)]

    assert changed(lambda one: None) == []
    for change in (
        lambda one: one["events"].pop(0),
        lambda one: one["events"].pop(),
        lambda one: one["events"][1].__setitem__(3, one["events"][1][3] + " "),
        lambda one: one["events"][1].__setitem__(4, "00" * 32),
        lambda one: one["postings"].pop(),
        lambda one: one["postings"][0].__setitem__(3, one["postings"][0][3] + 1),
        lambda one: one["movements"].pop(),
        lambda one: one["row"].update(payment_intent_id="pi_another"),
        lambda one: one["row"].pop("charge_id"),
        lambda one: one["heads"].update(events=one["heads"]["events"] + 1),
        lambda one: one["heads"].update(events_root="00" * 32),
        lambda one: one["heads"].update(signature=""),
        lambda one: one["heads"].update(time="2020-01-01T00:00:00.000000+00:00"),
        lambda one: one["inclusion"].update(position=one["inclusion"]["position"] + 1),
        lambda one: one["inclusion"]["path"].pop(),
        lambda one: one.update(payment_id="pay_another"),
        lambda one: one.update(installation_id="ins_another"),
        lambda one: one.update(format="another"),
        lambda one: one.pop("row"),
    ):
        assert changed(change), change


async def test_a_bundle_without_heads_says_so(world: World) -> None:
    payment = await world.captured()
    await stopped(world)
    proof = await proof_of(world, payment.payment_id)
    assert (proof.covered_sequence, proof.HasField("heads_time")) == (0, False)
    found = checked(proof.bundle)
    assert found.faults == []
    assert "no exported heads cover the payment yet" in found.unproven[-1]
    refused = await refusal(proof_of(world, "pay_" + "0" * 32))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "PAYMENT_NOT_FOUND")


async def test_no_bundle_is_given_out_of_books_that_are_not_the_exported_ones(
    world: World, as_superuser: Callable[..., int]
) -> None:
    payment = await world.captured()
    await stopped(world)
    await exported(world)
    as_superuser(world, "UPDATE events SET hash = sha256(hash) WHERE sequence = 1")
    refused = await refusal(proof_of(world, payment.payment_id))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "TRAIL_DIFFERS_FROM_HEADS")
