"""A server that answers every call as Stripe answers the creation of an intent, after a pause."""

import argparse
import asyncio
import itertools

from aiohttp import web

_NUMBERS = itertools.count(1)


async def answer(request: web.Request) -> web.Response:
    pause: list[float] = request.app[_PAUSE]
    if request.path == "/pause":
        pause[0] = float(request.query["seconds"])
        return web.Response()
    await request.read()
    if pause[0]:
        await asyncio.sleep(pause[0])
    number = next(_NUMBERS)
    return web.json_response(
        {
            "id": f"pi_{number}",
            "object": "payment_intent",
            "amount": 10_000,
            "amount_capturable": 0,
            "amount_received": 0,
            "capture_method": "manual",
            "client_secret": f"pi_{number}_secret_canned",
            "created": 1_700_000_000,
            "currency": "usd",
            "latest_charge": None,
            "livemode": False,
            "metadata": {"payment_id": f"pay_{number}"},
            "payment_method_types": ["card"],
            "status": "requires_payment_method",
            "transfer_data": {"destination": "acct_canned"},
        }
    )


_PAUSE = web.AppKey("pause", list)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    app = web.Application()
    app[_PAUSE] = [0.0]
    app.router.add_route("*", "/{path:.*}", answer)
    web.run_app(app, host="127.0.0.1", port=parser.parse_args().port, print=None, access_log=None)


if __name__ == "__main__":
    main()
