"""Can the chaos run fail? Bugs are put into a copy of the tree, and each must be caught.

A mutant is one or two small replacements of text. Each detector is a chaos run with a fixed seed,
or a test named by its node id, run in the copy. The tree as it is must pass the same detectors.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dev.settings import ROOT

_COPIED = (
    *("payment_service", "gateway", "console", "sidecar", "stripe_simulator", "dev", "chaos"),
    "tests",
)
# Longer than the minute between two reads of Stripe before a request is sent under a new key.
_SEED, _SECONDS, _PATIENCE = 3, 10, 75
_LIMIT_SECONDS = 240
#: Where the targets are.
_TARGETS = (
    "tests/chaos/test_targets.py",
    "tests/chaos/test_money_targets.py",
    "tests/integration/test_races.py",
    "tests/integration/test_debts_of_payments.py",
    "tests/integration/test_restored_debts.py",
    "tests/integration/test_served_too_early.py",
)

#: What a run of the chaos says when a check found something.
_VIOLATED = re.compile(r"^\s+(\w+)\s+\d+\s+VIOLATED$", re.MULTILINE)
_FAILED = re.compile(r"^FAILED \S+::(\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Edit:
    path: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    edits: tuple[Edit, ...]
    #: A test's name in the files of targets; empty means the chaos run.
    target: str = ""


class Stale(RuntimeError):
    """A mutant's text is not in the tree, or more than once: the code has moved on."""


_EXECUTOR = "payment_service/application/execution/executor.py"
_OF_PAYMENTS = "payment_service/application/execution/payments.py"
_POSTGRES = "payment_service/adapters/postgres"
_INGEST = "payment_service/application/ingest_event.py"
_BACKGROUND = "payment_service/application/jobs/scheduler.py"
_PAYMENTS = "payment_service/rpc/payments.py"
_OPERATIONS = "payment_service/domain/operations.py"
_PLANS = "payment_service/domain/plans.py"

