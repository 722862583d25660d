"""A server that takes 30 ms to answer a line, on a port of its own: what the examples call."""

from __future__ import annotations

import socketserver
import threading
import time

ANSWER_SECONDS = 0.03


class SlowAnswer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        if self.rfile.readline():
            time.sleep(ANSWER_SECONDS)
            self.wfile.write(b"at last\n")


class Upstream(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 64


def serve() -> tuple[str, int]:
    """Serve on loopback until this process ends; returns the host and port."""
    server = Upstream(("127.0.0.1", 0), SlowAnswer)
    threading.Thread(target=server.serve_forever, name="upstream", daemon=True).start()
    host, port = server.server_address[:2]
    return str(host), int(port)
