"""A stand-in for the simulator and the gateway: it answers every GET with 200.

Its argument is the variable that names its port. It writes its settings to its first line.
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
    told = {name: os.environ.get(name) for name in json.loads(os.environ["FAKE_TELLS"])}
    sys.stdout.write(f"told {json.dumps(told)}\n")
    sys.stdout.flush()
    HTTPServer(("127.0.0.1", int(os.environ[sys.argv[1]])), Handler).serve_forever()


if __name__ == "__main__":
    main()
