"""What an operator can do about each refusal of the service, in a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from console.core import Refused
from console.shown import money, plain
from marketplace.payments.v1.money_pb2 import Money

#: By the reason of `errors.proto`.
REMEDIES: Final[Mapping[str, str]] = {
    "INVALID_FIELD": "Correct the field and send the form again.",
    "MALFORMED_MESSAGE": "The console and the service are of different releases: update one.",
    "PAYMENT_NOT_FOUND": "Check the payment's id.",
    "EXPERT_NOT_FOUND": "Check the expert's id.",
    "DISPUTE_NOT_FOUND": "Check the dispute's id.",
    "OPERATION_NOT_FOUND": "Check the operation's id.",
    "WEBHOOK_EVENT_NOT_FOUND": "Check the event's id.",
    "DISCREPANCY_NOT_FOUND": "Check the discrepancy's id.",
    "ADJUSTMENT_NOT_FOUND": "Check the adjustment's id.",
    "IDEMPOTENCY_KEY_REUSED": "Open the form again: it gets a new key.",
    "IDEMPOTENCY_KEY_IN_USE": "The first call is still running. Try again in a moment.",
    "EXPERT_ALREADY_EXISTS": "Look at the expert: it exists with other data.",
    "OPERATION_IN_PROGRESS": "Another operation is not settled yet. Wait a minute, then look at "
    "the payment and decide again.",
    "CONCURRENT_CHANGE": "Something changed at the same moment. Look at the payment and decide "
    "again.",
    "VERSION_MISMATCH": "The payment has changed since you saw it, and nothing was done. Look at "
    "it and decide again.",
    "PROCESSOR_RATE_LIMITED": "Stripe limits the rate of requests. Try again in a minute.",
    "OVERLOADED": "The service has enough to do. Try again in a few seconds.",
    "QUOTA_EXCEEDED": "You have made many calls. Try again in a minute.",
    "OUTCOME_UNKNOWN": "Nobody knows yet whether Stripe acted, and nothing is lost. Try again: "
    "the same key makes sure that it is done once.",
    "PROCESSOR_UNAVAILABLE": "Stripe cannot be reached, and nothing was sent. Try again later.",
    "PROCESSOR_MISCONFIGURED": "Stripe refuses the service's own credentials. Read the runbook's "
    "page about stripe_misconfigured.",
    "DATABASE_UNAVAILABLE": "The service's database is unavailable. Try again in a minute.",
    "SHUTTING_DOWN": "The replica is shutting down. Try again.",
    "UNEXPECTED": "Give the reference to the engineers: it is in the service's log.",
    "AUTHENTICATION_UNAVAILABLE": "The service cannot check tokens now. Try again in a minute.",
    "UNAUTHENTICATED": "Your token does not count any more. Sign in with a new one.",
    "ROLE_REQUIRED": "Your token does not have a role that may do this. Ask a colleague who has "
    "it.",
    "NOT_OPEN_TO_USERS": "Your token acts for one user. Sign in with a token of your own.",
    "OTHER_CLIENT": "Your token acts for one user. Sign in with a token of your own.",
    "WRONG_STATE": "It has moved on meanwhile. Look at it as it is now.",
    "AMOUNT_TOO_LARGE": "Choose a smaller amount.",
    "WOULD_RELEASE_REMAINDER": "Tick the box that returns the remainder to the client, or capture "
    "the whole amount.",
    "PARTIAL_REFUND_NEEDS_CAPTURE": "Leave the amount empty: a card hold is released whole.",
    "PAYMENT_DISPUTED": "Look at the dispute or the warning that freezes the payment.",
    "FRAUD_WARNING_NOT_ACTIVE": "Look at the payment: this warning does not freeze it.",
    "DISCREPANCY": "Nothing more was moved. Look at the payment's discrepancies.",
    "CARD_DECLINED": "The issuer declined the card. The client must pay again.",
    "REFUSED_BY_PROCESSOR": "Stripe refused it for good. Look at the payment in Stripe's "
    "dashboard.",
    "DESTINATION_ACCOUNT_REPLACED": "Refund this payment, and let the client pay a new one.",
    "EXPERT_NOT_READY": "Look at the expert: Stripe asks for something first.",
    "ONBOARDING_INCOMPLETE": "The expert must finish Stripe's form first.",
    "COUNTRY_UNSUPPORTED": "The platform cannot pay experts of this country.",
    "EXPERT_ACCOUNT_IN_USE": "Look at the expert's current account.",
    "COMMISSION_TOO_LARGE": "Choose a larger amount: the commission would take all of it.",
    "HOLDING_LIMIT_EXCEEDED": "Choose an earlier time.",
    "CURRENCY_NOT_SETTLED": "The platform does not hold this currency.",
    "PLATFORM_PAYOUTS_NOT_MANUAL": "Set the platform's payouts to manual at Stripe.",
    "EVIDENCE_ALREADY_SUBMITTED": "Wait for the bank's decision.",
    "EVIDENCE_PAST_DUE": "The bank takes no evidence any more. Wait for its decision.",
    "DISPUTE_CLOSED": "The dispute is over. Look at its outcome.",
    "DISPUTE_IS_INQUIRY": "Refund the payment, or submit evidence.",
    "ABANDONED_BY_OPERATOR": "An operator abandoned it. If it is wanted, open a new form.",
    "OPERATION_NOT_ABANDONABLE": "Use the action that is meant for it: settle the client payable, "
    "or resume the operation.",
    "ANSWER_NOT_KEPT": "It was done before. Look at what came of it.",
    "USER_HAS_OPEN_BUSINESS": "Finish what is open first.",
    "USER_ERASED": "Nobody is known behind this id any more.",
    "ADJUSTMENT_TOO_LARGE": "Propose a smaller adjustment.",
    "ADJUSTMENT_EXPIRED": "Propose the adjustment again.",
    "APPROVER_IS_PROPOSER": "Another person must approve what you proposed.",
    "TRAIL_DIFFERS_FROM_HEADS": "Verify the books: read the runbook's page about proofs.",
}
#: Reasons that no call of the console can get: of webhooks, onboarding pages and the feed.
NOT_OURS: Final = frozenset(
    {"UNSPECIFIED", "WEBHOOK_REFUSED", "ONBOARDING_TOKEN_NOT_FOUND", "CURSOR_NOT_IN_FEED"}
)
_UNREACHABLE: Final = "The service cannot be reached, or did not answer in time."
_TRY_AGAIN: Final = "Nobody knows whether the call arrived. Try again in a minute."


@dataclass(frozen=True)
class Explained:
    """A refusal as a page shows it."""

    sentence: str
    remedy: str
    reason: str
    facts: tuple[tuple[str, str], ...]
    may_repeat: bool


def explain(refused: Refused) -> Explained:
    """Returns the sentences for a refusal."""
    facts = [(plain(name.upper()), value) for name, value in _readable(refused)]
    facts += [(f"Field {name}", fault) for name, fault in refused.faults]
    if refused.code == "UNIMPLEMENTED":
        remedy = "The service is of an older release than the console: update it."
        return Explained("The service does not know this call.", remedy, refused.code, (), False)
    if not refused.reason:
        return Explained(_UNREACHABLE, _TRY_AGAIN, refused.code, tuple(facts), refused.may_repeat)
    sentence = refused.sentence
    sentence = sentence[:1].upper() + sentence[1:]
    if sentence and not sentence.endswith((".", "!", "?")):
        sentence += "."
    remedy = REMEDIES.get(refused.reason, "Look at it as it is now, and decide again.")
    return Explained(sentence, remedy, refused.reason, tuple(facts), refused.may_repeat)


def _readable(refused: Refused) -> list[tuple[str, str]]:
    """Returns the metadata, with amounts in major units where the currency is known."""
    currency = refused.metadata.get("currency", "")
    return [
        (
            name,
            money(Money(minor_units=int(value), currency_code=currency))
            if currency and name in ("requested", "available", "limit") and _is_number(value)
            else value,
        )
        for name, value in refused.metadata.items()
        if value and name != "currency"
    ]


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdecimal() and text.isascii()
