"""A person's browser, as far as pages without scripts need one: links, forms, redirects."""

import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from html import unescape
from typing import IO

_SECONDS = 20


@dataclass(frozen=True)
class Page:
    url: str
    status: int
    headers: Message
    text: str

    @property
    def location(self) -> str:
        """Where it redirects to, as a whole address."""
        return urllib.parse.urljoin(self.url, str(self.headers["Location"] or ""))

    def link(self, title: str) -> str:
        """The address behind a link with these words."""
        found = re.search(rf'<a [^>]*href="([^"]+)"[^>]*>{re.escape(title)}</a>', self.text)
        assert found is not None, f"no link {title!r} on {self.url}"
        return urllib.parse.urljoin(self.url, unescape(found[1]))

    def press(self, title: str) -> "Page":
        """What the form behind a button with these words leads to, as a browser sends it."""
        found = re.search(
            rf'<form method="post" action="([^"]+)"><button[^>]*>{re.escape(title)}</button>',
            self.text,
        )
        assert found is not None, f"no button {title!r} on {self.url}"
        address = urllib.parse.urljoin(self.url, unescape(found[1]))
        return post(address, b"", {"Sec-Fetch-Site": "same-origin", "Origin": "null"})


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: object, fp: IO[bytes], code: int, msg: str, headers: object, newurl: str
    ) -> None:
        return None


_STAYING = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)


def look(url: str, headers: Mapping[str, str] | None = None, method: str = "GET") -> Page:
    """GET without following redirects."""
    return _open(method, url, None, headers or {})


def submit(url: str, **form: str) -> Page:
    """POST a form without following redirects."""
    return _open("POST", url, urllib.parse.urlencode(form).encode(), {})


def post(url: str, body: bytes, headers: Mapping[str, str]) -> Page:
    return _open("POST", url, body, headers)


def _open(method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> Page:
    assert url.startswith(("http://", "https://")), url
    request = urllib.request.Request(  # noqa: S310 - checked above
        url, data=body, headers=dict(headers), method=method
    )
    try:
        with _STAYING.open(request, timeout=_SECONDS) as answer:
            return Page(url, answer.status, answer.headers, answer.read().decode())
    except urllib.error.HTTPError as answer:
        with answer:
            text = answer.read().decode()
            return Page(url, answer.code, answer.headers, text)
