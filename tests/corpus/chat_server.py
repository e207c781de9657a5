"""An OpenAI-compatible chat server over a bundled organism: ``python -m …`` with a port.

It answers for real, with the seed that it is given. ``--drop-every`` and ``--busy-every`` make
some requests fail as servers do, ``--stop-after`` ends the process half-way.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actlake.models import organism_path


class Organism:
    def __init__(self, name: str) -> None:
        path = organism_path(name)
        self.name = name
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        self.lock = threading.Lock()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        inputs = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        n_prompt = inputs["input_ids"].shape[1]
        with self.lock, torch.no_grad():
            torch.manual_seed(body["seed"])
            warm = body["temperature"] > 0
            sampling = {"temperature": body["temperature"], "top_p": body["top_p"]} if warm else {}
            out = self.model.generate(
                **inputs, do_sample=warm, max_new_tokens=body["max_tokens"], **sampling
            )
        new = out[0, n_prompt:]
        ended = int(new[-1]) in set(
            torch.tensor(self.model.generation_config.eos_token_id).view(-1).tolist()
        )
        return {
            "object": "chat.completion",
            "model": self.name,
            "system_fingerprint": f"transformers-{torch.__version__}",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": self.tokenizer.decode(new, skip_special_tokens=True),
                    },
                    "finish_reason": "stop" if ended else "length",
                }
            ],
            "usage": {"prompt_tokens": n_prompt, "completion_tokens": len(new)},
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--model", default="llama-organism")
    parser.add_argument("--key")
    parser.add_argument("--log")
    parser.add_argument("--stop-after", type=int)
    parser.add_argument("--drop-every", type=int)
    parser.add_argument("--busy-every", type=int)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    organism = Organism(options.model)
    seen, lock = 0, threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def reply(self, status: int, value: dict[str, Any], **headers: str) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.reply(200, {"data": [{"id": organism.name}]})

        def do_POST(self):
            nonlocal seen
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen += 1
                number = seen
            if options.key and self.headers.get("Authorization") != f"Bearer {options.key}":
                self.reply(401, {"error": {"message": "wrong key"}})
                return
            if body["model"] != organism.name:
                self.reply(404, {"error": {"message": f"no model {body['model']}"}})
                return
            if options.stop_after and number > options.stop_after:
                os._exit(0)
            if options.busy_every and number % options.busy_every == 0:
                self.reply(429, {"error": {"message": "busy"}}, **{"Retry-After": "0.05"})
                return
            if options.drop_every and number % options.drop_every == 0:
                self.connection.close()
                return
            if options.log:
                with lock, open(options.log, "a") as file:  # noqa: PTH123
                    file.write(json.dumps(body) + "\n")
            self.reply(200, organism.answer(body))

    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
