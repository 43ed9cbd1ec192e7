"""`python -m payment_service report`: a month of the books as tables and as CSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from payment_service.application.app import App
from payment_service.application.report_month import Statement, report_month, state_month
from payment_service.config import Settings
from payment_service.domain.money import Money, format_money
from payment_service.domain.monthly import (
    AccountMonth,
    CurrencyMonth,
    Month,
    MonthReport,
    StatementLine,
)
from payment_service.maintenance import wired_app

#: How many lines of a statement are read at a time.
_PAGE: Final = 1000
_AMOUNTS: Final = ("opening", "debits", "credits", "closing")
_LINE_AMOUNTS: Final = ("gross", "commission", "funds", "paid_out", "debt")


async def report(
    settings: Settings, month: Month, currency: str, directory: Path | None, console: Console
) -> None:
    """Prints a month of the books, and writes it as CSV files if there is a directory.

    Raises :class:`CannotRun`, and OSError if a file cannot be written.
    """
    async with wired_app(settings) as app:
        found = await report_month(app, month, currency)
    until = "final" if found.final else f"not final, as of {found.end:%Y-%m-%d %H:%M:%S} UTC"
    console.print(Text(f"The books in {month.name} (UTC): {until}", style="bold"))
    for one in found.currencies:
        _print_currency(one, console)
    if not found.currencies:
        console.print(Text("Nothing was ever posted."))
    if directory is not None:
        _write_report(found, directory)
        console.print(Text(f"CSV files are in {directory}"), soft_wrap=True)


async def statement(
    settings: Settings, month: Month, expert_id: str, directory: Path | None, console: Console
) -> None:
    """Prints one expert's month, and writes it as CSV files if there is a directory.

    Raises :class:`CannotRun`, and OSError if a file cannot be written.
    """
    async with wired_app(settings) as app:
        lines, accounts = await _whole_statement(app, month, expert_id)
    console.print(Text(f"{expert_id} in {month.name} (UTC)", style="bold"))
    table = _table("time", "payment", "what", *(f"{name}>" for name in _LINE_AMOUNTS))
    for line in lines:
        amounts = [_plain(getattr(line, name), line.currency) for name in _LINE_AMOUNTS]
        table.add_row(f"{line.time:%Y-%m-%d %H:%M:%S}", line.payment_id, line.kind, *amounts)
    console.print(table)
    console.print(_accounts(accounts))
    if directory is not None:
        _write_statement(month, lines, accounts, directory)
        console.print(Text(f"CSV files are in {directory}"), soft_wrap=True)


async def _whole_statement(
    app: App, month: Month, expert_id: str
) -> tuple[Sequence[StatementLine], Sequence[AccountMonth]]:
    lines: list[StatementLine] = []
    while True:
        page: Statement = await state_month(
            app, expert_id, month, lines[-1].posting_id if lines else 0, _PAGE
        )
        lines += page.lines
        if len(page.lines) < _PAGE:
            return lines, page.accounts


def _print_currency(month: CurrencyMonth, console: Console) -> None:
    console.print()
    console.print(_accounts(month.accounts))
    table = _table("figure", f"{month.currency}>", "what it sums")
    for figure in month.figures:
        amount = _plain(figure.minor_units, month.currency)
        style = "bright_black" if not figure.minor_units else ""
        table.add_row(figure.name, amount, figure.meaning, style=style)
    table.add_row("held_payments", str(month.held_payments), "payments that hold money now")
    console.print(table)
    found = month.comparison
    console.print(Text("Stripe: ", style="bold").append(found.sentence))
    if found.available is not None and found.pending is not None:
        parts = {
            "available": found.available,
            "pending": found.pending,
            "ledger": found.ledger,
            "difference": found.difference or 0,
            "named by discrepancies": found.explained,
        }
        shown = [f"{name} {Money(value, month.currency)}" for name, value in parts.items()]
        console.print(Text(f"  {', '.join(shown)} {' '.join(found.discrepancy_ids)}".rstrip()))


def _accounts(accounts: Sequence[AccountMonth]) -> Table:
    table = _table("account", "currency", *(f"{name}>" for name in _AMOUNTS))
    for account in accounts:
        amounts = [_plain(getattr(account, name), account.currency) for name in _AMOUNTS]
        table.add_row(account.account, account.currency, *amounts)
    return table


def _table(*columns: str) -> Table:
    table = Table(header_style="bright_black", border_style="bright_black")
    for name in columns:
        right = name.endswith(">")
        table.add_column(
            name.removesuffix(">"), justify="right" if right else "left", overflow="fold"
        )
    return table


def _write_report(found: MonthReport, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    month = found.month
    accounts = [account for one in found.currencies for account in one.accounts]
    _write_accounts(directory / "accounts.csv", month, accounts)
    _write(
        directory / "figures.csv",
        ("month", "final", "currency", "figure", *_both(["amount"]), "meaning"),
        (
            [
                *(month.name, "yes" if found.final else "no", one.currency, figure.name),
                *_amounts([figure.minor_units], one.currency),
                figure.meaning,
            ]
            for one in found.currencies
            for figure in one.figures
        ),
    )
    _write(
        directory / "stripe.csv",
        (
            *("month", "as_of", "currency"),
            *_both(["available", "pending", "ledger", "difference", "explained"]),
            *("discrepancies", "sentence"),
        ),
        (_stripe_row(found, one) for one in found.currencies),
    )


def _write_statement(
    month: Month,
    lines: Sequence[StatementLine],
    accounts: Sequence[AccountMonth],
    directory: Path,
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    _write(
        directory / "statement.csv",
        ("month", "time", "payment_id", "kind", "currency", *_both(_LINE_AMOUNTS)),
        (_line_row(month, line) for line in lines),
    )
    _write_accounts(directory / "accounts.csv", month, accounts)


def _stripe_row(found: MonthReport, one: CurrencyMonth) -> list[str]:
    seen = one.comparison
    known = seen.available is not None
    values = [
        *(seen.available, seen.pending, seen.ledger, seen.difference),
        seen.explained if known else None,
    ]
    return [
        *(found.month.name, f"{found.end:%Y-%m-%dT%H:%M:%SZ}", one.currency),
        *_amounts(values, one.currency),
        *(" ".join(seen.discrepancy_ids), seen.sentence),
    ]


def _write_accounts(path: Path, month: Month, accounts: Iterable[AccountMonth]) -> None:
    _write(
        path,
        ("month", "currency", "account", *_both(_AMOUNTS)),
        (
            [
                *(month.name, account.currency, account.account),
                *_amounts([getattr(account, name) for name in _AMOUNTS], account.currency),
            ]
            for account in accounts
        ),
    )


def _line_row(month: Month, line: StatementLine) -> list[str]:
    amounts = [getattr(line, name) for name in _LINE_AMOUNTS]
    return [
        *(month.name, f"{line.time:%Y-%m-%dT%H:%M:%S.%fZ}", line.payment_id, line.kind),
        line.currency,
        *_amounts(amounts, line.currency),
    ]


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a file as RFC 4180 has it: commas, CRLF, quotes only where they are needed."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _both(names: Iterable[str]) -> list[str]:
    """Returns two columns for each amount: the integer that counts, and the same for people."""
    return [column for name in names for column in (f"{name}_minor_units", name)]


def _amounts(values: Iterable[int | None], currency: str) -> list[str]:
    return [
        column
        for value in values
        for column in (("", "") if value is None else (str(value), _plain(value, currency)))
    ]


def _plain(minor_units: int, currency: str) -> str:
    """Returns a decimal number without its currency: 12.34, 1001, 10.050."""
    return format_money(Money(minor_units, currency)).rpartition(" ")[0]
