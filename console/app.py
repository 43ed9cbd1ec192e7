"""Routes, and the life of the listener."""

import asyncio
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from console import forms, guard
from console.core import Stubs, open_core_channel
from console.pages import balances, experts, payment, search, sign_in, waiting
from console.settings import Settings
from console.site import SITE, Site
from sidecar.logs import get_logger
from sidecar.settings import RefusedSettings

_ASSETS: Final = Path(__file__).parent / "assets"
_MAX_FORM_BYTES: Final = 32_768
_SHUTDOWN_SECONDS: Final = 10


def create_app(site: Site) -> web.Application:
    """Returns the application with all its routes."""
    app = web.Application(
        middlewares=[guard.observe, guard.answer_faults, guard.admit],
        client_max_size=_MAX_FORM_BYTES,
    )
    app[SITE] = site
    app.on_response_prepare.append(guard.set_headers)
    app.router.add_get("/", search.show)
    app.router.add_get("/payment", payment.show)
    app.router.add_get("/waiting", waiting.show)
    app.router.add_get("/experts", experts.show_all)
    app.router.add_get("/expert", experts.show)
    app.router.add_get("/balances", balances.show)
    app.router.add_get(guard.SIGN_IN, sign_in.show)
    app.router.add_post(guard.SIGN_IN, sign_in.submit)
    app.router.add_post("/sign-out", sign_in.leave)
    app.router.add_get("/act", forms.show)
    app.router.add_post("/act/check", forms.check)
    app.router.add_post("/act/do", forms.do)
    app.router.add_get(guard.STYLE, _style)
    app.router.add_get(guard.LIVE, _live)
    return app


async def _live(_request: web.Request) -> web.Response:
    return web.Response(text="live\n")


async def _style(_request: web.Request) -> web.Response:
    return web.Response(body=(_ASSETS / "console.css").read_bytes(), content_type="text/css")


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """Listens while the block runs and yields the address; then drains what is in progress.

    Raises OSError if the port cannot be had, and RefusedSettings for files that cannot be used.
    """
    context = _tls_context(settings)
    channel = open_core_channel(settings)
    site = Site(settings, Stubs(channel, settings.console_call_seconds))
    runner = web.AppRunner(
        create_app(site),
        access_log=None,
        max_line_size=8192,
        max_field_size=8192,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    try:
        await runner.setup()
        listener = web.TCPSite(
            runner, settings.console_host, settings.console_port, ssl_context=context
        )
        await listener.start()
        host = settings.console_host
        port = runner.addresses[0][1]
        scheme = "https" if context is not None else "http"
        yield f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    finally:
        await runner.cleanup()
        await channel.close()


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT."""
    log = get_logger()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as address:
        # For the process that started this one with port 0; the log level may hide it.
        sys.stdout.write(f"console listening on {address}\n")
        sys.stdout.flush()
        log.info("listening", address=address, core=list(settings.core_address))
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    certificate, key = settings.console_tls_certificate_file, settings.console_tls_key_file
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise RefusedSettings(
            f"CONSOLE_TLS_CERTIFICATE_FILE and CONSOLE_TLS_KEY_FILE: {certificate} and {key} are "
            f"not a PEM certificate with its key ({type(error).__name__})."
        ) from None
    return context
