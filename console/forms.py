"""Actions in three steps: a form, a page that says what will happen, and the call itself.

The key of the call is made with the form. Each form has a token of the session over what it says,
so the last step sends exactly what the operator has confirmed, and another site can send nothing.
"""

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from aiohttp import web
from google.protobuf.message import Message

from console.actions import ACTIONS, REASON_MAX, Action, Draft, Subject
from console.core import Refused
from console.refusals import explain
from console.shown import WrongAmount, money, typed, words
from console.site import SESSION, SITE, may
from console.subjects import SUBJECTS
from marketplace.payments.v1.money_pb2 import Money
from marketplace.payments.v1.operations_pb2 import WriteOffExpertDebtResponse
from sidecar.logs import get_logger

_FORM: Final = "form"
_CONFIRMED: Final = "confirmed"
#: Those that name what is done; they are in both forms.
_NAMES: Final = ("action", "id", "currency", "key")
#: What the second form confirms besides.
_CONTENT: Final = ("reason", "minor_units", "flag", "version", "warning", "back")


async def show(request: web.Request) -> web.StreamResponse:
    """Shows the form of an action."""
    site, session = request.app[SITE], request[SESSION]
    action = _action(request.query.get("action", ""))
    if not may(session, action.rpc):
        return site.refusal(request, _role_required(action))
    target = request.query.get("id", "")
    currency = request.query.get("currency", "").upper()
    subject = await SUBJECTS[action.subject](site.core(session), target)
    given = {
        "action": action.name,
        "id": target,
        "currency": subject.currency or currency,
        "key": f"console-{uuid.uuid4().hex}",
    }
    return _form(request, action, subject, given)


async def check(request: web.Request) -> web.StreamResponse:
    """Checks what was entered, and shows what would happen."""
    site, session = request.app[SITE], request[SESSION]
    said = await _read(request)
    action = _action(said.get("action", ""))
    given = {name: said.get(name, "") for name in _NAMES}
    if not session.has_shown(said.get("form_token", ""), (_FORM, *given.values())):
        return _not_ours(request)
    core = site.core(session)
    subject = await SUBJECTS[action.subject](core, given["id"])
    faults, draft = _draft(action, subject, given, said)
    if faults:
        return _form(request, action, subject, given, said, faults)
    lines: list[str] = []
    if action.has_preview:
        asked = action.build(draft)
        asked.validate_only = True
        try:
            answer = await core.ask(action.call(core), asked)
        except Refused as refused:
            if refused.reason == "UNAUTHENTICATED":
                raise
            return _form(request, action, subject, given, said, [], refused)
        lines = preview_lines(answer)
        if isinstance(answer, WriteOffExpertDebtResponse):
            # Not what the debt is when the button is pressed, but what is shown now.
            draft = replace(draft, amount=answer.written_off_amount)
    content = {
        "reason": draft.reason,
        "minor_units": str(draft.amount.minor_units) if draft.amount is not None else "",
        "flag": "yes" if draft.flag else "",
        "version": str(draft.version),
        "warning": draft.warning,
        "back": subject.back,
    }
    hidden = given | content
    hidden["form_token"] = session.form_token(_CONFIRMED, *given.values(), *content.values())
    return site.page(
        request,
        "confirm.html",
        title=action.title,
        action=action,
        subject=subject,
        draft=draft,
        lines=lines,
        hidden=hidden,
    )


async def do(request: web.Request) -> web.StreamResponse:
    """Calls the service once, and returns to where the operator came from."""
    site, session = request.app[SITE], request[SESSION]
    said = await _read(request)
    hidden = {name: said.get(name, "") for name in (*_NAMES, *_CONTENT)}
    covered = (_CONFIRMED, *hidden.values())
    if not session.has_shown(said.get("form_token", ""), covered):
        return _not_ours(request)
    action = _action(hidden["action"])
    core = site.core(session)
    draft = _confirmed(hidden)

    async def act() -> str:
        answer = await core.ask(action.call(core), action.build(draft))
        get_logger().info("done", rpc=action.rpc)
        return action.tell(answer)

    back = hidden["back"]
    try:
        sentence = await site.submissions.once(session, covered, act)
    except Refused as refused:
        if refused.reason == "UNAUTHENTICATED":
            raise
        get_logger().info("refused", rpc=action.rpc, code=refused.code, reason=refused.reason)
        again = hidden | {"form_token": said["form_token"]} if refused.may_repeat else None
        return site.refusal(request, refused, back=back, again=again)
    site.submissions.keep(session, draft.key, sentence)
    raise web.HTTPSeeOther(f"{back}{'&' if '?' in back else '?'}done={draft.key}")


