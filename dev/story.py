"""How a walk is told: chapters, one line a step, tables; plain where there is no terminal."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from marketplace.payments.v1 import money_pb2

_WIDTH = 110
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


def amount(minor_units: int, currency: str) -> str:
    """For people: `1,234.50 USD`, `1,001 JPY`."""
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
        """Who does what, what came back part by part, and how long it took."""
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=_WHO_WIDTH, style=_COLOURS.get(who, "bold"))
        grid.add_column(width=_WHAT_WIDTH, style="bold")
        grid.add_column(ratio=1)
        grid.add_column(width=_TOOK_WIDTH, justify="right", style="bright_black")
        room = self.console.width - _WHO_WIDTH - _WHAT_WIDTH - _TOOK_WIDTH - 3
        took = "" if seconds is None else f"{seconds * 1000:.0f} ms"
        grid.add_row(Text(who), Text(what), Text(_folded(said, room)), Text(took))
        self.console.print(grid)

    def note(self, text: str) -> None:
        self.console.print(Text(text, style="bright_black"))

    def holds(self, fact: str) -> None:
        """Something that was checked and is as it must be."""
        self.console.print(Text.assemble(("  ✓ ", "bold green"), fact))

    def fails(self, fact: str) -> None:
        self.console.print(Text.assemble(("  ✗ ", "bold red"), (fact, "bold red")))

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str | bool]]
    ) -> None:
        """Columns whose names end in `>` are set to the right; True and False become marks."""
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
        self.console.print(Text(f"{'✓' if good else '✗'} {text}", style=style))


def _folded(parts: Sequence[str], room: int) -> str:
    """Parts side by side, broken between two of them where the room ends."""
    lines = [""]
    for part in parts:
        joined = f"{lines[-1]}  {part}" if lines[-1] else part
        if len(joined) <= room or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(part)
    return "\n".join(lines)


def _cell(value: str | bool) -> Text:
    if isinstance(value, str):
        return Text(value)
    return Text("✓", style="bold green") if value else Text("✗", style="bold red")
