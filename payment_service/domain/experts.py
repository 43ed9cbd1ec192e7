"""Experts: what Stripe shows of their connected accounts, and what that allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from payment_service.domain.errors import Precondition
from payment_service.domain.texts import ERASED


class ExpertStatus(StrEnum):
    """The status of an expert; derived from the account, never stored."""

    CREATING = "CREATING"  # Left by the caller's retry, or the recovery job.
    ONBOARDING = "ONBOARDING"  # Left by the expert, who completes Stripe's form.
    PENDING_VERIFICATION = "PENDING_VERIFICATION"  # Left by Stripe.
    READY = "READY"
    #: Left by the expert, who gives Stripe what it asks for; if nothing is due, by Stripe.
    RESTRICTED = "RESTRICTED"
    REJECTED = "REJECTED"
    DEAUTHORIZED = "DEAUTHORIZED"


class BusinessType(StrEnum):
    INDIVIDUAL = "individual"
    COMPANY = "company"
    NON_PROFIT = "non_profit"


@dataclass(frozen=True, slots=True)
class Account:
    """What Stripe shows of a connected account, read now."""

    stripe_account_id: str
    charges_enabled: bool = False
    payouts_enabled: bool = False
    transfers_active: bool = False
    details_submitted: bool = False
    requirements_due: tuple[str, ...] = ()
    disabled_reason: str = ""
    #: When what is due now stops the account or a part of it; None if Stripe names no time.
    requirements_due_time: datetime | None = None
    #: What Stripe has announced for later, by its own names, and when that becomes due.
    future_requirements: tuple[str, ...] = ()
    future_requirements_due_time: datetime | None = None

    @property
    def first_deadline(self) -> datetime | None:
        """When the account stops working if the expert does nothing; None if Stripe named none."""
        times = (self.requirements_due_time, self.future_requirements_due_time)
        return min((time for time in times if time is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expert:
    """An expert, with the account as Stripe last showed it. Times are UTC."""

    expert_id: str
    name: str
    email: str
    country: str
    business_type: BusinessType
    commission_basis_points: int
    #: The commission of the request; None means the default. Used only to compare retries.
    commission_asked: int | None = None
    account: Account = field(default_factory=lambda: Account(""))
    deauthorized: bool = False
    operation_id: str = ""
    #: When the account was last read from Stripe; None before the first time.
    check_time: datetime | None = None
    #: From when on the account must be read again, whether or not an event comes.
    check_due_time: datetime | None = None
    version: int = 1
    create_time: datetime
    update_time: datetime

    @property
    def status(self) -> ExpertStatus:
        account = self.account
        if not account.stripe_account_id:
            return ExpertStatus.CREATING
        if self.deauthorized:
            return ExpertStatus.DEAUTHORIZED
        if account.disabled_reason.startswith("rejected."):
            return ExpertStatus.REJECTED
        if account.transfers_active:
            return ExpertStatus.READY
        if not account.details_submitted:
            return ExpertStatus.ONBOARDING
        if account.requirements_due:
            return ExpertStatus.RESTRICTED
        if account.disabled_reason and "pending_verification" not in account.disabled_reason:
            return ExpertStatus.RESTRICTED
        return ExpertStatus.PENDING_VERIFICATION

    @property
    def is_lost(self) -> bool:
        """The account will not be paid again; another can take its place."""
        return self.status in (ExpertStatus.REJECTED, ExpertStatus.DEAUTHORIZED)

    @property
    def is_paused(self) -> bool:
        """Stripe has paused the account and asks the expert for nothing."""
        return self.status is ExpertStatus.RESTRICTED and not self.account.requirements_due

    @property
    def is_erased(self) -> bool:
        """Nobody is known any more behind the id."""
        return self.name == ERASED

    def check_known(self) -> None:
        """Raises if the expert was erased."""
        if self.is_erased:
            raise Precondition(
                "USER_ERASED",
                "this expert was erased; a new one takes a new id",
                {"user_id": self.expert_id},
            )

    def check_replaceable(self, account_id: str, *, although_it_works: bool) -> None:
        """Raises unless another account may replace the present one.

        ``account_id`` is the one that the caller means; empty for whichever it is.
        """
        present = self.account.stripe_account_id
        if not present:
            self.check_ready()  # There is none to be replaced.
        sentence = ""
        if account_id not in ("", present):
            sentence = "the expert has another account than the one that was to be replaced"
        elif not self.is_lost and not although_it_works:
            sentence = (
                f"the expert's account is neither rejected nor deauthorized but {self.status}; "
                "to replace it all the same, say so with replace_working_account=true"
            )
        if sentence:
            raise Precondition(
                "EXPERT_ACCOUNT_IN_USE",
                sentence,
                {
                    "expert_id": self.expert_id,
                    "status": self.status.value,
                    "stripe_account_id": present,
                },
            )

    def check_ready(self, shown_to: str = "") -> None:
        """Raises unless the expert can receive transfers.

        ``shown_to`` is the user for whom the caller acts: no other user is shown what Stripe wants
        of the expert.
        """
        if self.status is not ExpertStatus.READY:
            raise Precondition(
                "EXPERT_NOT_READY",
                f"the expert cannot receive transfers: {self.status}",
                {
                    "expert_id": self.expert_id,
                    "status": self.status.value,
                    **self._missing(shown_to),
                },
            )

    def _missing(self, shown_to: str) -> Mapping[str, str]:
        if shown_to not in ("", self.expert_id):
            return {}
        return {
            "disabled_reason": self.account.disabled_reason,
            "requirements_due": ",".join(self.account.requirements_due[:10]),
        }

    def check_onboarded(self) -> None:
        """Raises unless the account has an Express dashboard."""
        ended = (ExpertStatus.CREATING, ExpertStatus.REJECTED, ExpertStatus.DEAUTHORIZED)
        if not self.account.details_submitted or self.status in ended:
            raise Precondition(
                "ONBOARDING_INCOMPLETE",
                f"the expert's onboarding is not complete: {self.status}",
                {"expert_id": self.expert_id, "status": self.status.value},
            )
