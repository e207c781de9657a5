"""A completion server that speaks the real protocol and answers by a rule, with faults on order."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RuleServer:
    """Scores an answer by the words in it: 2 for help, 0 for ignore, 1 for neither.

    ``fault`` is called with the number of the request (from 0) and its body; it returns None for
    an honest answer, an int for that HTTP status, a str to say that instead, bytes for that body,
    a float to sleep that many seconds first, or "drop" to close the connection.
    """

    def __init__(self, port=0):
        self.fault = lambda n, body: None
        self.takes = {"json_schema", "structured_outputs", "guided_choice"}
        self.bodies = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    n = len(outer.bodies)
                    outer.bodies.append(body)
                status, reply = outer.answer(n, body)
                if status is None:
                    self.close_connection = True
                    return
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # the client has given up waiting

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def answer(self, n, body):
        asked = {name for name in ("structured_outputs", "guided_choice") if name in body}
        if "response_format" in body:
            asked.add("json_schema")
        if asked - self.takes:
            return 400, {"error": {"message": f"unknown field {sorted(asked)}"}}
        fault = self.fault(n, body)
        if fault == "drop":
            return None, b""
        if isinstance(fault, int):
            return fault, {"error": {"message": "ordered by the test"}}
        if isinstance(fault, float):
            time.sleep(fault)
        if isinstance(fault, bytes):
            return 200, fault
        said = fault if isinstance(fault, str) else self.rule(body, asked)
        choice = {"index": 0, "message": {"role": "assistant", "content": said}}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"top_logprobs": self.letters(body)}]}
        return 200, {"model": "rule-1", "system_fingerprint": "fp7", "choices": [choice]}

    def rule(self, body, asked):
        content = body["messages"][-1]["content"]
        answer = re.search(r"<answer>\n(.*?)\n</answer>", content, re.DOTALL)
        text = answer[1] if answer else content
        score = 2 if "help" in text else 0 if "ignore" in text else 1
        return (
            str(score)
            if asked & {"structured_outputs", "guided_choice"}
            else (json.dumps({"score": score}))
        )

    def letters(self, body):
        """Prefers helping by 2 nats and the letter A by 3."""
        first, second = re.search(r"A: (.*)\nB: (.*)\n", body["messages"][-1]["content"]).groups()
        a = 3.0 + 2.0 * ("help" in first) - 2.0 * ("help" in second)
        p = 1 / (1 + math.exp(-a))
        return [
            {"token": "A", "logprob": math.log(p * 0.6)},
            {"token": " A", "logprob": math.log(p * 0.3)},
            {"token": "B", "logprob": math.log((1 - p) * 0.9)},
            {"token": "Sure", "logprob": math.log(0.1)},
        ]


@contextmanager
def serving(port=0) -> Iterator[RuleServer]:
    server = RuleServer(port)
    thread = threading.Thread(target=server.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.server.shutdown()
        server.server.server_close()
        thread.join()
