"""The browser's landing pages of onboarding: Stripe sends the expert here.

`return` does not mean "done" (Stripe's rule), so it asks where things stand. `refresh` means that
a link was used up or has expired. Stripe would have it redirect to a new one at once; but mail
scanners, chats and browsers follow addresses before a person does, and would make and use up links.
So GET only looks, and a new link is made by POST, from the button on the page (decision 65).

The token in the address is all that the gateway knows of the person; it gives access to nothing but
these pages.
"""

import re

from aiohttp import hdrs, web

from gateway.connections import ConnectionGuard
from gateway.logs import note
from gateway.metrics import Metrics
from gateway.pace import Pace
from gateway.pages import (
    Asked,
    content_security_policy,
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
from gateway.urls import may_go_onward, may_go_to_onboarding, parse_web_address
from marketplace.payments.v1 import experts_pb2, onboarding_pb2

PATH_PREFIX = "/onboarding/"
RETURN_PATH = "/onboarding/return"
REFRESH_PATH = "/onboarding/refresh"
RETRY_AFTER_SECONDS = 10

_TOKEN = re.compile(r"[A-Za-z0-9_-]{20,128}", re.ASCII)


class Onboarding:
    """The two pages and their button."""

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
        public = parse_web_address(settings.gateway_public_url)
        self._own_origin = public.origin if public is not None else ""
        self._simulated = settings.environment != "production"
        self._max_calls = settings.gateway_max_page_calls
        self._calls = 0
        self._pace = Pace(settings.gateway_page_calls_per_minute)

    async def return_page(self, request: web.Request) -> web.Response:
        """Says where things stand, or leads on to the app when there is nothing left to do."""
        return await self._answer(request, "return")

    async def refresh_page(self, request: web.Request) -> web.Response:
        """Says where things stand, and offers a new link to Stripe."""
        return await self._answer(request, "refresh")

    async def renew(self, request: web.Request) -> web.Response:
        """Leads to a new onboarding link: what the button of the pages does."""
        return await self._answer(request, "renew")

    async def _answer(self, request: web.Request, page: str) -> web.Response:
        tokens = request.query.getall("token", [])
        if len(tokens) != 1 or _TOKEN.fullmatch(tokens[0]) is None:
            return self._finish(request, page, "invalid_link", invalid_link())
        token = tokens[0]
        here = f"{'return' if page == 'return' else 'refresh'}?token={token}"
        if page == "renew" and not self._is_from_our_page(request):
            return self._finish(request, page, "foreign", see_other(here))
        if self._calls >= self._max_calls:
            return self._finish(request, page, "busy", unavailable(here))
        if not self._pace.admits(token):
            return self._finish(request, page, "too_often", unavailable(here))
        self._calls += 1
        try:
            with self._connections.protecting(request):
                if page == "renew":
                    outcome, response = await self._renew(token)
                else:
                    outcome, response = await self._stand(token, page)
        except (CoreNotFound, CoreRefused):
            outcome, response = "unknown_link", invalid_link()
        except CoreError as error:
            self._pace.count(token)
            note(request, core_code=error.code)
            outcome, response = "core_unavailable", unavailable(here)
        else:
            self._pace.count(token)
        finally:
            self._calls -= 1
        return self._finish(request, page, outcome, response)

    def _is_from_our_page(self, request: web.Request) -> bool:
        """Whether no other site has sent this form.

        Browsers say it in Sec-Fetch-Site. Those of before 2023, and all on plain http, have only
        Origin, and under our referrer policy it is `null`: that passes, since no cookie of ours
        lends its bearer any right. Only the token does, which the other site cannot know.
        """
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            return site == "same-origin"
        return request.headers.get(hdrs.ORIGIN, "null") in ("null", self._own_origin)

    async def _stand(self, token: str, page: str) -> tuple[str, web.Response]:
        standing = await self._core.get_onboarding_status(token)
        # The core has checked this address when it was given; origins may have been withdrawn
        # since, and a redirect that strangers can reach is worth a second look.
        onward = standing.continue_url
        if not may_go_onward(onward, self._allowed_origins):
            onward = ""
        asked = asked_of(standing)
        used = page == "refresh"
        ready = standing.status == experts_pb2.EXPERT_STATUS_READY
        if ready and onward and not asked and not used:
            return "sent_onward", see_other(onward)
        text = standing_page(standing.status, asked, token, onward, link_is_used=used)
        policy = content_security_policy(simulated=self._simulated)
        return "shown", html(text, policy=policy)

    async def _renew(self, token: str) -> tuple[str, web.Response]:
        url = await self._core.create_onboarding_link(token)
        if not url:
            # Nothing is left to fill in (or no longer may be): the other page says why.
            return "nothing_to_renew", see_other(f"return?token={token}")
        if not may_go_to_onboarding(url, simulated=self._simulated):
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


def html(
    text: str, status: int = 200, policy: str = content_security_policy(simulated=False)
) -> web.Response:
    """A page under the policy that lets in its own style and nothing else."""
    return web.Response(
        text=text,
        status=status,
        content_type="text/html",
        charset="utf-8",
        headers={"Content-Security-Policy": policy},
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
