"""LedgerService: accounts and postings."""

from __future__ import annotations

from marketplace.payments.v1 import ledger_pb2, ledger_pb2_grpc, report_pb2
from payment_service.application.app import App
from payment_service.application.report_month import report_month, state_month
from payment_service.domain.errors import payment_not_found
from payment_service.rpc import pagination
from payment_service.rpc.call_context import Context
from payment_service.rpc.fields import RequestFields
from payment_service.rpc.messages.common import money_message
from payment_service.rpc.messages.ledger import posting_message
from payment_service.rpc.messages.report import report_message, statement_message


class LedgerServicer(ledger_pb2_grpc.LedgerServiceServicer):
    def __init__(self, app: App) -> None:
        self._app = app

    async def ListBalances(
        self, request: ledger_pb2.ListBalancesRequest, context: Context
    ) -> ledger_pb2.ListBalancesResponse:
        fields = RequestFields()
        prefix = fields.text("account_prefix", request.account_prefix, most=200)
        page_size = fields.page_size(request.page_size, default=200, most=1000)
        fields.check()
        keyset = pagination.read_page_token("balances", prefix, request.page_token, 2)
        after = (keyset[0], keyset[1]) if keyset else None
        database = self._app.aside().database
        found = await database.read(lambda reader: reader.balances(prefix, after, page_size + 1))
        totals = await database.read(lambda reader: reader.totals())
        page, token = pagination.page_of(
            found, page_size, "balances", prefix, lambda balance: balance[:2]
        )
        return ledger_pb2.ListBalancesResponse(
            balances=[
                ledger_pb2.LedgerBalance(account=account, balance=money_message(balance, currency))
                for account, currency, balance in page
            ],
            next_page_token=token,
            totals=[money_message(total, currency) for currency, total in totals],
        )

    async def GetMonthlyReport(
        self, request: report_pb2.GetMonthlyReportRequest, context: Context
    ) -> report_pb2.GetMonthlyReportResponse:
        fields = RequestFields()
        month = fields.month("month", request.month)
        currency = request.currency_code
        if currency:
            currency = fields.currency("currency_code", currency)
        fields.check()
        return report_message(await report_month(self._app, month, currency))

    async def GetExpertStatement(
        self, request: report_pb2.GetExpertStatementRequest, context: Context
    ) -> report_pb2.GetExpertStatementResponse:
        fields = RequestFields()
        expert_id = fields.identifier("expert_id", request.expert_id)
        month = fields.month("month", request.month)
        page_size = fields.page_size(request.page_size, default=200, most=1000)
        fields.check()
        filters = f"{expert_id} {month.name}"
        keyset = pagination.read_page_token("statement", filters, request.page_token, 1)
        after = pagination.token_number(keyset[0]) if keyset else 0
        found = await state_month(self._app, expert_id, month, after, page_size + 1)
        page, token = pagination.page_of(
            found.lines, page_size, "statement", filters, lambda line: [str(line.posting_id)]
        )
        return statement_message(expert_id, month.name, page, found, token)

    async def ListPostings(
        self, request: ledger_pb2.ListPostingsRequest, context: Context
    ) -> ledger_pb2.ListPostingsResponse:
        fields = RequestFields()
        payment_id = fields.our_id("payment_id", request.payment_id)
        fields.check()
        payment = await self._app.database.read(lambda reader: reader.payment(payment_id))
        if payment is None:
            raise payment_not_found(payment_id)
        found = await self._app.database.read(lambda reader: reader.postings(payment_id))
        return ledger_pb2.ListPostingsResponse(
            postings=[posting_message(posting) for posting in found]
        )
