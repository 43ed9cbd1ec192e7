"""What can go wrong during a call, and what hypothesis draws from."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from payment_service.domain.payment import EscrowMode, OnDeadline

BASIS_POINTS = 1_000

#: Faults at Stripe: the action, when it strikes, and what else the rule says.
FAULTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "500 before": ("status", "before", {"status": 500}),
    "500 after": ("status", "after", {"status": 500}),
    "503 before": ("status", "before", {"status": 503}),
    "503 after": ("status", "after", {"status": 503}),
    "429": ("status", "before", {"status": 429}),
    "reset before": ("reset", "before", {}),
    "reset after": ("reset", "after", {}),
    "timeout": ("hang", "after", {}),
    "malformed": ("malformed", "after", {}),
    "truncated": ("truncated", "after", {}),
}
#: What must have been there to be looked at, or a full run proves nothing about it.
SEEN = (
    "a refund waited",
    "a capture waited",
    "a dispute was open",
    "a dispute was lost",
    "a dispute had further lines",
    "a backup was restored",
)
#: Half of the calls meet no trouble; the others a fault at Stripe, or their process dies.
TROUBLE = st.one_of(
    st.none(), st.none(), st.sampled_from(sorted(FAULTS)), st.integers(min_value=1, max_value=12)
)
SURE_TROUBLE = st.one_of(st.sampled_from(sorted(FAULTS)), st.integers(min_value=1, max_value=12))
Trouble = str | int | None
PATHS = {
    "InitiatePayment": "/payment_intents$",
    "CapturePayment": "(/capture|/transfers|/refunds)$",
    "RefundPayment": "(/cancel|/refunds|/reversals)$",
}
CARDS = {
    "pm_card_visa": "good",
    "pm_card_bypassPending": "good, and transfers of it can be taken back at once",
    "pm_card_visa_chargeDeclined": "declined",
    "pm_card_authenticationRequired": "three_d_secure",
}
#: How the money is held: the mode, and what is done when an authorization is about to lapse.
HOLDS = {
    "destination": (EscrowMode.CARD_HOLD, OnDeadline.ALERT),
    "platform": (EscrowMode.PLATFORM_HOLD, OnDeadline.ALERT),
    "promoted": (EscrowMode.CARD_HOLD, OnDeadline.PROMOTE),
}
HOLD = st.sampled_from(["destination", "destination", "platform", "promoted"])
WHICH = st.integers(min_value=0, max_value=5)
#: Taken modulo what there is. What is drawn must not depend on what happened: time is real here.
ANY = st.integers(min_value=0, max_value=999)
PARTS = st.sampled_from([None, 1, 10, 777, 2_500, 5_000, 10_000, 10_001])
