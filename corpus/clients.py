"""Clients of generation: an OpenAI-compatible server, or vLLM in this process."""

from __future__ import annotations

import http.client
import importlib
import json
import os
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..schemas import ActlakeError, IncompleteError, InvalidInputError, MissingDependencyError
from .keyed_http import keyed_opener

__all__ = ["ChatRequest", "Client", "Completion", "Engine", "ServerClient", "VllmClient"]

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504}
_MOST_BYTES = 16 * 2**20
_LONGEST_WAIT = 30.0
_CHARS_PER_TOKEN = 2
_TEMPLATE_TOKENS = 64


@dataclass(frozen=True)
class ChatRequest:
    """One conversation to continue, with its own seed."""

    messages: tuple[dict[str, str], ...]
    seed: int
    temperature: float
    top_p: float
    max_new_tokens: int

    @property
    def most_prompt_tokens(self) -> int:
        """An upper bound of the prompt's tokens, for English and for chat templates."""
        n_chars = sum(len(message["content"]) for message in self.messages)
        return _TEMPLATE_TOKENS + n_chars // _CHARS_PER_TOKEN


@dataclass(frozen=True)
class Completion:
    """What came back: the text, why it ended (``stop``, ``length``, …), and its cost.

    Where a server does not count tokens, they are the most that the request can take, so that a
    budget holds.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Engine:
    """Who answers."""

    model: str
    engine: str
    engine_version: str | None = None
    revision: str | None = None
    quantisation: str | None = None


class Client(Protocol):
    """Whatever continues conversations."""

    @property
    def engine(self) -> Engine:
        """Who answers."""

    def complete(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Completion]]:
        """Yield the completions in the order of the requests, each with its request's number.

        Raises
        ------
        IncompleteError
            If the rest of them cannot be had now; those that were yielded count.
        """


@dataclass(frozen=True)
class ServerClient:
    """An OpenAI-compatible server: vLLM's, llama.cpp's, or a paid one.

    Parameters
    ----------
    url
        The base, such as ``http://localhost:8000/v1``.
    model
        The model's name on the server.
    key_variable
        The environment variable that holds the key; it is written nowhere.
    n_parallel
        Requests under way at once.
    n_retries
        Further tries after a failure that may pass, with growing pauses.
    timeout_seconds
        Of one request.
    """

    url: str
    model: str
    revision: str | None = None
    quantisation: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    n_parallel: int = 8
    n_retries: int = 4
    timeout_seconds: float = 120.0
    pause_seconds: float = 0.5
    _seen: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            msg = f"{self.url!r} is no server; expected something like http://localhost:8000/v1"
            raise InvalidInputError(msg)
        if parts.username or parts.password:
            msg = f"the URL of the server holds credentials; put the key into ${self.key_variable}"
            raise InvalidInputError(msg)

    @property
    def engine(self) -> Engine:
        """Who answers: the version is what the server says of itself."""
        return Engine(
            model=self.model,
            engine="openai-compatible server",
            engine_version=self._seen.get("fingerprint"),
            revision=self.revision,
            quantisation=self.quantisation,
        )

    def complete(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Completion]]:
        """Yield the completions by number; raise IncompleteError if the server stays away.

        What other requests under way still brought is yielded before that.
        """
        gone = threading.Event()
        failure: ActlakeError | None = None
        with ThreadPoolExecutor(self.n_parallel) as pool:
            futures = [pool.submit(self._complete_one, request, gone) for request in requests]
            for number, future in enumerate(futures):
                try:
                    answer = future.result()
                except ActlakeError as err:
                    gone.set()
                    failure = failure or err
                else:
                    yield number, answer
        if failure is not None:
            raise failure

    def _complete_one(self, request: ChatRequest, gone: threading.Event) -> Completion:
        body = {
            "model": self.model,
            "messages": list(request.messages),
            "seed": request.seed,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_tokens": request.max_new_tokens,
            "stream": False,
        }
        pause, reason = self.pause_seconds, ""
        for attempt in range(self.n_retries + 1):
            if attempt:
                gone.wait(min(pause, _LONGEST_WAIT))
                pause *= 2
            if gone.is_set():
                reason = reason or "another request failed"
                break
            try:
                return self._parse(self._post(body), request)
            except urllib.error.HTTPError as err:
                detail = " ".join(err.read(500).decode("utf-8", "replace").split())[:200]
                reason = f"HTTP {err.code}: {detail or err.reason}"
                if err.code not in _RETRIED:
                    msg = f"the server at {self.url} refuses the request: {reason}"
                    raise InvalidInputError(msg) from err
                pause = max(pause, _retry_after(err))
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                ConnectionError,
                TimeoutError,
                ValueError,
            ) as err:
                reason = str(getattr(err, "reason", err)) or type(err).__name__
        msg = (
            f"the server at {self.url} does not answer after {self.n_retries + 1} tries: {reason}; "
            "what was generated is kept, and the same command goes on"
        )
        raise IncompleteError(msg)

    def _post(self, body: dict[str, Any]) -> Any:  # any JSON value  # noqa: ANN401
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(self.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(
            self.url.rstrip("/") + "/chat/completions",
            data=json.dumps(body).encode(),
            headers=headers,
        )
        with keyed_opener().open(request, timeout=self.timeout_seconds) as response:
            return json.loads(response.read(_MOST_BYTES))

    def _parse(self, value: Any, request: ChatRequest) -> Completion:  # any JSON  # noqa: ANN401
        """Return the first choice; raise ValueError where the answer is none."""
        try:
            choice, usage = value["choices"][0], value.get("usage") or {}
            message = choice["message"]
            text = message.get("content") or message.get("refusal") or ""
            if value.get("system_fingerprint"):
                self._seen["fingerprint"] = str(value["system_fingerprint"])[:100]
            return Completion(
                text=str(text).strip(),
                finish=str(choice.get("finish_reason") or "unknown"),
                prompt_tokens=_counted(usage, "prompt_tokens", most=request.most_prompt_tokens),
                completion_tokens=_counted(usage, "completion_tokens", most=request.max_new_tokens),
            )
        except (KeyError, IndexError, TypeError, AttributeError) as err:
            msg = f"its answer is no chat completion: {json.dumps(value)[:120]}"
            raise ValueError(msg) from err


def _counted(usage: dict[str, Any], name: str, *, most: int) -> int:
    """Return the tokens that a server counted, ``most`` where it does not say."""
    count = usage.get(name)
    return most if count is None else int(count)


def _retry_after(err: urllib.error.HTTPError) -> float:
    """Return the seconds that the server asks to wait, 0 where it does not say."""
    try:
        return float(err.headers.get("Retry-After") or 0)
    except ValueError:
        return 0.0


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings of vLLM's own affairs off the terminal; its errors come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class VllmClient:
    """vLLM in this process: one offline batch per call, prefixes shared, a seed per request.

    Raises
    ------
    MissingDependencyError
        If vLLM is not installed.
    """

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        quantisation: str | None = None,
        **options: Any,  # of vllm.LLM  # noqa: ANN401
    ) -> None:
        os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")  # stdout is for data
        try:
            with _quiet():
                # No import statement: vLLM belongs to an extra of its own, which the laptop lacks.
                self._vllm = importlib.import_module("vllm")
        except ImportError as err:
            msg = "generation in this process needs vLLM: pip install 'actlake[vllm]'"
            raise MissingDependencyError(msg) from err
        self._engine = Engine(model, "vllm", self._vllm.__version__, revision, quantisation)
        with _quiet():
            self._llm = self._vllm.LLM(
                model=model,
                revision=revision,
                quantization=quantisation,
                enable_prefix_caching=True,
                **options,
            )

    @property
    def engine(self) -> Engine:
        """Who answers."""
        return self._engine

    def complete(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Completion]]:
        """Yield the completions of one batch, in order."""
        if not requests:
            return
        sampling = [
            self._vllm.SamplingParams(
                temperature=r.temperature, top_p=r.top_p, max_tokens=r.max_new_tokens, seed=r.seed
            )
            for r in requests
        ]
        with _quiet():
            outputs = self._llm.chat([list(r.messages) for r in requests], sampling, use_tqdm=False)
        for number, output in enumerate(outputs):
            answer = output.outputs[0]
            yield (
                number,
                Completion(
                    text=answer.text.strip(),
                    finish=answer.finish_reason or "unknown",
                    prompt_tokens=len(output.prompt_token_ids or ()),
                    completion_tokens=len(answer.token_ids),
                ),
            )
