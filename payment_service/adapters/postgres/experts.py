"""Experts, their accounts at Stripe (present and former), and their onboarding tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from payment_service.adapters.postgres import rows, texts
from payment_service.adapters.postgres.statements import Statements, TransactionStatements, locked
from payment_service.domain.audit_trail import cause_values
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.ports.records import Cause
from payment_service.domain.texts import FreeText, seal

_EXPERT_COLUMNS: Final = (
    "expert_id name email country business_type commission_basis_points commission_asked "
    "stripe_account_id charges_enabled payouts_enabled transfers_active details_submitted "
    "requirements_due disabled_reason requirements_due_time future_requirements "
    "future_requirements_due_time deauthorized status operation_id check_time check_due_time "
    "version create_time update_time"
).split()


class ExpertWrites(TransactionStatements):
    """Reads and changes experts inside a transaction."""

    def expert(self, expert_id: str) -> Expert | None:
        """Returns the expert without a lock, or None.

        Many payments for one expert are initiated at the same time; a lock would make them wait.
        """
        row = self._maybe("SELECT * FROM experts WHERE expert_id = :id", id=expert_id)
        return row and rows.expert_of(row)

    def lock_expert(self, expert_id: str) -> Expert | None:
        """Returns the expert and locks the row until the transaction ends, or returns None."""
        row = self._maybe(locked("experts", "expert_id = :id"), id=expert_id)
        if row is None:
            return None
        self._tell_time(row["now"])
        self._locked_experts.add(expert_id)
        return rows.expert_of(row)

    def add_expert(self, expert: Expert, cause: Cause) -> bool:
        """Inserts the expert with an event. Returns False if the expert already exists.

        Waits until a concurrent creation of the same expert has ended.
        """
        columns = _EXPERT_COLUMNS
        made = self._do(
            f"INSERT INTO experts ({', '.join(columns)}) "
            f"VALUES ({', '.join(f':{name}' for name in columns)}) ON CONFLICT DO NOTHING",
            **rows.expert_values(expert),
        )
        if made == 1:
            self._record_expert(expert, "expert.created", cause)
        return made == 1

    def save_expert(self, expert: Expert, kind: str, cause: Cause, **facts: str | FreeText) -> None:
        """Writes an expert that this transaction has locked, and an event of this kind.

        An empty ``kind`` writes no event.
        """
        columns = [name for name in _EXPERT_COLUMNS if name != "expert_id"]
        self._do(
            f"UPDATE experts SET {', '.join(f'{name} = :{name}' for name in columns)} "
            "WHERE expert_id = :expert_id",
            **rows.expert_values(expert),
        )
        if kind:
            self._record_expert(expert, kind, cause, **facts)

    def _record_expert(
        self, expert: Expert, kind: str, cause: Cause, **facts: str | FreeText
    ) -> None:
        """Appends one event to the expert's audit trail."""
        account = expert.account
        sealed, written = seal(facts, texts.new_salt)
        body = {
            "status": expert.status.value,
            "stripe_account_id": account.stripe_account_id,
            "commission_basis_points": expert.commission_basis_points,
            "requirements_due": list(account.requirements_due),
            "disabled_reason": account.disabled_reason,
            **rows.announced_values(account),
            **sealed,
            "by": cause_values(cause),
        }
        self._do(
            "WITH recorded AS (INSERT INTO expert_events (expert_id, sequence, kind, body, time) "
            "VALUES (:expert_id, :sequence, :kind, :body, now()) RETURNING expert_id, sequence), "
            f"{texts.kept('expert_id')} SELECT FROM recorded",
            **texts.text_values(written),
            expert_id=expert.expert_id,
            sequence=expert.version,
            kind=kind,
            body=json.dumps(body, sort_keys=True),
        )

    def add_former_account(self, expert: Expert, now: datetime) -> None:
        """Keeps the present account of a locked expert, before another account replaces it."""
        self._do(
            "INSERT INTO former_accounts (stripe_account_id, expert_id, replace_time, "
            "deauthorize_time) VALUES (:account_id, :expert_id, :now, "
            "CASE WHEN :deauthorized THEN CAST(:now AS timestamptz) END)",
            account_id=expert.account.stripe_account_id,
            expert_id=expert.expert_id,
            now=now,
            deauthorized=expert.deauthorized,
        )

    def account_ids_of(self, expert_id: str) -> frozenset[str]:
        """Returns the expert's present and former accounts."""
        found = self._all(
            "SELECT stripe_account_id FROM accounts WHERE expert_id = :id", id=expert_id
        )
        return frozenset(row["stripe_account_id"] for row in found)

    def see_former_account(self, stripe_account_id: str, *, deauthorized: bool) -> bool:
        """Stores whether we still have access to a former account. Returns True if it changed."""
        changed = self._do(
            "UPDATE former_accounts SET deauthorize_time = CASE WHEN :deauthorized THEN now() END "
            "WHERE stripe_account_id = :id AND (deauthorize_time IS NOT NULL) <> :deauthorized",
            id=stripe_account_id,
            deauthorized=deauthorized,
        )
        return changed == 1

    def captures_wait_for(self, expert_id: str) -> bool:
        """Returns whether a capture waits for the account of an expert."""
        found = self._maybe(
            "SELECT 1 FROM payments WHERE expert_id = :id AND waiting_for = 'expert' LIMIT 1",
            id=expert_id,
        )
        return found is not None

    def hasten_account_check(self, expert_id: str, seconds: float) -> None:
        """Makes the account due to be read from Stripe in ``seconds``, or as it is if sooner."""
        self._do(
            "UPDATE experts SET check_due_time = least(check_due_time, now() + :pause) "
            "WHERE expert_id = :id",
            id=expert_id,
            pause=timedelta(seconds=seconds),
        )

    def lease_account_checks(self, seconds: float, limit: int, *, ready: bool) -> Sequence[str]:
        """Returns experts whose account must be read, and makes them due again in ``seconds``.

        They are those who can be paid, or those who cannot. The read itself sets the next time.
        """
        found = self._all(
            "UPDATE experts SET check_due_time = now() + :pause WHERE expert_id IN "
            "(SELECT expert_id FROM experts WHERE check_due_time <= now() "
            "AND (status = 'READY') = :ready ORDER BY check_due_time LIMIT :limit "
            "FOR UPDATE SKIP LOCKED) RETURNING expert_id",
            pause=timedelta(seconds=seconds),
            ready=ready,
            limit=limit,
        )
        return [row["expert_id"] for row in found]

    def add_onboarding_token(
        self, token_hash: bytes, expert_id: str, continue_url: str, seconds: float
    ) -> None:
        """Stores the hash of an onboarding token that expires after ``seconds``."""
        self._do(
            "INSERT INTO onboarding_tokens (token_hash, expert_id, continue_url, expire_time, "
            "create_time) VALUES (:hash, :expert_id, :continue_url, now() + :life, now())",
            hash=token_hash,
            expert_id=expert_id,
            continue_url=continue_url,
            life=timedelta(seconds=seconds),
        )


