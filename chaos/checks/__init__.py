"""Every promise as a small check of its own over the evidence; each names what it found.

Nothing here is taken from the service: edges, commission and hash chain are written out again, so
that a mistake there is not repeated here. A check yields violations and nothing else.
"""

from chaos.checks import accounts, books, disputes, effects, history, rest
from chaos.checks.registry import CHECKS, Violation, violations

#: Named so that their checks are known; in this order they are shown.
SUBJECTS = (effects, books, disputes, accounts, history, rest)

__all__ = ["CHECKS", "SUBJECTS", "Violation", "violations"]
