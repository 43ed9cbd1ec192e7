"""An account as API v2 shows it: the same row as in v1, in the words of v2.

Whatever is not named in `include` is null, whatever its value. A recipient's capabilities follow
from the account's standing (`account_shape.standing`), so both versions always agree.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from stripe_simulator.store import Row

TRANSFERS = "stripe_balance.stripe_transfers"
PAYOUTS = "stripe_balance.payouts"

# v1's names of requirements and those of v2 (as test accounts show them); others are the same.
REQUIREMENT_NAMES = {
    "business_profile.url": "defaults.profile.business_url",
    "tos_acceptance.date": "identity.attestations.terms_of_service.account.date",
    "tos_acceptance.ip": "identity.attestations.terms_of_service.account.ip",
    "business_type": "identity.entity_type",
    "individual.dob.day": "identity.individual.date_of_birth.day",
    "individual.dob.month": "identity.individual.date_of_birth.month",
    "individual.dob.year": "identity.individual.date_of_birth.year",
    "individual.first_name": "identity.individual.given_name",
    "individual.last_name": "identity.individual.surname",
    "individual.ssn_last_4": "identity.individual.id_numbers.us_ssn_last_4",
    "individual.id_number": "identity.individual.id_numbers",
    "individual.verification.document": "identity.individual.documents.primary_verification",
    "company.name": "identity.business_details.registered_name",
    "company.tax_id": "identity.business_details.id_numbers",
    "company.verification.document": "identity.business_details.documents.company_authorization",
    "representative.first_name": "representative.given_name",
    "representative.last_name": "representative.surname",
}
# Only a merchant has one.
OF_A_MERCHANT = "business_profile.mcc"


def moment(seconds: int) -> str:
    """A time as v2 writes it: RFC 3339 in UTC, with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def configurations(account: Row) -> list[str]:
    """The configurations that apply; a v1 account has them by its capabilities."""
    requested = account["_requested"]
    named = {"merchant": "card_payments", "recipient": "transfers"}
    return [name for name, capability in named.items() if requested.get(capability)]


def account_v2(account: Row, include: list[str]) -> dict[str, Any]:
    """The object, with the parts that the request includes."""
    applied = configurations(account)
    shown: dict[str, Any] = {
        "id": account["id"],
        "object": "v2.core.account",
        "applied_configurations": applied,
        "closed": bool(account.get("_deleted")),
        "configuration": None,
        "contact_email": account["email"],
        "contact_phone": None,
        "created": moment(account["created"]),
        "dashboard": account["controller"]["stripe_dashboard"]["type"],
        "defaults": None,
        "display_name": account.get("_display_name"),
        "future_requirements": None,
        "identity": None,
        "livemode": False,
        "metadata": account["metadata"],
        "requirements": None,
    }
    wanted = {name.partition(".")[2] for name in include if name.startswith("configuration.")}
    if wanted:
        shown["configuration"] = {
            "customer": None,
            "merchant": _merchant(account) if wanted & {"merchant"} & set(applied) else None,
            "recipient": _recipient(account) if wanted & {"recipient"} & set(applied) else None,
        }
    parts = {
        "defaults": _defaults,
        "identity": _identity,
    }
    for name, part in parts.items():
        if name in include:
            shown[name] = part(account)
    for name in ("future_requirements", "requirements"):
        if name in include:
            shown[name] = asked(account, name)
    return shown


def _merchant(account: Row) -> dict[str, Any]:
    active = account["capabilities"].get("card_payments") == "active"
    return {
        "applied": True,
        "capabilities": {
            "card_payments": _capability(account, active=active),
            "stripe_balance": {"payouts": _capability(account, active=account["payouts_enabled"])},
        },
    }


def _recipient(account: Row) -> dict[str, Any]:
    return {
        "applied": True,
        "capabilities": {
            "bank_accounts": None,
            "cards": None,
            "stripe_balance": {
                "payouts": recipient_capability(account, PAYOUTS),
                "stripe_transfers": recipient_capability(account, TRANSFERS),
            },
        },
    }


def recipient_capability(account: Row, name: str) -> dict[str, Any]:
    """A capability of the recipient configuration. Payouts are granted with transfers."""
    if name == PAYOUTS:
        return _capability(account, active=account["payouts_enabled"])
    return _capability(account, active=account["capabilities"].get("transfers") == "active")


def _capability(account: Row, *, active: bool) -> dict[str, Any]:
    if active:
        return {"status": "active", "status_details": []}
    reason = account["requirements"]["disabled_reason"] or ""
    if reason.startswith("rejected."):
        code, status, resolution = reason.replace(".", "_"), "rejected", "no_resolution"
    elif reason == "requirements.past_due":
        code, status, resolution = "requirements_past_due", "restricted", "provide_info"
    elif reason == "requirements.pending_verification":
        code, status, resolution = "requirements_pending_verification", "pending", "no_resolution"
    else:
        code, status, resolution = "restricted_other", "restricted", "contact_stripe"
    return {"status": status, "status_details": [{"code": code, "resolution": resolution}]}


def asked(account: Row, part: str) -> dict[str, Any]:
    """`requirements` or `future_requirements`: each entry says who must act, and from when."""
    owed = account[part]
    is_merchant = "merchant" in configurations(account)
    entries = []
    for name in sorted({*owed["eventually_due"], *owed["currently_due"], *owed["past_due"]}):
        if name == OF_A_MERCHANT and not is_merchant:
            continue
        deadline = "eventually_due"
        if name in owed["past_due"]:
            deadline = "past_due"
        elif name in owed["currently_due"]:
            deadline = "currently_due"
        entries.append(_entry(account, name, "user", deadline))
    entries += [
        _entry(account, name, "stripe", "past_due") for name in owed["pending_verification"]
    ]
    soonest = None
    for deadline in ("past_due", "currently_due", "eventually_due"):
        if any(entry["minimum_deadline"]["status"] == deadline for entry in entries):
            time = owed["current_deadline"]
            soonest = {"status": deadline, "time": moment(time) if time else None}
            break
    return {"alternatives": [], "entries": entries, "summary": {"minimum_deadline": soonest}}


def _entry(account: Row, name: str, from_whom: str, deadline: str) -> dict[str, Any]:
    reason = "routine_onboarding" if account["_stage"] == "fresh" else "routine_verification"
    return {
        "awaiting_action_from": from_whom,
        "description": REQUIREMENT_NAMES.get(name, name),
        "errors": [],
        "impact": {
            "restricts_capabilities": [
                {
                    "capability": capability,
                    "configuration": "recipient",
                    "deadline": {"status": deadline},
                }
                for capability in (PAYOUTS, TRANSFERS)
            ]
        },
        "minimum_deadline": {"status": deadline},
        "reference": None,
        "requested_reasons": [{"code": reason}],
    }


def _defaults(account: Row) -> dict[str, Any]:
    controller, profile = account["controller"], account["business_profile"]
    payer = controller["fees"]["payer"]
    return {
        "currency": account["default_currency"],
        "locales": None,
        "payout_methods": None,
        "profile": {
            "business_url": profile["url"],
            "doing_business_as": profile["name"],
            "product_description": profile["product_description"],
        },
        "responsibilities": {
            "fees_collector": "stripe" if payer == "account" else payer,
            "losses_collector": controller["losses"]["payments"],
            "requirements_collector": controller["requirement_collection"],
        },
    }


def _identity(account: Row) -> dict[str, Any]:
    """Where Stripe collects the requirements, the platform does not see what they gave."""
    return {
        "attestations": None,
        "business_details": None,
        "country": account["country"].lower(),
        "entity_type": account["business_type"],
        "individual": None,
    }