class ExpertReads(Statements):
    """Reads experts, accounts and onboarding tokens outside transactions."""

    def expert(self, expert_id: str, of_user: str = "") -> Expert | None:
        """Returns the expert without a lock, or None. With ``of_user``, nobody but this user."""
        row = self._maybe(
            "SELECT * FROM experts WHERE expert_id = :id "
            "AND (:of_user = '' OR expert_id = :of_user)",
            id=expert_id,
            of_user=of_user,
        )
        return row and rows.expert_of(row)

    def experts(
        self,
        statuses: Sequence[ExpertStatus],
        due_until: datetime | None,
        after: str,
        limit: int,
    ) -> Sequence[Expert]:
        """Returns one page of experts after an id. Without statuses, experts in every status.

        With ``due_until``, only those of whom Stripe wants something by then.
        """
        which = "expert_id > :after"
        if statuses:
            which += " AND status = ANY(:statuses)"
        if due_until is not None:
            which += " AND least(requirements_due_time, future_requirements_due_time) <= :until"
        found = self._all(
            f"SELECT * FROM experts WHERE {which} ORDER BY expert_id LIMIT :limit",
            after=after,
            statuses=[status.value for status in statuses],
            until=due_until,
            limit=limit,
        )
        return [rows.expert_of(row) for row in found]

    def expert_of_account(self, stripe_account_id: str) -> str | None:
        """Returns the id of the expert who has or had this Stripe account, or None."""
        row = self._maybe(
            "SELECT expert_id FROM accounts WHERE stripe_account_id = :id", id=stripe_account_id
        )
        return row and str(row["expert_id"])

    def readable_accounts(self, expert_id: str) -> Sequence[str]:
        """Returns the present and former accounts, except those that revoked our access."""
        found = self._all(
            "SELECT stripe_account_id FROM accounts WHERE expert_id = :id AND readable ORDER BY 1",
            id=expert_id,
        )
        return [row["stripe_account_id"] for row in found]

    def landing(self, token_hash: bytes) -> tuple[str, str] | None:
        """Returns (expert id, URL to continue at) of an onboarding token, or None if expired."""
        row = self._maybe(
            "SELECT expert_id, continue_url FROM onboarding_tokens "
            "WHERE token_hash = :hash AND expire_time > now()",
            hash=token_hash,
        )
        return row and (row["expert_id"], row["continue_url"])
