"""Prints a walk: chapters, one line per step, bars of who holds what; plain without a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from marketplace.payments.v1 import money_pb2

_WIDTH = 110
#: Narrower than this, the answer of a step gets lines of its own.
_COLUMNS_FROM = 76
_WHO_WIDTH = 12
_WHAT_WIDTH = 26
_TOOK_WIDTH = 7
_COLOURS = {
    "expert": "magenta",
    "client": "cyan",
    "gig service": "green",
    "user service": "green",
    "Stripe": "blue",
    "auditor": "yellow",
    "operator": "yellow",
    "service": "yellow",
}
#: The currencies of the walk that have no cents.
_WHOLE = {"JPY"}

_BAR_WIDTH = 24
#: Who may hold a part of a payment, with the sign and the colour of that part of a bar.
#: The signs differ, so that a bar is readable without colours.
_HOLDERS: Final = {
    "in escrow": ("▒", "yellow"),
    "Ada": ("█", "magenta"),
    "platform": ("▓", "green"),
    "Grace": ("░", "cyan"),
}


def amount(minor_units: int, currency: str) -> str:
    """Returns the amount for people: `1,234.50 USD`, `1,001 JPY`."""
    if currency in _WHOLE:
        return f"{minor_units:,} {currency}"
    sign = "-" if minor_units < 0 else ""
    whole, part = divmod(abs(minor_units), 100)
    return f"{sign}{whole:,}.{part:02} {currency}"


def money(value: money_pb2.Money) -> str:
    return amount(value.minor_units, value.currency_code)


class Story:
    """Prints a walk as it happens."""

    def __init__(self) -> None:
        console = Console(highlight=False)
        # Without a terminal there is no width to keep to; a wide one would tear lines apart.
        width = min(console.width, _WIDTH) if console.is_terminal else _WIDTH
        self.console = Console(highlight=False, width=width)

    def introduce(self, title: str, text: str) -> None:
        self.console.print(Panel(Text(text), title=title, title_align="left", padding=(0, 1)))

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.print(Rule(Text(title, style="bold"), align="left", style="bright_black"))

    def step(self, who: str, what: str, *said: str, seconds: float | None = None) -> None:
        """Prints who does what, the answer part by part, and how long it took."""
        if self.console.width < _COLUMNS_FROM:
            self._step_on_lines(who, what, Text("  ".join(said)), seconds)
        else:
            room = self.console.width - _WHO_WIDTH - _WHAT_WIDTH - _TOOK_WIDTH - 3
            self._row(who, Text(what, style="bold"), Text(_folded(said, room)), seconds)

    def shares(self, parts: Mapping[str, int], currency: str) -> None:
        """Prints a bar and a legend of who holds which part of a payment."""
        held = {holder: part for holder, part in parts.items() if part > 0}
        whole = sum(held.values())
        bar, legend = Text(), Text()
        for holder, part in held.items():
            sign, colour = _HOLDERS[holder]
            bar.append(sign * max(1, round(part / whole * _BAR_WIDTH)), style=colour)
            legend.append("  " if legend else "")
            legend.append(f"{holder} {amount(part, currency)}", style=colour)
        bar.truncate(_BAR_WIDTH)
        if self.console.width < _COLUMNS_FROM:
            self.console.print(Text.assemble("  ", bar, " ", legend))
        else:
            self._row("", bar, legend, None)

    def _step_on_lines(self, who: str, what: str, said: Text, seconds: float | None) -> None:
        took = f"  {_took(seconds)}" if seconds is not None else ""
        style = _COLOURS.get(who, "bold")
        if who or what:
            self.console.print(
                Text.assemble((who, style), "  ", (what, "bold"), (took, "bright_black"))
            )
        self.console.print(Padding(said, (0, 0, 0, 2)))

    def _row(self, who: str, what: Text, said: Text, seconds: float | None) -> None:
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=_WHO_WIDTH, style=_COLOURS.get(who, "bold"))
        grid.add_column(width=_WHAT_WIDTH)
        grid.add_column(ratio=1)
        grid.add_column(width=_TOOK_WIDTH, justify="right", style="bright_black")
        grid.add_row(Text(who), what, said, Text(_took(seconds)))
        self.console.print(grid)

    def note(self, text: str) -> None:
        self.console.print(Text(text, style="bright_black"))

    def holds(self, fact: str) -> None:
        """Prints a fact that was checked and is as expected."""
        self.console.print(Text.assemble(("  ✓ ", "bold green"), fact))

    def fails(self, fact: str) -> None:
        self.console.print(Text.assemble(("  ✗ ", "bold red"), (fact, "bold red")))

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str | bool]]
    ) -> None:
        """Aligns columns whose names end in `>` to the right; True and False become marks."""
        self.console.print(Text(f"  {title}", style="italic"))
        table = Table(box=box.ROUNDED, border_style="bright_black", header_style="bright_black")
        for name in columns:
            right = name.endswith(">")
            table.add_column(name.removesuffix(">"), justify="right" if right else "left")
        for row in rows:
            table.add_row(*(_cell(value) for value in row))
        self.console.print(table)

    def verdict(self, text: str, *, good: bool) -> None:
        self.console.print()
        style = "bold green" if good else "bold red"
        self.console.print(
            Text(f"{'OK' if good else 'FAILED'}  {text}", style=style), soft_wrap=True
        )


def _folded(parts: Sequence[str], room: int) -> str:
    """Returns the parts side by side; a line breaks only between two parts."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}  {part}" if lines[-1] else part
        if len(joined) <= room or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(part)
    return "\n".join(lines)


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"


def _cell(value: str | bool) -> Text:
    if isinstance(value, str):
        return Text(value)
    return Text("✓", style="bold green") if value else Text("✗", style="bold red")
