"""A completion server that speaks the real protocol and answers by a rule, with faults on order."""

from __future__ import annotations

import json
import math
import re
import time

from tests.steer.completions import CompletionServer, in_a_thread


class RuleServer(CompletionServer):
    """Scores an answer by the words in it: 2 for help, 0 for ignore, 1 for neither.

    ``fault`` is called with the number of the request (from 0) and its body; it returns None for
    an honest answer, an int for that HTTP status, a str to say that instead, bytes for that body,
    a float to sleep that many seconds first, or "drop" to close the connection.
    """

    def __init__(self, port=0):
        self.fault = lambda n, body: None
        self.takes = {"json_schema", "structured_outputs", "guided_choice"}
        super().__init__(port)

    def answer(self, body):
        with self.lock:
            n = len(self.bodies)
            self.bodies.append(body)
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


def serving(port=0):
    """Serve from a thread of this process."""
    return in_a_thread(RuleServer(port))