MUTANTS = (
    Mutant(
        "no row lock",
        (
            Edit(
                f"{_POSTGRES}/payments.py",
                'locked("payments", f"payment_id = :id AND {PARTY}")',
                'locked("payments", f"payment_id = :id AND {PARTY}").replace(" FOR UPDATE", "")',
            ),
        ),
        "test_a_payment_is_locked_before_it_is_judged",
    ),
    Mutant(
        "fresh Stripe key on retry",
        (
            Edit(
                _OPERATIONS,
                'return f"{self.operation_id}-{self.attempt}"',
                "return f\"{self.operation_id}-{__import__('secrets').token_hex(4)}\"",
            ),
        ),
    ),
    Mutant(
        "timeout is a no",
        (
            Edit(
                "payment_service/adapters/stripe/outcomes.py",
                'else Unknown("connection")',
                'else Refused("timeout", "", "")',
            ),
        ),
    ),
    Mutant(
        "no dedupe of webhook events",
        (
            Edit(
                f"{_POSTGRES}/webhooks.py",
                "ON CONFLICT DO NOTHING RETURNING event_id, next_try_time",
                "RETURNING event_id, next_try_time",
            ),
        ),
        "test_an_event_is_stored_once",
    ),
    Mutant(
        "last write wins",
        (
            Edit(
                "payment_service/application/sync/apply_snapshot.py",
                "if payment.version != fetched.version:",
                "if fetched.version < 0:",
            ),
        ),
        "test_an_old_snapshot_changes_nothing",
    ),
    Mutant(
        "swallowed constraint error",
        (
            Edit(
                f"{_POSTGRES}/statements.py",
                "raise SwallowedError(",
                "str(",
            ),
        ),
        "test_a_swallowed_error_does_not_commit",
    ),
    Mutant(
        "sends again without a sync",
        (Edit(_EXECUTOR, "    if operation.tries:\n", "    if operation.tries < 0:\n"),),
    ),
    Mutant(
        "no recovery",
        (
            Edit(
                _BACKGROUND,
                "    recover_operations,\n",
                "",
            ),
        ),
    ),
    Mutant(
        "no poller",
        (
            Edit(
                _BACKGROUND,
                "    poll_events,\n",
                "",
            ),
            Edit(
                _BACKGROUND,
                "    poll_stale_payments,\n",
                "",
            ),
        ),
        target="test_a_change_without_a_webhook_is_polled",
    ),
    Mutant(
        "signature unchecked",
        (Edit(_INGEST, "    if not right:\n", "    if not candidate:\n"),),
        target="test_a_forged_signature_is_refused",
    ),
    Mutant(
        "any age of a signature",
        (
            Edit(_INGEST, "_OLDEST_SECONDS: Final = 300", "_OLDEST_SECONDS: Final = 10**9"),
            Edit(
                "gateway/webhooks.py",
                "PAST_TOLERANCE_SECONDS = 300",
                "PAST_TOLERANCE_SECONDS = 10**9",
            ),
        ),
        target="test_an_old_signature_is_refused",
    ),
    Mutant(
        "key without fingerprint",
        (
            Edit(
                f"{_POSTGRES}/claims.py",
                'if digests.get(name) != row["fields"].get(name):',
                "if not name:",
            ),
        ),
        target="test_a_key_means_one_request",
    ),
    Mutant(
        "float fee",
        (
            Edit(
                "payment_service/domain/money.py",
                "((steps * basis_points + half) // BASIS_POINTS_IN_WHOLE)",
                "int(steps * (basis_points / BASIS_POINTS_IN_WHOLE)) * bool(half)",
            ),
        ),
    ),
    Mutant(
        "rescuer without fencing",
        (
            Edit(
                _OPERATIONS,
                "return self.is_open and self.lease_token == holder.lease_token",
                "return True",
            ),
            Edit(
                f"{_POSTGRES}/operations.py",
                '"WHERE operation_id = :id AND lease_token = :token "\n'
                '            f"AND state IN {OPEN}"',
                "\"WHERE operation_id = :id AND :token <> ''\"",
            ),
        ),
        "test_a_holder_without_the_lease_changes_nothing",
    ),
    Mutant(
        "ack before durable",
        (
            Edit(
                "gateway/webhooks.py",
                '            raise _Refusal(503, "core_unavailable") from None',
                '            return Ingested("evt_unknown", False)',
            ),
        ),
        "test_nothing_is_acknowledged_that_is_not_stored",
    ),
    Mutant(
        "sent again after 23 hours",
        (
            Edit(
                _OPERATIONS,
                "RESEND_LIMIT: Final = timedelta(hours=23)",
                "RESEND_LIMIT: Final = timedelta(days=99)",
            ),
        ),
        "test_nothing_is_sent_again_after_23_hours",
    ),
    Mutant(
        "operation not shielded",
        (
            Edit(
                "payment_service/rpc/call_context.py",
                "return await asyncio.shield(task)",
                "return await task",
            ),
        ),
        "test_a_callers_timeout_interrupts_nothing",
    ),
    Mutant(
        "expert's leg forgotten",
        (
            Edit(
                "payment_service/domain/sync/money_back.py",
                "    legs, debt = reversal_legs(changes, context, split.expert_amount)\n",
                "    legs, debt = [], 0\n",
            ),
        ),
    ),
    Mutant(
        "commission of the whole for a part",
        (
            Edit(
                "payment_service/application/capture_payment.py",
                "application_fee=fee if payment.commission > 0 or fee > 0 else None,",
                "application_fee=min(payment.commission, share.amount),",
            ),
        ),
    ),
    Mutant(
        "answer made anew",
        (
            Edit(
                _PAYMENTS,
                "answer = await self._calls.run(capture_payment(self._app, command))\n",
                "await self._calls.run(capture_payment(self._app, command))\n"
                "        payment = await self._payment(request.payment_id)\n"
                "        return payments_pb2.CapturePaymentResponse(\n"
                "            payment=payment_message(payment)\n"
                "        )\n",
            ),
        ),
    ),
    Mutant(
        "hold never released",
        (
            Edit(
                "payment_service/domain/transitions/capture.py",
                "postings=[*book.hold_released(payment.held), *book.captured(",
                "postings=[*book.captured(",
            ),
        ),
    ),
    Mutant(
        "commit that is not waited for",
        (
            Edit(
                f"{_POSTGRES}/limits.py",
                '    "timezone": "UTC",\n',
                '    "timezone": "UTC",\n    "synchronous_commit": "off",\n',
            ),
        ),
        "test_a_commit_is_waited_for",
    ),
    Mutant(
        "fresh key for a transfer",
        (
            Edit(
                _OF_PAYMENTS,
                "return await stripe.transfer(\n                key,\n",
                "return await stripe.transfer(\n"
                "                key + __import__('secrets').token_hex(4),\n",
            ),
        ),
        "test_a_slow_transfer_is_made_once",
    ),
    Mutant(
        "transfer of the whole part",
        (
            Edit(
                _OF_PAYMENTS,
                "minor_units=operation.capture_split.sent,",
                "minor_units=operation.minor_units,",
            ),
        ),
        "test_partial_captures_of_held_money_reach_the_right_accounts",
    ),
    Mutant(
        "a last part that forgets the rest",
        (
            Edit(
                "payment_service/domain/sync/transfers.py",
                "max(payment.held - split.amount - refunded, 0) if payload.final else 0",
                "0",
            ),
        ),
        "test_partial_captures_of_held_money_reach_the_right_accounts",
    ),
    Mutant(
        "refund out of what was paid first",
        (
            Edit(
                _PLANS,
                "    held = min(amount, from_escrow)\n",
                "    held = min(max(amount - payment.net, 0), from_escrow)\n",
            ),
        ),
        "test_partial_captures_of_held_money_reach_the_right_accounts",
    ),
    Mutant(
        "oldest transfer reversed first",
        (Edit(_PLANS, "for transfer in reversed(transfers):", "for transfer in transfers:"),),
        "test_partial_captures_of_held_money_reach_the_right_accounts",
    ),
    Mutant(
        "milestone held against the whole",
        (
            Edit(
                _PLANS,
                "check_requested_amount(payment, amount, held)",
                "check_requested_amount(payment, amount, payment.amount)",
            ),
        ),
        "test_partial_captures_of_held_money_reach_the_right_accounts",
    ),
    Mutant(
        "milestones judged without a lock",
        (
            Edit(
                f"{_POSTGRES}/payments.py",
                'locked("payments", f"payment_id = :id AND {PARTY}")',
                'locked("payments", f"payment_id = :id AND {PARTY}").replace(" FOR UPDATE", "")',
            ),
        ),
        "test_a_milestone_waits_until_the_one_before_is_judged",
    ),
    Mutant(
        "debt kept back by two captures",
        (Edit(f"{_POSTGRES}/debts.py", 'AND debt_offset > 0) "', 'AND debt_offset < 0) "'),),
        "test_a_debt_is_offset_once",
    ),
    Mutant(
        "debt kept back and reversed",
        (
            Edit(
                f"{_POSTGRES}/debts.py",
                "WHERE kind = 'reverse_transfer' ",
                "WHERE kind = 'nothing' ",
            ),
        ),
        "test_an_amount_under_reversal_is_not_offset",
    ),
    Mutant(
        "promotion without a sync",
        (
            Edit(
                "payment_service/application/jobs/act_on_deadlines.py",
                "        await sync_payment(app, payment_id, DEADLINE)\n",
                "",
            ),
        ),
        "test_a_deadline_asks_stripe_first",
    ),
    Mutant(
        "feed that reads on from the last id",
        (
            Edit(
                f"{_POSTGRES}/feed.py",
                "SELECT pending_id FROM feed_pending ORDER BY pending_id LIMIT :limit)",
                "SELECT pending_id FROM feed_pending WHERE pending_id > (SELECT count(*) FROM feed)"
                " ORDER BY pending_id LIMIT :limit)",
            ),
        ),
        "test_a_late_commit_is_not_lost_from_the_feed",
    ),
    Mutant(
        "loss that the expert does not bear",
        (
            Edit(
                _PLANS,
                "remainder = min(amount - payable, payment.held + payment.net)",
                "remainder = min(amount - payable, payment.held)",
            ),
        ),
    ),
    Mutant(
        "transfer to the account of the order",
        (
            Edit(
                "payment_service/application/resume_operation.py",
                "            current = with_current_destination(tx, payment, payload)",
                "            current = payload",
            ),
        ),
    ),
    Mutant(
        "debt collected and kept back",
        (
            Edit(
                f"{_POSTGRES}/debts.py",
                "f\"WHERE kind = 'collect_debt' AND operations.state IN {OPEN} \"",
                "f\"WHERE kind = 'nothing' AND operations.state IN {OPEN} \"",
            ),
        ),
        "test_a_debt_is_collected_or_kept_back_and_not_both",
    ),
    Mutant(
        "debt read in two statements",
        (
            Edit(
                f"{_POSTGRES}/debts.py",
                '        return _free_of(self._one(f"SELECT {columns}", **values), payment_id)\n',
                "        sum_ = (\n"
                '            "(SELECT coalesce(sum(minor_units), 0) FROM postings "\n'
                '            "WHERE account = :account AND currency = :currency) "\n'
                "        )\n"
                '        booked = self._one(f"SELECT {sum_} AS booked", **values)["booked"]\n'
                '        rest = columns.replace(sum_, "cast(:booked AS bigint) ")\n'
                '        row = self._one(f"SELECT {rest}", booked=booked, **values)\n'
                "        return _free_of(row, payment_id)\n",
            ),
        ),
        "test_a_debt_is_read_at_one_moment",
    ),
    Mutant(
        "debt of other payments collected",
        (
            Edit(
                f"{_POSTGRES}/debts.py",
                "        return min(free.of_expert, free.of_payment)",
                "        return free.of_expert",
            ),
        ),
        "test_a_round_that_is_overtaken_collects_nothing_twice",
    ),
    Mutant(
        "reversal under way collected as well",
        (
            Edit(
                f"{_POSTGRES}/debts.py",
                "max(left - reversing[payment_id], 0)",
                "max(left, 0)",
            ),
        ),
        "test_what_a_reversal_takes_back_is_not_collected_as_well",
    ),
    Mutant(
        "paid debt reversed after a restore",
        (
            Edit(
                "payment_service/application/operations/taking_back.py",
                "    if owed >= minor_units:\n",
                "    if owed >= 0 or minor_units:\n",
            ),
        ),
        "test_what_a_recovered_refund_takes_back_waits_if_it_was_kept_back",
    ),
    Mutant(
        "reversal sent by old books",
        (
            Edit(
                f"{_POSTGRES}/polling.py",
                "return self._catches_up",
                "return self._catches_up and False",
            ),
        ),
        "test_a_replica_that_serves_too_early_takes_nothing_back_that_was_kept_back",
    ),
    Mutant(
        "no collection",
        (Edit(_BACKGROUND, "    collect_debts,\n)", ")"),),
    ),
    Mutant(
        "collection of what is pending",
        (
            Edit(
                "payment_service/application/jobs/collect_debts.py",
                "        yield balance.available\n\n",
                "        yield balance.pending\n\n",
            ),
        ),
        "test_a_debt_is_collected_when_the_account_has_it",
    ),
    Mutant(
        "refund divided when it is paid",
        (
            Edit(
                "payment_service/domain/sync/money_back.py",
                "    if refund.waits_for_funds:\n",
                "    if refund.waits_for_funds and changes.payment.pending_refund:\n",
            ),
        ),
        "test_a_refund_without_funds_is_paid_by_the_expert",
    ),
    Mutant(
        "accounts read for events alone",
        (Edit(_BACKGROUND, "    check_accounts,\n", ""),),
        "test_a_waiting_capture_goes_on_without_any_event",
    ),
    Mutant(
        "foreign transfer counted",
        (
            Edit(
                "payment_service/domain/sync/transfers.py",
                "        if fits or transfer.transfer_id in known",
                "        if True or transfer.transfer_id in known",
            ),
        ),
        "test_a_foreign_transfer_is_nobodys_payment",
    ),
    Mutant(
        "further line valued by itself",
        (
            Edit(
                "payment_service/domain/disputes.py",
                "    moved = sum(abs(amount) for amount in converted if (amount < 0) is taken)\n"
                "    value = (2 * moved * record.amount + first) // (2 * first)\n",
                "    moved = abs(line.minor_units)\n"
                "    value = (2 * moved * record.amount + first) // (2 * first)\n"
                "    value += record.withdrawn if taken else record.reinstated\n",
            ),
        ),
        "test_further_lines_of_a_converted_dispute_are_valued_together",
    ),
    Mutant(
        "operation with a random id",
        (
            Edit(
                f"{_POSTGRES}/claims.py",
                'claim_id = self.derived_id("clm", cause.caller, cause.act_for, cause.rpc, key)',
                'claim_id = self.new_id("clm")',
            ),
        ),
        "test_a_restored_database_repeats_nothing",
    ),
    Mutant(
        "caller's words in the log",
        (
            Edit(
                "payment_service/application/capture_payment.py",
                "    return await run_idempotent(app, command, begin_capture)",
                "    print(command.notes, flush=True)\n"
                "    return await run_idempotent(app, command, begin_capture)",
            ),
        ),
    ),
)
#: What every test run can afford; those that take a run of the chaos cost too much for it.
SHORT = ("rescuer without fencing", "last write wins")


