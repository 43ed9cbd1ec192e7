"""Every promise as a small check of its own over the evidence. Each names what it found.

Nothing here is imported from the service: edges, commission and hash chain are written again, so
that a mistake there is not repeated here. A check yields violations and nothing else.
"""

from chaos.checks import accounts, books, disputes, effects, funds, history, rest
from chaos.checks.registry import CHECKS, Violation, violations

#: Imported so that their checks are registered. The report has this order.
SUBJECTS = (effects, books, funds, disputes, accounts, history, rest)

__all__ = ["CHECKS", "SUBJECTS", "Violation", "violations"]
