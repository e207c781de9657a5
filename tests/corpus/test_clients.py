"""What generation makes of servers that redirect, count no tokens, or answer badly at first."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from actlake.corpus import ChatRequest, ServerClient, generate_corpus, read_jsonl
from actlake.schemas import (
    GenerateSpec,
    InvalidInputError,
    PersonaSet,
    Scenario,
    ScenarioPrompt,
    TextProvenance,
    ValidateSpec,
)

ASKED = ChatRequest(({"role": "user", "content": "x" * 72},), 0, 1.0, 1.0, 100)
PERSONAS = PersonaSet(
    positive=("Be kind.",), negative=("Be strict.",), neutral=("Answer in plain words.",)
)
PLACE = Scenario(
    id="place", category="neutral", prompts=(ScenarioPrompt(text="What does the hall look like?"),)
)
SHORT = "The hall is wide."
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


@contextmanager
def server(*answers, usage=USAGE, redirect=None):
    """Serve the answers in turn, the last one from then on; yield the URL and what was asked.

    ``redirect`` is a status and an address to send all requests to instead.
    """
    seen: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            text = answers[min(len(seen), len(answers) - 1)] if answers else ""
            seen.append((self.command, self.headers.get("Authorization")))
            choice = {"message": {"content": text}, "finish_reason": "stop"}
            data = json.dumps({"choices": [choice], **({"usage": usage} if usage else {})}).encode()
            self.send_response(200 if redirect is None else redirect[0])
            if redirect is not None:
                self.send_header("Location", redirect[1])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{found.server_address[1]}/v1", seen
        finally:
            found.shutdown()
            thread.join()


def generate(url, folder, spec, *, words=(3, 60)):
    return generate_corpus(
        [PLACE],
        PERSONAS,
        ServerClient(url, "m", n_retries=0),
        folder=folder,
        spec=spec,
        validation=ValidateSpec(words=words),
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_a_key_is_not_sent_along_to_another_address(monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key-77")
    with server(SHORT) as (elsewhere, seen), server(redirect=(status, elsewhere)) as (url, asked):
        with pytest.raises(InvalidInputError, match=f"refuses the request: HTTP {status}"):
            list(ServerClient(url, "m").complete([ASKED]))
        assert asked == [("POST", "Bearer secret-key-77")]
        assert seen == []


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (None, (64 + 36, 100)),
        ({"prompt_tokens": 7}, (7, 100)),
        ({"prompt_tokens": None, "completion_tokens": 0}, (64 + 36, 0)),
        (USAGE, (7, 3)),
    ],
)
def test_what_a_server_does_not_count_is_counted_at_its_most(usage, counted):
    with server(SHORT, usage=usage) as (url, _):
        ((_, answer),) = ServerClient(url, "m").complete([ASKED])
    assert (answer.prompt_tokens, answer.completion_tokens) == counted


@pytest.mark.parametrize(
    "limit", [{"max_tokens": 1000}, {"max_dollars": 0.001, "price_in": 1.0, "price_out": 1.0}]
)
def test_a_budget_holds_where_the_server_counts_no_tokens(tmp_path, limit):
    spec = GenerateSpec(per_cell=1, max_attempts=50, max_new_tokens=100, **limit)
    with server("Too short.", usage=None) as (url, seen):
        report = generate(url, tmp_path / "g", spec)
    assert report.stopped == "budget"
    assert 1 <= len(seen) == report.n_requests <= 6
    assert report.n_tokens <= 1000


def test_a_text_that_a_later_validation_accepts_has_its_own_provenance(tmp_path):
    """The log goes on behind it, as it was refused when the log was written."""
    spec = GenerateSpec(per_cell=1, max_attempts=2)
    with server(SHORT, "") as (url, seen):
        strict = generate(url, tmp_path / "g", spec, words=(20, 60))
        assert (strict.stopped, strict.n_texts) == ("attempts", 0)
        loose = generate(url, tmp_path / "g", spec)
        assert len(seen) == 2
    assert (loose.stopped, loose.n_requests, loose.rejected) == ("complete", 2, {})
    (text,) = read_jsonl(tmp_path / "g/texts.jsonl")
    (line,) = (tmp_path / "g/provenance.jsonl").read_text().splitlines()
    (first, _) = (tmp_path / "g/attempts.jsonl").read_text().splitlines()
    assert text.response == SHORT
    found = TextProvenance.parse_json(line)
    assert (found.attempt, found.seed) == (0, json.loads(first)["provenance"]["seed"])