def preview_lines(answer: Message) -> list[str]:
    """Returns what a call would do, a sentence a step."""
    if isinstance(answer, WriteOffExpertDebtResponse):
        lines = [
            f"{money(answer.written_off_amount)} is written off.",
            f"The expert then owes {money(answer.debt)}.",
        ]
        if answer.needs_approval:
            lines.append("A second person must approve it: until then nothing is written off.")
        return lines
    preview: Any = answer
    preview = preview.preview
    lines = [
        f"{words(leg, 'kind')}: {money(leg.amount)}"
        + (f" ({leg.transfer_id})" if leg.transfer_id else "")
        for leg in preview.legs
    ]
    after = preview.payment
    if after.payment_id:
        waits = words(after, "waiting_for").lower()
        lines.append(
            f"The payment is then: {words(after, 'state').lower()}"
            + (f", and waits for: {waits}." if waits else ".")
        )
    return lines


def _form(
    request: web.Request,
    action: Action,
    subject: Subject,
    given: Mapping[str, str],
    entered: Mapping[str, str] | None = None,
    faults: list[str] | None = None,
    refused: Refused | None = None,
) -> web.Response:
    session = request[SESSION]
    hidden = {**given, "form_token": session.form_token(_FORM, *given.values())}
    return request.app[SITE].page(
        request,
        "act.html",
        status=422 if faults or refused else 200,
        title=action.title,
        action=action,
        subject=subject,
        hidden=hidden,
        entered={name: (entered or {}).get(name, "") for name in ("amount", "reason", "flag")},
        faults=faults or [],
        refusal=explain(refused) if refused is not None else None,
        reason_max=REASON_MAX,
    )


def _draft(
    action: Action, subject: Subject, given: Mapping[str, str], said: Mapping[str, str]
) -> tuple[list[str], Draft]:
    faults: list[str] = []
    amount: Money | None = None
    entered = said.get("amount", "").strip()
    if action.takes_amount and entered:
        try:
            amount = typed(entered, given["currency"])
        except WrongAmount as wrong:
            faults.append(str(wrong))
    # A browser sends line breaks as two characters.
    reason = said.get("reason", "").replace("\r\n", "\n").strip() if action.reason else ""
    if action.reason and not reason:
        faults.append(f"“{action.reason}” must be filled in: it is kept in the audit trail.")
    if len(reason) > REASON_MAX:
        faults.append(f"“{action.reason}” can have at most {REASON_MAX} characters.")
    if action.name == "settle" and not entered:
        amount = subject.payable
    return faults, Draft(
        target=given["id"],
        key=given["key"],
        reason=reason,
        amount=amount,
        flag=bool(action.flag and said.get("flag")),
        currency=given["currency"],
        version=subject.version,
        warning=subject.warning,
    )


def _confirmed(hidden: Mapping[str, str]) -> Draft:
    """Returns what the second form confirms. Its token says that this is what was shown."""
    currency = hidden["currency"]
    amount = (
        Money(minor_units=int(hidden["minor_units"]), currency_code=currency)
        if hidden["minor_units"]
        else None
    )
    return Draft(
        target=hidden["id"],
        key=hidden["key"],
        reason=hidden["reason"],
        amount=amount,
        flag=bool(hidden["flag"]),
        currency=currency,
        version=int(hidden["version"]),
        warning=hidden["warning"],
    )


async def _read(request: web.Request) -> dict[str, str]:
    form = await request.post()
    said = {name: value for name, value in form.items() if isinstance(value, str)}
    if "reason" in said:
        said["reason"] = said["reason"].replace("\r\n", "\n")
    return said


def _action(name: str) -> Action:
    action = ACTIONS.get(name)
    if action is None:
        raise web.HTTPNotFound
    return action


def _not_ours(request: web.Request) -> web.Response:
    return request.app[SITE].problem(
        request,
        403,
        "This form is not of your session",
        "Nothing was done by it: a new sign-in or a new start of the console makes old forms void. "
        "If you have sent it before, look first at what came of it. Then open the form again.",
    )


def _role_required(action: Action) -> Refused:
    return Refused(
        "PERMISSION_DENIED",
        "ROLE_REQUIRED",
        f"{action.rpc.partition('/')[2]} needs another role than your token has.",
    )
