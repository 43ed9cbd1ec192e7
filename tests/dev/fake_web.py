"""A stand-in for the simulator (port and webhooks as arguments) and the gateway (by environment).

It answers every GET with 200, and is told apart by whether it was given a `--port`.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Nothing: probes are not worth a line."""


def main() -> None:
    arguments = sys.argv[1:]
    if "--port" in arguments:
        port = int(arguments[arguments.index("--port") + 1])
        sys.stdout.write(f"told {json.dumps(arguments)}\n")
    else:
        port = int(os.environ["GATEWAY_PORT"])
        told = {name: os.environ.get(name) for name in json.loads(os.environ["FAKE_TELLS"])}
        sys.stdout.write(f"told {json.dumps(told)}\n")
    sys.stdout.flush()
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
