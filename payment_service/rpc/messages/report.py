"""Converts months of the books and statements of experts (report.proto)."""

from __future__ import annotations

from collections.abc import Sequence

from marketplace.payments.v1 import report_pb2
from payment_service.application.report_month import Statement
from payment_service.domain.monthly import (
    AccountMonth,
    Comparison,
    CurrencyMonth,
    MonthReport,
    StatementLine,
)
from payment_service.rpc.messages.common import money_message, time_message


def report_message(report: MonthReport) -> report_pb2.GetMonthlyReportResponse:
    return report_pb2.GetMonthlyReportResponse(
        month=report.month.name,
        start_time=time_message(report.month.start),
        end_time=time_message(report.end),
        final=report.final,
        currencies=[_currency(one) for one in report.currencies],
    )


def statement_message(
    expert_id: str,
    month: str,
    lines: Sequence[StatementLine],
    statement: Statement,
    next_page_token: str,
) -> report_pb2.GetExpertStatementResponse:
    return report_pb2.GetExpertStatementResponse(
        expert_id=expert_id,
        month=month,
        lines=[_line(line) for line in lines],
        next_page_token=next_page_token,
        accounts=[_account(account) for account in statement.accounts],
    )


def _currency(month: CurrencyMonth) -> report_pb2.CurrencyReport:
    return report_pb2.CurrencyReport(
        currency_code=month.currency,
        accounts=[_account(account) for account in month.accounts],
        figures=[
            report_pb2.Figure(
                name=figure.name,
                amount=money_message(figure.minor_units, month.currency),
                meaning=figure.meaning,
            )
            for figure in month.figures
        ],
        held_payments=month.held_payments,
        stripe=_comparison(month.comparison, month.currency),
    )


def _account(account: AccountMonth) -> report_pb2.AccountReport:
    return report_pb2.AccountReport(
        account=account.account,
        opening=money_message(account.opening, account.currency),
        debits=money_message(account.debits, account.currency),
        credits=money_message(account.credits, account.currency),
        closing=money_message(account.closing, account.currency),
    )


def _comparison(found: Comparison, currency: str) -> report_pb2.StripeComparison:
    message = report_pb2.StripeComparison(
        ledger=money_message(found.ledger, currency), sentence=found.sentence
    )
    difference = found.difference
    if found.available is not None and found.pending is not None and difference is not None:
        message.known = True
        message.available.CopyFrom(money_message(found.available, currency))
        message.pending.CopyFrom(money_message(found.pending, currency))
        message.difference.CopyFrom(money_message(difference, currency))
        message.explained.CopyFrom(money_message(found.explained, currency))
        message.discrepancy_ids.extend(found.discrepancy_ids)
    return message


def _line(line: StatementLine) -> report_pb2.StatementLine:
    return report_pb2.StatementLine(
        post_time=time_message(line.time),
        payment_id=line.payment_id,
        kind=line.kind,
        gross=money_message(line.gross, line.currency),
        commission=money_message(line.commission, line.currency),
        funds=money_message(line.funds, line.currency),
        paid_out=money_message(line.paid_out, line.currency),
        debt=money_message(line.debt, line.currency),
    )
