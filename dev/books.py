"""Compares our books with Stripe's after a walk: line by line, then account by account."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from dev.caller import Caller, expect
from dev.story import Story, amount, money
from dev.stripe_side import StripeSide
from marketplace.payments.v1 import experts_pb2, ledger_pb2, operations_pb2

#: Our name of an account at Stripe, a currency, and the id of a line of Stripe's; of a payout its
#: own id, for it is a payout that LedgerService names no payment for.
Line = tuple[str, str, str]
#: An account of the ledger and a currency.
Place = tuple[str, str]

_CONNECTED = "stripe:connected:"
_OPENING = "opening_balance"

#: Accounts of the ledger, and who holds their money.
_HOLDERS = {
    "stripe:connected:": "Ada's balance at Stripe",
    "stripe:platform": "Platform's balance at Stripe",
    "processor_fee": "Stripe's fees",
    "dispute_fee": "Stripe's fees",
}

# What Stripe decides: its fees, its rates, and so what is left at Stripe.
_DECIDED_BY_STRIPE = ("stripe:", "processor_fee", "fx", _OPENING)


class Books:
    """Ours by LedgerService, Stripe's by its balance transactions."""

    def __init__(self, caller: Caller, story: Story, stripe: StripeSide, *, alone: bool) -> None:
        """`alone` says that the Stripe account has seen nothing but this walk.

        Elsewhere only lines that our books name are compared: others may be anybody's.
        """
        self._caller = caller
        self._story = story
        self._stripe = stripe
        self._alone = alone
        # Stripe counts whole seconds, by a clock of its own.
        self._since = int(time.time()) - 120
        #: What the platform had before the walk: the opening balance of our books.
        self._before = stripe.balances("") if alone else {}
        #: The accounts at Stripe under our names; "" is the platform's own.
        self.accounts = {"stripe:platform": ""}

    def agree(self, payment_ids: Iterable[str]) -> None:
        """Wait until both say the same. Stripe's fee is told a moment after the capture."""
        ids = list(payment_ids)
        differences: list[str] = []

        def none() -> bool:
            differences[:] = self._differences(ids)
            return not differences

        seconds = self._caller.poll(none)
        expect("differences between our books and Stripe's", [], differences)
        self._story.step(
            "auditor", "ledger", "agrees with Stripe's books line by line", seconds=seconds
        )

    def _differences(self, payment_ids: list[str]) -> list[str]:
        ours, theirs = self._ours(payment_ids), self._theirs()
        compared = {*ours, *theirs} if self._alone else set(ours)
        return [
            f"{account} {line_id or '(without a line of Stripe)'}: "
            f"ours {_told(ours.get(line), currency)}, Stripe's {_told(theirs.get(line), currency)}"
            for line in sorted(compared)
            for account, currency, line_id in [line]
            if ours.get(line) != theirs.get(line)
        ]

    def _ours(self, payment_ids: Iterable[str]) -> dict[Line, int]:
        lines: dict[Line, int] = defaultdict(int)
        for payment_id in payment_ids:
            request = ledger_pb2.ListPostingsRequest(payment_id=payment_id)
            for posting in self._caller.ask(self._caller.ledger.ListPostings, request).postings:
                if posting.account in self.accounts:
                    line_id = posting.balance_transaction_id
                    line = (posting.account, posting.amount.currency_code, line_id)
                    lines[line] += posting.amount.minor_units
        if self._alone:
            lines.update(self._payouts())
        return lines

    def _payouts(self) -> dict[Line, int]:
        """What has gone to the experts' banks, as ExpertService knows it."""
        found: dict[Line, int] = {}
        for name in self.accounts:
            expert_id = name.removeprefix(_CONNECTED)
            if expert_id == name:
                continue
            request = experts_pb2.ListPayoutsRequest(expert_id=expert_id, page_size=100)
            for payout in self._caller.ask(self._caller.experts.ListPayouts, request).payouts:
                line = (name, payout.amount.currency_code, payout.payout_id)
                found[line] = -payout.amount.minor_units
        return found

    def _theirs(self) -> dict[Line, int]:
        return {
            (
                name,
                line.currency,
                line.source_id if line.kind == "payout" else line.line_id,
            ): line.net
            for name, account in self.accounts.items()
            for line in self._stripe.lines(account, self._since)
        }

    def close(
        self, payment_ids: Iterable[str], wanted: dict[Place, int], paid: Mapping[str, int]
    ) -> None:
        """Checks the books at the end: the ledger, Stripe's balances, the sums, no work left.

        `wanted` is every balance that Stripe does not decide and that is not zero; `paid` is what
        the client has paid and not got back, by currency.
        """
        if self._alone:
            # It books what was there before, if no other has: nothing moves at Stripe now.
            run = operations_pb2.RunReconciliationRequest()
            self._caller.ask(self._caller.operations.RunReconciliation, run)
        request = ledger_pb2.ListBalancesRequest(page_size=1000)
        answer = self._caller.ask(self._caller.ledger.ListBalances, request)
        balances = {
            (line.account, line.balance.currency_code): line.balance.minor_units
            for line in answer.balances
            if line.balance.minor_units
        }
        self._story.table(
            "Ledger (debit positive, credit negative, without accounts at zero)",
            ["account", "balance>"],
            [[name, amount(total, currency)] for (name, currency), total in balances.items()],
        )
        ours = {
            place: total
            for place, total in balances.items()
            if not place[0].startswith(_DECIDED_BY_STRIPE)
        }
        expect("the ledger's balances", wanted, ours)
        self._story.holds("commission and experts' funds are the sum of the payments")
        opening = {place[1]: -total for place, total in balances.items() if place[0] == _OPENING}
        if self._alone:
            expect("the opening balance", self._before, opening)
            self._story.holds("the opening balance is what Stripe had before the books began")
        balances = _since_opening(balances, opening)
        self._compare_balances(balances, list(payment_ids))
        for total in answer.totals:
            expect(f"the sum of all postings in {total.currency_code}", 0, total.minor_units)
            self._story.holds(f"all postings in {total.currency_code} sum to {money(total)}")
        self._expect_nothing_left()
        if self._alone:
            self._tell_holders(balances, paid)

    def _tell_holders(self, balances: dict[Place, int], paid: Mapping[str, int]) -> None:
        """Prints where the money that Grace paid, and did not get back, is now."""
        holders: dict[Place, int] = defaultdict(int)
        for (name, currency), total in balances.items():
            for start, holder in _HOLDERS.items():
                if name.startswith(start):
                    holders[holder, currency] += total
        for (_, currency, _), net in self._payouts().items():
            holders["Ada's bank account", currency] -= net
        for currency in {currency for _, currency in holders}:
            together = sum(total for place, total in holders.items() if place[1] == currency)
            expect("what Grace paid", paid.get(currency, 0), together)
            holders["together: what Grace paid", currency] = together
        currencies = sorted({currency for _, currency in holders}, reverse=True)
        names = dict.fromkeys(name for name, _ in sorted(holders))
        self._story.table(
            "Who holds the money now",
            ["", *(f"{currency}>" for currency in currencies)],
            [
                [name, *(amount(holders.get((name, one), 0), one) for one in currencies)]
                for name in names
            ],
        )

    def _compare_balances(self, balances: dict[Place, int], payment_ids: list[str]) -> None:
        known = self._ours(payment_ids)
        theirs: dict[Place, int] = defaultdict(int)
        for line, net in self._theirs().items():
            if line in known:
                theirs[line[:2]] += net
        ours = {place: total for place, total in balances.items() if place[0] in self.accounts}
        places = sorted({*ours, *theirs})
        rows = [(place, ours.get(place, 0), theirs.get(place, 0)) for place in places]
        self._story.table(
            "Ours and Stripe's",
            ["account", "ours>", "Stripe's>", ""],
            [
                [name, amount(mine, currency), amount(stripes, currency), mine == stripes]
                for (name, currency), mine, stripes in rows
            ],
        )
        for (name, currency), mine, stripes in rows:
            expect(f"{name} in {currency}", stripes, mine)
        if self._alone:
            for name, account in self.accounts.items():
                held = {place[1]: total for place, total in ours.items() if place[0] == name}
                before = self._before if name == "stripe:platform" else {}
                since = {
                    currency: total - before.get(currency, 0)
                    for currency, total in self._stripe.balances(account).items()
                    if total != before.get(currency, 0)
                }
                expect(f"Stripe's balance of {name}", held, since)
            self._story.holds("Stripe holds exactly what our ledger says")

    def _expect_nothing_left(self) -> None:
        service = self._caller.operations
        asked = operations_pb2.ListDiscrepanciesRequest()
        found = self._caller.ask(service.ListDiscrepancies, asked).discrepancies
        expect("discrepancies", [], [f"{line.kind}: {line.detail}" for line in found])
        self._story.holds("no discrepancies")
        left: list[str] = []

        def nothing() -> bool:
            operations = self._caller.ask(
                service.ListOperations, operations_pb2.ListOperationsRequest()
            ).operations
            events = self._caller.ask(
                service.ListWebhookEvents, operations_pb2.ListWebhookEventsRequest()
            ).events
            left[:] = [f"{item.kind} {item.operation_id}" for item in operations]
            left.extend(f"{event.type} {event.event_id}" for event in events)
            return not left

        self._caller.poll(nothing)
        expect("what waits", [], left)
        self._story.holds("no operation is unfinished, no webhook waits")


def _since_opening(balances: Mapping[Place, int], opening: Mapping[str, int]) -> dict[Place, int]:
    """What the ledger's balances are without what was there before."""
    since = {place: total for place, total in balances.items() if place[0] != _OPENING}
    for currency, had in opening.items():
        since["stripe:platform", currency] = since.get(("stripe:platform", currency), 0) - had
    return {place: total for place, total in since.items() if total}


def _told(minor_units: int | None, currency: str) -> str:
    return "none" if minor_units is None else amount(minor_units, currency)
