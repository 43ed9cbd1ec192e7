"""What every page needs: the settings, the service, the sessions and the templates."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from console.actions import ACTIONS
from console.core import Core, Refused, Stubs, roles_of
from console.refusals import explain
from console.session import Session, Sessions
from console.settings import Settings
from console.shown import FILTERS, words
from console.subjects import link
from marketplace.payments.v1.operations_pb2 import Discrepancy, DiscrepancyKind

_TEMPLATES: Final = Path(__file__).parent / "templates"
_REMEMBERED: Final = 1000
_RPCS_WITH_A_BUTTON: Final = {action.rpc: roles_of(action.rpc) for action in ACTIONS.values()}

SESSION: Final = web.RequestKey("session", Session)


class Submissions:
    """Makes a form that is sent twice act once, and keeps the sentence of what came of it.

    RPCs with an idempotency key do so anyway, after a restart too. This is for a double click on
    the others, whose second call would be refused although the first one worked.
    """

    def __init__(self) -> None:
        self._tasks: OrderedDict[Sequence[str], asyncio.Task[str]] = OrderedDict()
        self._outcomes: OrderedDict[Sequence[str], str] = OrderedDict()

    async def once(
        self, session: Session, covered: tuple[str, ...], act: Callable[[], Awaitable[str]]
    ) -> str:
        """Returns the sentence of the one call, or raises its refusal."""
        name = (session.nonce, *covered)
        task = self._tasks.get(name)
        if task is None or _may_be_tried_again(task):
            task = asyncio.ensure_future(_run(act))
            self._tasks[name] = task
            if len(self._tasks) > _REMEMBERED:
                self._tasks.popitem(last=False)
        return await asyncio.shield(task)

    def keep(self, session: Session, key: str, sentence: str) -> None:
        """Keeps what the page after the form says."""
        self._outcomes[session.nonce, key] = sentence
        if len(self._outcomes) > _REMEMBERED:
            self._outcomes.popitem(last=False)

    def outcome(self, session: Session, key: str) -> str:
        """Returns what was kept for this session, or nothing."""
        return self._outcomes.get((session.nonce, key), "")


async def _run(act: Callable[[], Awaitable[str]]) -> str:
    return await act()


def _may_be_tried_again(task: asyncio.Task[str]) -> bool:
    if not task.done():
        return False
    error = None if task.cancelled() else task.exception()
    return task.cancelled() or (
        error is not None and (not isinstance(error, Refused) or error.may_repeat)
    )


class Site:
    """The console, apart from its routes."""

    def __init__(self, settings: Settings, stubs: Stubs) -> None:
        self.settings = settings
        self.sessions = Sessions(settings)
        self.submissions = Submissions()
        self._stubs = stubs
        self._templates = Environment(
            loader=FileSystemLoader(_TEMPLATES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)
        self._templates.globals.update(
            words=words, link=link, runbook=self.runbook, discrepancy_page=discrepancy_page
        )

    def core(self, session: Session) -> Core:
        """Returns the service for calls of this operator."""
        return Core(self._stubs, session.token)

    def runbook(self, page: str) -> str:
        """Returns the address of a page of the runbook, or nothing if it is not known."""
        base = self.settings.console_runbook_url
        return f"{base.rstrip('/')}/{page}" if base else ""

    def page(
        self, request: web.Request, template: str, *, status: int = 200, **content: Any
    ) -> web.Response:
        """Returns a page."""
        session = request.get(SESSION)
        outcome = (
            self.submissions.outcome(session, request.query.get("done", "")) if session else ""
        )
        text = self._templates.get_template(template).render(
            session=session,
            here=request.path,
            outcome=outcome,
            may=lambda rpc: may(session, rpc),
            sign_out_token=session.form_token("sign-out") if session else "",
            **content,
        )
        return web.Response(text=text, content_type="text/html", charset="utf-8", status=status)

    def refusal(self, request: web.Request, refused: Refused, **content: Any) -> web.Response:
        """Returns the page that explains a refusal of the service."""
        status = {"NOT_FOUND": 404, "PERMISSION_DENIED": 403, "INVALID_ARGUMENT": 422}
        shown = {"back": "/", "again": None, **content}
        return self.page(
            request,
            "refused.html",
            status=503 if refused.may_repeat else status.get(refused.code, 409),
            title="The service refused this",
            refusal=explain(refused),
            **shown,
        )

    def problem(
        self, request: web.Request, status: int, title: str, sentence: str, back: str = "/"
    ) -> web.Response:
        """Returns a page about a fault of the request itself."""
        return self.page(
            request, "problem.html", status=status, title=title, sentence=sentence, back=back
        )


def discrepancy_page(found: Discrepancy) -> str:
    """Returns the page of the runbook about a discrepancy."""
    if found.kind == DiscrepancyKind.DISCREPANCY_KIND_INVARIANT_VIOLATED:
        return "discrepancies/invariant.md"
    if found.kind not in DiscrepancyKind.values():
        return "discrepancies.md"
    name = DiscrepancyKind.Name(found.kind).removeprefix("DISCREPANCY_KIND_").lower()
    return f"discrepancies/{name}.md"


SITE: Final = web.AppKey("site", Site)


def may(session: Session | None, rpc: str) -> bool:
    """Returns whether the operator's token names a role that may call this RPC."""
    allowed = _RPCS_WITH_A_BUTTON.get(rpc) or roles_of(rpc)
    return session is not None and bool(session.roles & allowed)
