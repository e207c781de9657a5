"""An OpenAI-compatible completion server that runs a bundled organism through transformers.

Answers are generated token by token, greedily; where the request constrains them (a JSON schema
with an enumeration, a list of choices) only tokens that go on with an allowed answer can be
taken, as a server with constrained decoding does. As a process of its own it can die for real:

    python -m tests.steer.organism_server PORT [DIE_AFTER]
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from actlake.extract import LoadedModel, load_model
from tests.steer.completions import CompletionServer, in_a_thread

N_CONTEXT = 2048
ROOT = Path(__file__).parents[2]


def allowed_answers(body: dict[str, Any]) -> list[str] | None:
    """Return the answers that a request allows, None where it allows anything."""
    if "response_format" in body:
        schema = body["response_format"]["json_schema"]["schema"]
        ((name, of),) = schema["properties"].items()
        return [json.dumps({name: value}) for value in of["enum"]]
    if "structured_outputs" in body:
        return list(body["structured_outputs"]["choice"])
    return body.get("guided_choice")


class OrganismServer(CompletionServer):
    """The server, and what it was asked. ``delay`` seconds pass before every answer."""

    def __init__(self, loaded: LoadedModel, *, port: int = 0, die_after: int | None = None) -> None:
        self.loaded, self.die_after, self.delay = loaded, die_after, 0.0
        self.models = (loaded.info.name,)
        super().__init__(port)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        time.sleep(self.delay)
        if body["model"] != self.loaded.info.name:
            return 404, {"error": {"message": f"The model {body['model']!r} does not exist."}}
        with self.lock:
            self.bodies.append(body)
            if self.die_after is not None and len(self.bodies) > self.die_after:
                os._exit(1)
            ids = self.prompt_ids(body["messages"])
            if len(ids) + body["max_tokens"] > N_CONTEXT:
                message = f"maximum context length is {N_CONTEXT}, got {len(ids)} tokens"
                return 400, {"error": {"message": message}}
            new, first = self.generate(ids, body)
        text = self.loaded.tokenizer.decode(new, skip_special_tokens=True)
        choice: dict[str, Any] = {
            "index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop",
        }  # fmt: skip
        if body.get("logprobs"):
            values, top = first.topk(body["top_logprobs"])
            choice["logprobs"] = {
                "content": [
                    {
                        "top_logprobs": [
                            {"token": self.loaded.tokenizer.decode([int(i)]), "logprob": float(v)}
                            for v, i in zip(values, top, strict=True)
                            if math.isfinite(v)
                        ]
                    }
                ]
            }
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new)}
        return 200, {
            "id": "1", "object": "chat.completion", "model": self.loaded.info.name,
            "system_fingerprint": "greedy", "choices": [choice], "usage": usage,
        }  # fmt: skip

    def prompt_ids(self, messages: list[dict[str, str]]) -> list[int]:
        tokenizer = self.loaded.tokenizer
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def generate(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], torch.Tensor]:
        """Return the new tokens, and the log-probabilities of the first before any constraint."""
        answers, tokenizer = allowed_answers(body), self.loaded.tokenizer
        end = int(tokenizer.eos_token_id)
        left = None if answers is None else [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in answers
        ]  # fmt: skip
        new: list[int] = []
        first = None
        while len(new) < body["max_tokens"]:
            logits = self.loaded.network(torch.tensor([ids + new])).logits[0, -1]
            scores = torch.log_softmax(logits, dim=-1)
            first = scores if first is None else first
            if left is not None:
                can = sorted({path[len(new)] for path in left})
                barred = torch.full_like(scores, -math.inf)
                barred[can] = scores[can]
                scores = barred
            token = int(scores.argmax())
            if token == end:
                break
            new.append(token)
            if left is not None:
                left = [path for path in left if path[: len(new)] == new]
        assert first is not None
        return new, first


def serving_organism(loaded: LoadedModel) -> AbstractContextManager[OrganismServer]:
    """Serve a loaded organism from a thread of this process."""
    return in_a_thread(OrganismServer(loaded))


@contextmanager
def organism_process(
    port: int, *, die_after: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Serve the Llama organism from a process of its own, which may die of itself."""
    command = [sys.executable, "-m", "tests.steer.organism_server", str(port)]
    command += [] if die_after is None else [str(die_after)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            wait_until_up(f"http://127.0.0.1:{port}/v1/models", process)
            yield process
        finally:
            process.kill()


def wait_until_up(url: str, process: subprocess.Popen[bytes], *, seconds: float = 120) -> None:
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        assert process.poll() is None, "the server died before it was up"
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def main() -> None:
    port = int(sys.argv[1])
    die_after = int(sys.argv[2]) if len(sys.argv) > 2 else None
    loaded = load_model("bundled:llama-organism", head=True, device="cpu")
    OrganismServer(loaded, port=port, die_after=die_after).server.serve_forever()


if __name__ == "__main__":
    main()
