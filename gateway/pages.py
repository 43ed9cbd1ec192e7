"""The HTML of the onboarding pages: whole in itself, no scripts, nothing loaded from another site.

Links among the pages are relative, so that they hold under whatever prefix a proxy has put in
front of the gateway.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape

from marketplace.payments.v1 import experts_pb2

_STYLE = """
:root { color-scheme: light dark; --ground: #f5f6f8; --card: #fff; --text: #1c2330;
  --soft: #566074; --line: #dfe3ea; --action: #3b4fd8; --on-action: #fff;
  --good: #14704a; --wait: #8a5a00; --bad: #a8322a; }
@media (prefers-color-scheme: dark) { :root { --ground: #12151b; --card: #1b2029;
  --text: #e8ebf1; --soft: #a3adbf; --line: #323a48; --action: #8d9bff; --on-action: #10131a;
  --good: #5fd3a0; --wait: #f0bd5b; --bad: #ff938a; } }
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.25rem;
  background: var(--ground); color: var(--text);
  font: 1.0625rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { width: 100%; max-width: 30rem; padding: 2rem; background: var(--card);
  border: 1px solid var(--line); border-top: 4px solid var(--tone); border-radius: .75rem; }
.good { --tone: var(--good); } .wait { --tone: var(--wait); } .bad { --tone: var(--bad); }
.state { margin: 0; color: var(--tone); font-size: .875rem; font-weight: 600;
  letter-spacing: .02em; }
h1 { margin: .25rem 0 1rem; font-size: 1.5rem; line-height: 1.25; text-wrap: balance; }
p { margin: 0 0 1rem; } .soft { color: var(--soft); font-size: .9375rem; }
.actions { display: flex; flex-direction: column; gap: .75rem; margin: 1.5rem 0 0; padding: 0;
  list-style: none; }
a { color: var(--action); text-underline-offset: .2em; }
:focus-visible { outline: 3px solid var(--action); outline-offset: 3px; border-radius: .25rem; }
form { margin: 0; } button { width: 100%; border: 0; font: inherit; cursor: pointer; }
.first { display: block; padding: .8rem 1rem; border-radius: .5rem; text-align: center;
  text-decoration: none; font-weight: 600; background: var(--action); color: var(--on-action); }
.other { display: block; padding: .35rem 0; text-align: center; }
"""

_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: Browsers hold a form's redirect against this, too: the button leads over the gateway to Stripe.
_FORM_TARGETS = "'self' https://*.stripe.com"
_FORM_TARGETS_SIMULATED = f"{_FORM_TARGETS} http://127.0.0.1:* http://localhost:*"


def content_security_policy(*, simulated: bool) -> str:
    """The policy that lets in the pages' own style, and lets their button lead to Stripe."""
    targets = _FORM_TARGETS_SIMULATED if simulated else _FORM_TARGETS
    return (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
        f"base-uri 'none'; form-action {targets}; frame-ancestors 'none'"
    )


@dataclass(frozen=True)
class Action:
    """What a person can do on a page: follow a link or, if it `creates` something, press."""

    label: str
    address: str
    creates: bool = False

    def html(self, *, first: bool) -> str:
        style = "first" if first else "other"
        address, label = escape(self.address), escape(self.label)
        if self.creates:
            return (
                f'<form method="post" action="{address}">'
                f'<button class="{style}">{label}</button></form>'
            )
        return f'<a class="{style}" href="{address}">{label}</a>'


@dataclass(frozen=True)
class Standing:
    """How the page explains a status to the expert."""

    tone: str
    state: str
    title: str
    text: str
    may_continue: bool
    """Whether Stripe's form has anything to offer in this status."""


@dataclass(frozen=True)
class Asked:
    """How many things Stripe asks for, and by when; `later` says that they are only announced."""

    count: int
    by: datetime | None = None
    later: bool = False

    def sentence(self) -> str:
        things = "one thing" if self.count == 1 else f"{self.count} things"
        day = f"{self.by.day} {self.by:%B %Y}" if self.by else ""
        if self.later:
            when = f" by {day}" if day else " later"
            return f"Stripe will ask for {things}{when}. Without it your payouts stop then."
        return f"Stripe still asks for {things}{f', by {day}' if day else ''}."


_Status = experts_pb2.ExpertStatus

STANDINGS: dict[experts_pb2.ExpertStatus.ValueType, Standing] = {
    _Status.EXPERT_STATUS_CREATING: Standing(
        "wait",
        "In preparation",
        "Your account is being prepared",
        "This usually takes less than a minute. Look again in a moment.",
        may_continue=False,
    ),
    _Status.EXPERT_STATUS_ONBOARDING: Standing(
        "wait",
        "Not finished",
        "Your details are not complete yet",
        "What you have entered so far is kept. Continue where you left off, whenever it suits you.",
        may_continue=True,
    ),
    _Status.EXPERT_STATUS_PENDING_VERIFICATION: Standing(
        "wait",
        "Being checked",
        "Stripe is checking your details",
        "You need not do anything now. It often takes minutes, sometimes a few working days.",
        may_continue=True,
    ),
    _Status.EXPERT_STATUS_READY: Standing(
        "good",
        "Ready",
        "You can be paid",
        "Your account is set up. You may close this page.",
        may_continue=True,
    ),
    _Status.EXPERT_STATUS_RESTRICTED: Standing(
        "bad",
        "Something is missing",
        "Stripe needs something more from you",
        "Until then you cannot be paid. Continue to see what is asked for.",
        may_continue=True,
    ),
    _Status.EXPERT_STATUS_REJECTED: Standing(
        "bad",
        "Turned down",
        "Stripe has turned this account down",
        "It cannot be used to pay you. If you think that this is a mistake, write to our support.",
        may_continue=False,
    ),
    _Status.EXPERT_STATUS_DEAUTHORIZED: Standing(
        "bad",
        "Disconnected",
        "Your account is disconnected",
        "It was disconnected from us or closed, so it cannot be used to pay you. "
        "If you want to be paid again, write to our support.",
        may_continue=False,
    ),
}

# RESTRICTED with nothing due: a link into Stripe's form would only lead back here.
_PAUSED = Standing(
    "bad",
    "Paused",
    "Stripe has paused this account",
    "Stripe asks nothing of you. You cannot be paid until the pause ends. "
    "If it takes long, write to our support.",
    may_continue=False,
)

# For a status that a newer core knows and this gateway does not.
_UNKNOWN = Standing(
    "wait",
    "In progress",
    "Your account is in progress",
    "Look again in a little while.",
    may_continue=True,
)

# In this the form itself is what is missing, whatever the number of things asked for.
_ALWAYS_CONTINUE = {_Status.EXPERT_STATUS_ONBOARDING}
# In these nothing changes by looking again.
_SETTLED = {
    _Status.EXPERT_STATUS_READY,
    _Status.EXPERT_STATUS_REJECTED,
    _Status.EXPERT_STATUS_DEAUTHORIZED,
}


def standing_page(
    status: experts_pb2.ExpertStatus.ValueType,
    asked: Sequence[Asked],
    token: str,
    continue_url: str,
    *,
    link_is_used: bool = False,
) -> str:
    """Where an expert stands. `continue_url` has been checked, or is empty.

    If Stripe sent the expert back because a link is used or expired, a new one is offered wherever
    Stripe's form has anything to show.
    """
    standing = STANDINGS.get(status, _UNKNOWN)
    if status == _Status.EXPERT_STATUS_RESTRICTED and not any(not one.later for one in asked):
        standing = _PAUSED
    paragraphs = [f"<p>{escape(standing.text)}</p>"]
    asks = standing.may_continue and bool(asked)
    if asks:
        paragraphs += [f'<p class="soft">{escape(one.sentence())}</p>' for one in asked]
    actions: list[Action] = []
    if asks or status in _ALWAYS_CONTINUE or (link_is_used and standing.may_continue):
        actions.append(Action("Continue with Stripe", f"refresh?token={token}", creates=True))
    if continue_url:
        actions.append(Action("Back to the app", continue_url))
    if status not in _SETTLED:
        actions.append(Action("Look again", f"return?token={token}"))
    return _page(standing.tone, standing.state, standing.title, paragraphs, actions)


def invalid_link_page() -> str:
    """For a token that is unknown, expired or malformed; the page is the same for all."""
    return _page(
        "bad",
        "Link not valid",
        "This link is no longer valid",
        ["<p>Links like this one expire. Ask for a new one in the app.</p>"],
        [],
    )


def unavailable_page(retry_link: str) -> str:
    """For now nothing can be said; nothing is lost either."""
    return _page(
        "wait",
        "Try again shortly",
        "We cannot reach your account just now",
        ["<p>Nothing that you have entered is lost. Please try again in a minute.</p>"],
        [Action("Try again", retry_link)] if retry_link else [],
    )


def _page(tone: str, state: str, title: str, paragraphs: list[str], choices: list[Action]) -> str:
    items = [f"<li>{choice.html(first=number == 0)}</li>" for number, choice in enumerate(choices)]
    actions = f'<ul class="actions">{"".join(items)}</ul>' if items else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="robots" content="noindex">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f'<body>\n<main class="{tone}">\n<p class="state">{escape(state)}</p>\n'
        f"<h1>{escape(title)}</h1>\n{''.join(paragraphs)}\n{actions}\n</main>\n</body>\n</html>\n"
    )
