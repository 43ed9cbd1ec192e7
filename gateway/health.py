"""Whether the gateway and the core behind it can work, in JSON; the only answers with CORS."""

from aiohttp import hdrs, web

from gateway.payments_client import CoreHealth, PaymentsClient
from gateway.settings import Settings
from gateway.webhooks import CONNECT_PATH, PLATFORM_PATH

HEALTH_PATH = "/health"
LIVE_PATH = "/live"
TEST_PATH = "/api/v1/webhooks/test"

PREFLIGHT_SECONDS = 600


class HealthPages:
    """The three questions, and the browsers' question whether they may ask."""

    def __init__(self, core: PaymentsClient, settings: Settings) -> None:
        self._core = core
        self._allowed_origins = settings.allowed_origins

    async def health(self, request: web.Request) -> web.Response:
        """Whether webhooks would be taken now: this process and the core."""
        core = await self._core.health()
        serving = core is CoreHealth.SERVING
        return self._json(
            request,
            {"status": "ok" if serving else "degraded", "core": core.value},
            status=200 if serving else 503,
        )

    async def live(self, request: web.Request) -> web.Response:
        """Whether this process runs. Never asks the core: its absence is no reason to restart."""
        return self._json(request, {"status": "ok"})

    async def test(self, request: web.Request) -> web.Response:
        """That the webhook endpoints are reachable from where the caller is."""
        core = await self._core.health()
        return self._json(
            request,
            {
                "status": "ok",
                "message": "The webhook endpoints are reachable. They take POST from Stripe.",
                "endpoints": {"platform": PLATFORM_PATH, "connect": CONNECT_PATH},
                "core": core.value,
            },
        )

    async def preflight(self, request: web.Request) -> web.Response:
        """Answers a browser that asks before it calls; strangers get no permission."""
        response = web.Response(status=204)
        if self._allow(request, response):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = "GET, HEAD"
            response.headers[hdrs.ACCESS_CONTROL_MAX_AGE] = str(PREFLIGHT_SECONDS)
        response.headers[hdrs.ALLOW] = "GET, HEAD, OPTIONS"
        return response

    def _json(
        self, request: web.Request, body: dict[str, object], status: int = 200
    ) -> web.Response:
        response = web.json_response(body, status=status)
        self._allow(request, response)
        return response

    def _allow(self, request: web.Request, response: web.Response) -> bool:
        """Names the caller's origin if it is one of ours: never `*`, never credentials."""
        response.headers[hdrs.VARY] = hdrs.ORIGIN
        origin = request.headers.get(hdrs.ORIGIN)
        # Browsers write origins in one spelling, the one that settings have normalized to.
        if origin is None or origin not in self._allowed_origins:
            return False
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        return True
