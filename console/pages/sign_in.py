"""Signing in with a token that is pasted once, and signing out."""

from aiohttp import web

from console.core import Refused
from console.refusals import explain
from console.session import LONGEST_TOKEN, is_token
from console.site import SESSION, SITE
from console.subjects import own_page
from marketplace.payments.v1 import operations_pb2

_EXPIRED = "Your token does not count any more. Sign in with a new one."


async def show(request: web.Request) -> web.StreamResponse:
    """Shows the form for a token."""
    site = request.app[SITE]
    if site.settings.console_sign_in == "off":
        raise web.HTTPSeeOther("/")
    fault = _EXPIRED if request.query.get("why") == "expired" else ""
    sought = own_page(request.query.get("next", ""))
    return site.page(
        request, "sign_in.html", title="Sign in", fault=fault, remedy="", sought=sought
    )


async def submit(request: web.Request) -> web.StreamResponse:
    """Asks the service whether it takes the token, and keeps it in the cookie."""
    site = request.app[SITE]
    if site.settings.console_sign_in == "off":
        raise web.HTTPSeeOther("/")
    form = await request.post()
    entered = form.get("token", "")
    sought = own_page(str(form.get("next", "")))
    token = entered.strip() if isinstance(entered, str) else ""
    if not is_token(token):
        return _refused(
            request, sought, "This is not a token.", "Paste the token without anything else."
        )
    if len(token) > LONGEST_TOKEN:
        return _refused(
            request,
            sought,
            f"The token is longer than {LONGEST_TOKEN} characters, which a cookie cannot hold.",
            "Ask for a token with fewer claims.",
        )
    session = site.sessions.begin(token)
    core = site.core(session)
    try:
        # Every role that may read the console's pages may do this.
        asked = operations_pb2.ListOperationsRequest(page_size=1)
        await core.ask(core.stubs.operations.ListOperations, asked)
    except Refused as refused:
        explained = explain(refused)
        return _refused(request, sought, explained.sentence, explained.remedy)
    response = web.HTTPSeeOther(sought)
    site.sessions.write(response, session)
    raise response


async def leave(request: web.Request) -> web.StreamResponse:
    """Takes the cookie away."""
    site, session = request.app[SITE], request[SESSION]
    form = await request.post()
    if not session.has_shown(str(form.get("form_token", "")), ("sign-out",)):
        return site.problem(request, 403, "This form is not of your session", "Nothing was done.")
    response = web.HTTPSeeOther("/sign-in")
    site.sessions.end(response)
    raise response


def _refused(request: web.Request, sought: str, fault: str, remedy: str) -> web.Response:
    return request.app[SITE].page(
        request,
        "sign_in.html",
        status=401,
        title="Sign in",
        fault=fault,
        remedy=remedy,
        sought=sought,
    )
