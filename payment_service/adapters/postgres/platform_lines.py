"""Balance transactions of the platform that belong to no payment, with their postings."""

from __future__ import annotations

from typing import Final

from payment_service.adapters.postgres.rows import posted, posting_values
from payment_service.adapters.postgres.statements import TransactionStatements
from payment_service.domain.platform_lines import PlatformLine

#: The line and its postings in one statement, so that a line that is booked is booked completely.
_BOOK: Final = f"""
WITH recorded AS (
    INSERT INTO platform_lines (line_id, type, description, create_time, time)
    VALUES (:line_id, :type, :description, :create_time, :update_time)
    ON CONFLICT (line_id) DO NOTHING RETURNING line_id AS platform_line_id, 1 AS sequence
),
{posted("platform_line_id")}
SELECT count(*) AS count FROM recorded
"""


class PlatformLineWrites(TransactionStatements):
    """Books balance transactions of the platform."""

    def book_platform_line(self, line: PlatformLine) -> bool:
        """Books a line with its postings. Returns False if it is on the books already."""
        written = self._one(
            _BOOK,
            line_id=line.line_id,
            type=line.type,
            description=line.description,
            create_time=line.create_time,
            update_time=self.now,
            **posting_values(line.postings),
        )
        return bool(written["count"])