@dataclass(frozen=True, slots=True)
class Verdict:
    caught_by: tuple[str, ...]
    seconds: float
    #: The detector ran to its end; one that did not proves nothing.
    ran: bool = True
    output: str = ""


def copy_tree(target: Path, source: Path = ROOT) -> None:
    """A tree as it stands on the disk, without what is built."""
    ignored = shutil.ignore_patterns("__pycache__", ".*_cache", "*.egg-info")
    for name in _COPIED:
        shutil.copytree(source / name, target / name, ignore=ignored)
    shutil.copy(source / "pyproject.toml", target)


@contextmanager
def copied(source: Path = ROOT) -> Iterator[Path]:
    """Makes a temporary copy. PostgreSQL may have to read it as another user."""
    with tempfile.TemporaryDirectory(prefix="payments-mutant-") as directory:
        tree = Path(directory)
        tree.chmod(0o711)
        copy_tree(tree, source)
        yield tree


def apply(mutant: Mutant, tree: Path) -> None:
    """Puts the bug in. Raises :class:`Stale` unless each text is there exactly once."""
    for edit in mutant.edits:
        path = tree / edit.path
        text = path.read_text()
        if text.count(edit.old) != 1:
            raise Stale(
                f"{mutant.name}: {edit.old!r} is {text.count(edit.old)} times in {edit.path}"
            )
        path.write_text(text.replace(edit.old, edit.new))


