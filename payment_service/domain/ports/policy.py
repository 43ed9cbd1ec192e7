"""The settings that the use cases depend on."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that rules depend on. Durations are seconds."""

    default_commission_basis_points: int = 1000
    default_currency: str = "USD"
    default_country: str = "US"
    platform_country: str = "US"
    #: The platform's own limit; None leaves it to Stripe's limits.
    maximum_charge_minor_units: int | None = None
    #: The currencies in which Stripe settles the platform's charges.
    settlement_currencies: frozenset[str] = frozenset({"USD"})
    publishable_key: str = ""
    gateway_public_url: str = "http://127.0.0.1:8005"
    allowed_origins: frozenset[str] = field(default_factory=frozenset)
    #: Whether an early fraud warning freezes the payment, or is only recorded.
    freeze_on_fraud_warning: bool = True
    #: A gig that ends within this many seconds fits a card's authorization.
    card_hold: float = 6 * 24 * 3600.0
    #: For how long the platform may hold charged money (Stripe's limit by the platform's country).
    holding_limit: float = 90 * 24 * 3600.0
    #: How long before Stripe ends a hold its deadline's action is taken.
    deadline_margin: float = 12 * 3600.0
    #: After how long a deadline's action that was refused is tried again.
    deadline_retry: float = 3600.0
    #: How long before a deadline a warning goes out.
    deadline_warning: float = 48 * 3600.0
    #: After how long a capture is tried again that Stripe refused although the expert looked ready.
    capture_retry: float = 60.0
    #: Whether Stripe is asked for an authorization that lasts longer than the card's usual one.
    extended_authorization: bool = False
    #: How long a client may take to confirm a payment.
    payment_window: float = 24 * 3600.0
    #: How soon after its holder dies an operation is recovered; renewed while the holder lives.
    lease: float = 6.0
    #: How long a repeated key waits for the first call before it is answered with ABORTED.
    claim_wait: float = 5.0
    #: How long a landing page's token lives.
    landing_token_life: float = 7 * 24 * 3600.0
    #: How old the stored state of an account that is not ready may be.
    account_freshness: float = 2.0
    #: After this many tries an event is parked. An operation is parked after ``patience`` times as
    #: many, because an outage can hold it up.
    tries_before_parking: int = 30
    patience: int = 10
    #: The pause before the next try. It doubles from the first to the longest, so that nothing
    #: stays unknown for long once Stripe answers again.
    retry_first_seconds: float = 0.5
    retry_longest_seconds: float = 5.0
    #: The pauses after which a request is sent again that certainly had no effect.
    unsent_pause_seconds: tuple[float, ...] = (0.2, 0.5, 1.0)
    #: The pauses after which Stripe is read again for balance transactions that are not there yet.
    balance_transaction_pause_seconds: tuple[float, ...] = (0.2, 0.5, 1.0)
    #: How long the service waits for the balance transaction of an object that is final at Stripe.
    #: After that the object is booked by what is known, and reported.
    line_patience: float = 300.0
    #: For how long a request without an answer may take effect unseen. So far apart are the two
    #: reads of Stripe before a refund, a transfer or a reversal is sent under a new key.
    arrival_seconds: float = 61.0
    #: How often it is checked whether a refund or a transfer that waits for the platform's balance
    #: is paid by now. Stripe's events usually say so before.
    funds_check_seconds: float = 300.0
    #: The pause until an expert's debt is collected again. It doubles from the first to the
    #: longest while the account has nothing.
    debt_check_first_seconds: float = 60.0
    debt_check_longest_seconds: float = 3600.0
    #: How often reconciliation runs, and how far back it compares.
    reconcile_seconds: float = 3600.0
    reconcile_span: float = 2 * 24 * 3600.0
    #: How often new postings are folded into the running balances; at the pace of a slow job while
    #: there are some.
    fold_seconds: float = 60.0
    #: For how long an applied or ignored event of Stripe is kept. Stripe lists its events for 30
    #: days; an event that was deleted before would be stored and applied again.
    webhook_event_retention: float = 35 * 24 * 3600.0
    #: For how long the answer of an idempotency key is kept. The key itself is kept for ever.
    answer_retention: float = 400 * 24 * 3600.0
    #: The most that an adjustment may debit in one currency, in its minor units.
    adjustment_limit_minor_units: int = 1_000_000
    #: For how long a proposed adjustment can be approved.
    adjustment_life: float = 7 * 24 * 3600.0
    #: Whether the proposer may approve. Only for development, where all callers are one.
    adjustments_by_one_person: bool = False
    #: The most that one person may write off of an expert's debt within 30 days, in minor units.
    write_off_limit_minor_units: int = 50_000
    #: How often the heads of the audit trail are exported.
    heads_seconds: float = 3600.0
    #: How often what is too old is deleted.
    prune_seconds: float = 3600.0
    #: How long an event of Stripe waits for the call whose request it tells of, while the call is
    #: at work. After that Stripe is asked.
    own_event_patience: float = 1.0
    #: How long an event waits for others of its payment, which are then applied together.
    event_gathering: float = 0.1
    #: The longest pause after positions were given in the feed. What is committed in it gets its
    #: positions together; what is committed after it, at once.
    feed_gathering: float = 0.1
    #: How often Stripe's list of the platform's events is read, and an account's.
    poll_seconds: float = 10.0
    account_poll_seconds: float = 30.0
    #: The same for an account that has no open payment, but may pay out what was earned.
    payout_poll_seconds: float = 600.0
    #: How often an account is read from Stripe although no event asks for it: one for which a
    #: capture waits, one that is not ready (with growing pauses), and one that is ready.
    waiting_account_seconds: float = 60.0
    unready_account_seconds: float = 300.0
    ready_account_seconds: float = 24 * 3600.0
    #: An open payment that has not changed for this long is synced, with pauses that grow.
    quiet_seconds: float = 60.0
    #: The longest pause between two rounds of a background job: of one that callers wait for, and
    #: of one whose payments can wait.
    job_interval: float = 1.0
    slow_job_interval: float = 15.0
