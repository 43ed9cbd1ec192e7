"""Stripe behind the domain's port: one module for each of Stripe's resources."""

import sys
from typing import Any

# When Stripe's SDK is imported, it imports `requests` as well if it can, for callers who give it no
# HTTP client. We give it one, and `requests` takes a tenth of the time that a start takes.
if "requests" not in sys.modules:
    _modules: dict[str, Any] = sys.modules  # A None says that a module cannot be imported.
    _modules["requests"] = None
    try:
        import stripe  # noqa: F401
    finally:
        del _modules["requests"]
