"""What the model knows of one example: what was asked for, what is true, and what was heard."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from hypothesis import note
from hypothesis.stateful import RuleBasedStateMachine

from payment_service.domain.snapshot import PaymentSnapshot
from tests.reliability.lab import IMPATIENT, PATIENT, Lab, Reply
from tests.reliability.model.trouble import BASIS_POINTS, FAULTS, PATHS, Trouble
from tests.reliability.oracle import AGAIN, Asked, Truth, View, fee

#: What the platform has balances in.
CURRENCIES = ("usd", "jpy")
_ENOUGH = 10_000_000
_numbers = itertools.count(1)


class World(RuleBasedStateMachine):
    """One expert, up to three payments, and everything that can happen to them."""

    lab: Lab
    account: str
    last_line: str

    def __init__(self) -> None:
        super().__init__()
        self.number = next(_numbers)
        self.expert = f"model-expert-{self.number}"
        self.asked: dict[str, Asked] = {}
        self.calls: dict[str, Callable[[], Any]] = {}
        self.truths: dict[str, Truth] = {}
        #: The keys in the order in which something was begun for them.
        self.begun: list[str] = []
        #: What banks keep, by the name under which it stands in `begun`.
        self.losses: dict[str, Asked] = {}
        self.payment_of_intent: dict[str, str] = {}
        self.effects = 0
        self.last_event = ""
        self.undelivered: list[dict[str, Any]] = []
        self.delivered: list[dict[str, Any]] = []
        self.dropped = 0
        self.clock_moved = False
        #: The platform's balance was emptied, and whether Stripe refuses what it cannot pay.
        self.is_poor = self.was_poor = False
        self.refuses_the_poor = False
        #: The expert's account cannot be paid at present, whether or not the service knows.
        self.is_restricted = False
        #: Lines of Stripe that no payment explains: money that came or went by hand.
        self.by_hand: set[str] = set()
        #: What was seen of which payment when it had which version, and is not written down yet.
        self.slow: list[tuple[str, PaymentSnapshot, int]] = []

    def _ask(self, key: str, trouble: Trouble) -> Reply:
        asked = self.asked[key]
        name = f"{asked.rpc} {trouble}"
        begun = key in self.begun
        if not begun and asked.payment_id:  # So what it comes to is decided now.
            view = self._pick(list(self.truths).index(asked.payment_id))[2]
            self._decide(asked, view)
        if isinstance(trouble, str):
            action, when, more = FAULTS[trouble]
            self.lab.arm(PATHS[asked.rpc], action, when, **more)
        elif trouble is not None:
            self.lab.bomb.left = trouble
        with self.lab.patience(IMPATIENT if trouble == "timeout" else PATIENT):
            reply = self.lab.ask(self.calls[key]())
        if isinstance(trouble, str):
            self.lab.disarm(trouble)
        note(f"{key} {name}: {reply.told} {reply.sentence}")
        if not begun and self.lab.sql("SELECT 1 FROM idempotency_keys WHERE key = %s", key):
            self.begun.append(key)
        if reply.told != AGAIN:
            asked.told, asked.body = reply.told, reply.body
            asked.promised = asked.promised or self._only_promised(asked)
            asked.waited = asked.waited or asked.promised
        self._take_effects()
        return reply

    def _only_promised(self, asked: Asked) -> bool:
        """Whether Stripe may do later what a caller has just been told."""
        pays_expert = asked.rpc == "CapturePayment" and self.is_restricted
        pays_client = asked.rpc == "RefundPayment" or bool(asked.rest)
        return pays_expert or (pays_client and self.refuses_the_poor)

    def _restore_account(self) -> None:
        """The account can be paid again, and the clock finds it out: no event tells."""
        if self.is_restricted:
            self.lab.control("POST", f"/accounts/{self.account}/restore")
            self.is_restricted = False
        self.lab.look_at_accounts()

    def _be_rich(self) -> None:
        """Money comes, so that every refund can be paid."""
        for currency in CURRENCIES:
            self._move_money(_ENOUGH, currency)
        self._on_low_balance("pending")
        self.is_poor = self.refuses_the_poor = False

    def _move_money(self, amount: int, currency: str) -> None:
        body = {"amount": amount, "currency": currency, "type": "adjustment"}
        self.by_hand.add(self.lab.control("POST", "/balance", body)["id"])

    def _on_low_balance(self, what: str) -> None:
        self.lab.control("POST", "/settings", {"refund_on_low_balance": what})

    def _decide(self, asked: Asked, view: View) -> None:
        """What a call will move, by how its payment stands when it begins."""
        separate = self.truths[asked.payment_id].separate
        if asked.rpc == "CapturePayment":
            asked.amount = asked.part or view.held
            commission = fee(view.net + asked.amount, BASIS_POINTS) - fee(view.net, BASIS_POINTS)
            asked.sends_nothing = separate and commission == asked.amount
            back = separate and asked.final and view.charged
            asked.rest = max(view.held - asked.amount, 0) if back else 0
        elif separate:
            asked.amount = (asked.part or view.held or view.net) if view.charged else 0
        else:
            asked.amount = (asked.part or view.net) if view.state == "CAPTURED" else 0

    def _expect(self, reply: Reply, expected: str, trouble: Trouble, *, touched: bool) -> None:
        """Trouble may leave it open; it never changes what the answer is.

        So may what somebody moved out of band: what follows then waits for an operator.
        """
        if reply.told == AGAIN and (trouble is not None or touched):
            return
        assert reply.told == expected, f"told {reply}, expected {expected}"

    def _take_effects(self) -> None:
        given = self.lab.control("GET", f"/effects?since={self.effects}")
        self.effects = given["last"]
        for one in given["effects"]:
            intent = one["payment_intent"]
            if one["kind"] == "intent_created":
                payment_id = one["metadata"]["payment_id"]
                self.payment_of_intent[intent] = payment_id
                payment = self.lab.payment(payment_id)
                separate = payment is not None and payment.is_separate
                self.truths.setdefault(payment_id, Truth(one["amount"], separate))
            if intent in self.payment_of_intent:
                truth = self.truths[self.payment_of_intent[intent]]
                truth.happened(one["kind"], one["amount"] or 0)

    def _pick(self, which: int) -> tuple[str, Truth, View]:
        self._take_effects()
        ids = list(self.truths)
        payment_id = ids[which % len(ids)]
        payment = self.lab.payment(payment_id)
        assert payment is not None
        # A parked repayment that is not in progress blocks nothing.
        parked = (payment.held or payment.net) and self.lab.sql(
            "SELECT 1 FROM operations WHERE operation_id = %s AND state = 'PARKED' "
            "AND purpose = 'REPAYMENT' AND unsure_until IS NULL",
            payment.operation_id,
        )
        view = View(
            payment.resting_state.value if parked else payment.state.value,
            payment.held,
            payment.net,
            payment.version,
            bool(payment.operation_id) and not parked,
            payment.charged if payment.is_separate else 0,
            payment.frozen.value != "NONE",
        )
        return payment_id, self.truths[payment_id], view

    def _intent(self, which: int) -> str:
        return self._intent_of(self._pick(which)[0])

    def _intent_of(self, wanted: str) -> str:
        return next((intent for intent, one in self.payment_of_intent.items() if one == wanted), "")

    def _new_key(self, rpc: str, amount: int, payment_id: str = "") -> str:
        key = f"{self.number}-{len(self.asked)}-{rpc}-{len(self.calls)}"
        self.asked[key] = Asked(rpc, key, amount, payment_id)
        return key

    def _count(self, rpc: str) -> int:
        return sum(one.rpc == rpc for one in self.asked.values())

    def _rows(self) -> object:
        ids = list(self.truths)
        return self.lab.sql(
            "SELECT payment_id, version, state FROM payments WHERE payment_id = ANY(%s) "
            "UNION ALL SELECT operation_id, attempt, state FROM operations "
            "WHERE payment_id = ANY(%s) ORDER BY 1",
            ids,
            ids,
        )

    def _in_order(self, payment_id: str) -> list[Asked]:
        """What was begun for a payment, and what its bank has kept between."""
        known = {**self.asked, **self.losses}
        found = [known[key] for key in self.begun if key in known]
        return [one for one in found if one.payment_id == payment_id]

    def _open_operations(self) -> list[tuple[Any, ...]]:
        which = "state IN ('STARTED', 'UNKNOWN', 'PARKED')"
        return self._mine("operations", "operation_id, kind, state, last_error", which)

    def _mine(self, table: str, columns: str, which: str) -> list[tuple[Any, ...]]:
        return list(
            self.lab.sql(
                f"SELECT {columns} FROM {table} WHERE {which} AND payment_id IN "  # noqa: S608 - ours
                "(SELECT payment_id FROM payments WHERE expert_id = %s)",
                self.expert,
            )
        )

    def _mine_postings(self) -> list[tuple[Any, ...]]:
        columns = "balance_transaction_id, currency, sum(minor_units)"
        return list(
            self.lab.sql(
                f"SELECT {columns} FROM postings WHERE account LIKE 'stripe:%%' "  # noqa: S608 - ours
                "AND payment_id IN (SELECT payment_id FROM payments WHERE expert_id = %s) "
                "GROUP BY 1, 2",
                self.expert,
            )
        )