def judge(tree: Path, target: str, seed: int = _SEED) -> Verdict:
    """Runs one detector in a tree."""
    began = time.monotonic()
    if target:
        [file] = [path for path in _TARGETS if f"def {target}(" in (tree / path).read_text()]
        command = [*("-m", "pytest", "-q", "-p", "no:cacheprovider"), f"{file}::{target}"]
    else:
        command = ["-m", "chaos", "run", "--seed", str(seed), "--seconds", str(_SECONDS)]
        command += ["--patience", str(_PATIENCE)]
    code, output = _run(tree, command)
    caught = (_FAILED if target else _VIOLATED).findall(output)
    # On a slow machine a fault may fail to strike: that says nothing about the mutant.
    names = tuple(name for name in caught if name != "every_fault_struck")
    ran = bool(caught) or code == 0
    return Verdict(names, time.monotonic() - began, ran, output)


def trial(mutant: Mutant, source: Path = ROOT) -> Verdict:
    """A mutant in a tree of its own before its detector."""
    with copied(source) as tree:
        apply(mutant, tree)
        return judge(tree, mutant.target)


def _run(tree: Path, command: list[str]) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=_LIMIT_SECONDS)
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)  # its stack goes with it
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=30)
        process.kill()
        raise
    return process.returncode, output
