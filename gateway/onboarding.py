"""The browser's landing pages of onboarding: Stripe sends the expert here.

`return` does not mean "done" (Stripe's rule), so it asks where things stand; `refresh` means that
a link was used up or has expired, so it mints a new one. The token in the address is all that the
gateway knows of the person; it gives access to nothing but these two pages.
"""

import re

from aiohttp import hdrs, web

from gateway.connections import ConnectionGuard
from gateway.logs import note
from gateway.metrics import Metrics
from gateway.pages import (
    CONTENT_SECURITY_POLICY,
    Asked,
    invalid_link_page,
    standing_page,
    unavailable_page,
)
from gateway.payments_client import (
    CoreError,
    CoreNotFound,
    CoreRefused,
    CoreUnavailable,
    PaymentsClient,
)
from gateway.settings import Settings
from gateway.urls import may_go_onward, may_go_to_onboarding
from marketplace.payments.v1 import experts_pb2, onboarding_pb2

PATH_PREFIX = "/onboarding/"
RETURN_PATH = "/onboarding/return"
REFRESH_PATH = "/onboarding/refresh"
RETRY_AFTER_SECONDS = 10

_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,128}", re.ASCII)


class Onboarding:
    """The two pages."""

    def __init__(
        self,
        core: PaymentsClient,
        settings: Settings,
        metrics: Metrics,
        connections: ConnectionGuard,
    ) -> None:
        self._core = core
        self._metrics = metrics
        self._connections = connections
        self._allowed_origins = settings.allowed_origins
        self._max_calls = settings.gateway_max_page_calls
        self._calls = 0

    async def return_page(self, request: web.Request) -> web.Response:
        """Says where things stand, or leads on to the app when there is nothing left to do."""
        return await self._answer(request, "return")

    async def refresh_page(self, request: web.Request) -> web.Response:
        """Leads to a new onboarding link."""
        return await self._answer(request, "refresh")

    async def _answer(self, request: web.Request, page: str) -> web.Response:
        tokens = request.query.getall("token", [])
        if len(tokens) != 1 or _TOKEN.fullmatch(tokens[0]) is None:
            return self._finish(request, page, "invalid_link", invalid_link())
        token = tokens[0]
        if self._calls >= self._max_calls:
            return self._finish(request, page, "busy", unavailable(f"{page}?token={token}"))
        self._calls += 1
        try:
            with self._connections.protecting(request):
                if page == "return":
                    outcome, response = await self._stand(token)
                else:
                    outcome, response = await self._renew(request, token)
        except (CoreNotFound, CoreRefused):
            outcome, response = "unknown_link", invalid_link()
        except CoreError as error:
            note(request, core_code=error.code)
            outcome, response = "core_unavailable", unavailable(f"{page}?token={token}")
        finally:
            self._calls -= 1
        return self._finish(request, page, outcome, response)

    async def _stand(self, token: str) -> tuple[str, web.Response]:
        standing = await self._core.get_onboarding_status(token)
        # The core has checked this address when it was given; origins may have been withdrawn
        # since, and a redirect that strangers can reach is worth a second look.
        onward = standing.continue_url
        if not may_go_onward(onward, self._allowed_origins):
            onward = ""
        asked = asked_of(standing)
        if standing.status == experts_pb2.EXPERT_STATUS_READY and onward and not asked:
            return "sent_onward", see_other(onward)
        return "shown", html(standing_page(standing.status, asked, token, onward))

    async def _renew(self, request: web.Request, token: str) -> tuple[str, web.Response]:
        if request.method == hdrs.METH_HEAD:
            # Mail scanners and link previews open links before a person does: no link for them.
            return "looked", html("")
        url = await self._core.create_onboarding_link(token)
        if not url:
            # Nothing is left to fill in (or no longer may be): the other page says why.
            return "nothing_to_renew", see_other(f"return?token={token}")
        if not may_go_to_onboarding(url):
            raise CoreUnavailable("UNSAFE_ONBOARDING_URL")
        return "sent_to_stripe", see_other(url)

    def _finish(
        self, request: web.Request, page: str, outcome: str, response: web.Response
    ) -> web.Response:
        note(request, outcome=outcome)
        self._metrics.pages.labels(page, outcome).inc()
        return response


def asked_of(standing: onboarding_pb2.GetOnboardingStatusResponse) -> list[Asked]:
    """What Stripe asks for, now and later; empty if for nothing."""
    now = Asked(
        standing.requirements_due_count,
        standing.requirements_due_time.ToDatetime()
        if standing.HasField("requirements_due_time")
        else None,
    )
    later = Asked(
        standing.future_requirements_count,
        standing.future_requirements_due_time.ToDatetime()
        if standing.HasField("future_requirements_due_time")
        else None,
        later=True,
    )
    return [asked for asked in (now, later) if asked.count > 0]


def html(text: str, status: int = 200) -> web.Response:
    """A page under the policy that lets in its own style and nothing else."""
    return web.Response(
        text=text,
        status=status,
        content_type="text/html",
        charset="utf-8",
        headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY},
    )


def see_other(url: str) -> web.Response:
    """A redirect; `url` has been checked by the caller."""
    return web.Response(status=303, headers={hdrs.LOCATION: url})


def invalid_link() -> web.Response:
    """404, for every link that leads nowhere."""
    return html(invalid_link_page(), 404)


def unavailable(retry_link: str = "") -> web.Response:
    """503, come again."""
    response = html(unavailable_page(retry_link), 503)
    response.headers[hdrs.RETRY_AFTER] = str(RETRY_AFTER_SECONDS)
    return response
