"""A directory for the data of a stack that is gone when its block ends."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Yields where the stack keeps its data."""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    directory.chmod(0o711)  # PostgreSQL's user must be able to enter it
    try:
        yield directory / "data"
    finally:
        shutil.rmtree(directory, ignore_errors=True)
