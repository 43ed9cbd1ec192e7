"""The bare handlers that the service is compared with: a process of its own.

`GetPayment` is grpc.aio and one statement by asyncpg. `InitiatePayment` creates a payment with the
usual means and nothing else: SQLAlchemy Core on psycopg2, a transaction of three inserts, one call
by Stripe's SDK, a transaction of one update and one insert. No checks, no key, no audit trail.
"""

import argparse
import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, cast

import asyncpg  # type: ignore[import-untyped]  # it has no types
import grpc.aio
import sqlalchemy as sa
import stripe
from google.protobuf.timestamp_pb2 import Timestamp

from marketplace.payments.v1 import money_pb2, payments_pb2, payments_pb2_grpc

NAME: Final = "bare"
_THREADS: Final = 12

_METADATA = sa.MetaData()
_PAYMENTS = sa.Table(
    "bare_payments",
    _METADATA,
    sa.Column("payment_id", sa.Text, primary_key=True),
    sa.Column("client_id", sa.Text, nullable=False),
    sa.Column("expert_id", sa.Text, nullable=False),
    sa.Column("gig_id", sa.Text, nullable=False),
    sa.Column("amount", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("payment_intent_id", sa.Text),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
)
_OPERATIONS = sa.Table(
    "bare_operations",
    _METADATA,
    sa.Column("operation_id", sa.Text, primary_key=True),
    sa.Column("payment_id", sa.ForeignKey("bare_payments.payment_id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
)
_KEYS = sa.Table(
    "bare_keys",
    _METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("payment_id", sa.Text, nullable=False),
    sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
)
_EVENTS = sa.Table(
    "bare_events",
    _METADATA,
    sa.Column("payment_id", sa.ForeignKey("bare_payments.payment_id"), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
)


class _ByName:
    """Adds services to a server by their names only."""

    def __init__(self, server: Any) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, *_: object) -> None: ...


def named_only(server: Any) -> grpc.aio.Server:
    """Returns the server for generated code, which also registers each method.

    The service leaves that out: each registered method costs every call a wait. So must the bare
    handlers, or the multiples would flatter the service.
    """
    return cast("grpc.aio.Server", _ByName(server))


class Bare(payments_pb2_grpc.PaymentServiceServicer):
    """The least that a handler can do."""

    def __init__(self, engine: sa.Engine, pool: Any, client: stripe.StripeClient) -> None:
        self._engine = engine
        self._pool = pool
        self._stripe = client
        self._threads = ThreadPoolExecutor(_THREADS)

    async def GetPayment(  # noqa: N802 - the contract's name
        self, request: payments_pb2.GetPaymentRequest, context: Any
    ) -> payments_pb2.GetPaymentResponse:
        row = await self._pool.fetchrow(
            "SELECT * FROM payments WHERE payment_id = $1", request.payment_id
        )
        return payments_pb2.GetPaymentResponse(payment=_message(row))

    async def InitiatePayment(  # noqa: N802 - the contract's name
        self, request: payments_pb2.InitiatePaymentRequest, context: Any
    ) -> payments_pb2.InitiatePaymentResponse:
        loop = asyncio.get_running_loop()
        payment_id = f"pay_{uuid.uuid4().hex}"
        await loop.run_in_executor(self._threads, self._begin, payment_id, request)
        intent = await self._stripe.v1.payment_intents.create_async(
            {
                "amount": request.amount.minor_units,
                "currency": request.amount.currency_code.lower(),
                "capture_method": "manual",
                "metadata": {"payment_id": payment_id},
            },
            {"idempotency_key": payment_id},
        )
        await loop.run_in_executor(self._threads, self._end, payment_id, intent.id)
        payment = payments_pb2.Payment(
            payment_id=payment_id,
            client_id=request.client_id,
            expert_id=request.expert_id,
            gig_id=request.gig_id,
            amount=request.amount,
            payment_intent_id=intent.id,
        )
        return payments_pb2.InitiatePaymentResponse(
            payment=payment, client_secret=intent.client_secret or ""
        )

    def _begin(self, payment_id: str, request: payments_pb2.InitiatePaymentRequest) -> None:
        now = datetime.now(UTC)
        with self._engine.begin() as connection:
            connection.execute(
                _PAYMENTS.insert().values(
                    payment_id=payment_id,
                    client_id=request.client_id,
                    expert_id=request.expert_id,
                    gig_id=request.gig_id,
                    amount=request.amount.minor_units,
                    currency=request.amount.currency_code,
                    state="CREATED",
                    create_time=now,
                )
            )
            connection.execute(
                _OPERATIONS.insert().values(
                    operation_id=f"op_{payment_id}",
                    payment_id=payment_id,
                    kind="create_intent",
                    create_time=now,
                )
            )
            connection.execute(
                _KEYS.insert().values(
                    key=request.idempotency_key, payment_id=payment_id, create_time=now
                )
            )

    def _end(self, payment_id: str, intent_id: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                _PAYMENTS.update()
                .where(_PAYMENTS.c.payment_id == payment_id)
                .values(state="AWAITING_PAYMENT", payment_intent_id=intent_id)
            )
            connection.execute(
                _EVENTS.insert().values(payment_id=payment_id, sequence=1, body="{}")
            )


def _message(row: Any) -> payments_pb2.Payment:
    """Returns the message from the row, field by field and without any rule."""

    def money(name: str) -> money_pb2.Money:
        return money_pb2.Money(minor_units=row[name], currency_code=row["currency"])

    def time(name: str) -> Timestamp | None:
        if row[name] is None:
            return None
        stamp = Timestamp()
        stamp.FromDatetime(row[name])
        return stamp

    return payments_pb2.Payment(
        payment_id=row["payment_id"],
        client_id=row["client_id"],
        expert_id=row["expert_id"],
        gig_id=row["gig_id"],
        description=row["description"],
        state=payments_pb2.PaymentState.Value(f"PAYMENT_STATE_{row['state']}"),
        operation_id=row["operation_id"],
        escrow_mode=payments_pb2.EscrowMode.Value(f"ESCROW_MODE_{row['escrow_mode']}"),
        mode_reason=payments_pb2.ModeReason.Value(f"MODE_REASON_{row['mode_reason']}"),
        charge_model=payments_pb2.ChargeModel.Value(f"CHARGE_MODEL_{row['charge_model']}"),
        amount=money("amount"),
        commission=money("commission"),
        expert_amount=money("expert_amount"),
        held_amount=money("held"),
        captured_amount=money("captured"),
        refunded_amount=money("refunded_after_capture"),
        returned_amount=money("refunded_from_escrow"),
        client_payable=money("client_payable"),
        lost_amount=money("lost"),
        net_commission=money("net_commission"),
        commission_basis_points=row["commission_basis_points"],
        payment_intent_id=row["payment_intent_id"],
        charge_id=row["charge_id"],
        version=row["version"],
        create_time=time("create_time"),
        update_time=time("update_time"),
        escrow_time=time("escrow_time"),
        capture_time=time("capture_time"),
        payment_expire_time=time("payment_expire_time"),
    )


async def serve(given: argparse.Namespace) -> None:
    """Serves until it is ended."""
    url = sa.make_url(given.bare_url).set(drivername="postgresql+psycopg2")
    engine = sa.create_engine(
        url, pool_size=_THREADS, max_overflow=0, connect_args={"application_name": NAME}
    )
    _METADATA.create_all(engine)
    pool = await asyncpg.create_pool(
        given.service_url, min_size=4, max_size=4, server_settings={"application_name": NAME}
    )
    client = stripe.StripeClient(
        "sk_test_bare",
        base_addresses={"api": given.stripe_url},
        max_network_retries=0,
        http_client=stripe.AIOHTTPClient(),
    )
    # Two of the service's methods are enough.
    bare = Bare(engine, pool, client)  # type: ignore[abstract]
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    payments_pb2_grpc.add_PaymentServiceServicer_to_server(bare, named_only(server))
    server.add_insecure_port(f"127.0.0.1:{given.port}")
    await server.start()
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--service-url", required=True)
    parser.add_argument("--bare-url", required=True)
    parser.add_argument("--stripe-url", required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
