"""An HTTP server that gives prepared answers and remembers what it was asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Script:
    """`answers`: path -> a JSON value, a list of events of a stream, or a status and an error.
    `asked`: (path, headers, body) of every request."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    @property
    def bodies(self) -> list[Any]:
        return [body for _, _, body in self.asked]


@contextmanager
def scripted_server(answers: dict[str, Any]) -> Iterator[Script]:
    script = Script(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            body = json.loads(self.rfile.read(size) or "null")
            script.asked.append((self.path, dict(self.headers), body))
            answer = script.answers.get(self.path, (404, "Not Found"))
            if isinstance(answer, tuple):
                status, message = answer
                self.reply(status, json.dumps({"error": {"message": message}}).encode())
            elif isinstance(answer, list):
                self.reply(200, "".join(answer).encode())
            else:
                self.reply(200, json.dumps(answer).encode())

        do_GET = do_POST

        def reply(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def event(value: Any, name: str = "") -> str:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value)}\n\n"
