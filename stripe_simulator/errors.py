"""Stripe's error objects.

`stored` says whether the answer is kept under the request's idempotency key: everything that an
endpoint answers once it runs is (4xx included), what the layers before it answer is not
(Stripe's documentation of idempotent requests). `keeps_changes` marks a refusal that nevertheless
leaves something behind, such as the failed charge of a declined card.
"""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer with an error object; `kind` is the error's `type`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        stored: bool = True,
        keeps_changes: bool = False,
        headers: dict[str, str] | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = kind
        self.code = code
        self.param = param
        self.stored = stored
        self.keeps_changes = keeps_changes
        self.headers = headers or {}
        self.details = details

    def body(self, request_log_url: str) -> dict[str, Any]:
        """The JSON body; absent fields are left out, as Stripe leaves them out."""
        error: dict[str, Any] = {name: v for name, v in self.details.items() if v is not None}
        if self.code is not None:
            error["code"] = self.code
            error["doc_url"] = documentation_url(self.code)
        error["message"] = self.message
        if self.param is not None:
            error["param"] = self.param
        error["request_log_url"] = request_log_url
        error["type"] = self.type
        return {"error": dict(sorted(error.items()))}


def documentation_url(code: str) -> str:
    return f"https://stripe.com/docs/error-codes/{code.replace('_', '-')}"


def parameter_unknown(name: str) -> ApiError:
    return ApiError(
        400,
        f"Received unknown parameter: {name}",
        code="parameter_unknown",
        param=name,
        stored=False,
    )


def parameter_missing(name: str) -> ApiError:
    return ApiError(
        400,
        f"Missing required param: {name}.",
        code="parameter_missing",
        param=name,
        stored=False,
    )


def parameter_empty(name: str) -> ApiError:
    return ApiError(
        400,
        f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset "
        f"a parameter; however '{name}' cannot be unset. You should remove '{name}' from your "
        "request or supply a non-empty value.",
        code="parameter_invalid_empty",
        param=name,
        stored=False,
    )


def invalid_parameter(name: str, message: str, code: str | None = None) -> ApiError:
    """A value of the wrong form, found before the endpoint runs."""
    return ApiError(400, message, code=code, param=name, stored=False)


def refused(
    message: str, *, code: str | None = None, param: str | None = None, **details: Any
) -> ApiError:
    """The endpoint ran and will not do it."""
    return ApiError(400, message, code=code, param=param, **details)


def no_such(kind: str, id_: str, param: str, *, in_path: bool = False) -> ApiError:
    """404 for the object in the URL, 400 for one that a parameter names."""
    return ApiError(
        404 if in_path else 400,
        f"No such {kind}: '{id_}'",
        code="resource_missing",
        param=param,
    )


def no_access(key: str, account: str) -> ApiError:
    """Stripe does not tell an unknown account from one that has revoked our access."""
    return ApiError(
        403,
        f"The provided key '{masked(key)}' does not have access to account '{account}' (or that "
        "account does not exist). Application access may have been revoked.",
        code="account_invalid",
        stored=False,
    )


def unauthenticated(message: str, code: str | None = None) -> ApiError:
    return ApiError(
        401,
        message,
        code=code,
        stored=False,
        headers={"WWW-Authenticate": 'Basic realm="Stripe"'},
    )


def not_simulated(message: str, param: str | None = None) -> ApiError:
    """Something Stripe would do and we do not: said aloud rather than silently ignored."""
    return ApiError(400, f"stripe_simulator: {message}", param=param, stored=False)


def masked(key: str) -> str:
    """A key as Stripe shows it: the prefix, stars, the last four characters."""
    head = key[:8]
    return f"{head}{'*' * max(0, len(key) - 12)}{key[-4:]}" if len(key) > 12 else key
