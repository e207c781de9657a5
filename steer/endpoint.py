"""One request to an OpenAI-compatible server: sent again where it may help, and bounded."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.error
import urllib.request
from typing import Any

from ..schemas import IncompleteError, InvalidInputError, JudgeSpec

__all__ = ["Endpoint", "RejectedError"]

_LIMIT = 4 << 20  # bytes of a reply; no honest one is longer
_AGAIN = {408, 409, 425, 429}
_REFUSED = {401, 403, 404, 405}
CONSTRAINTS = ("json_schema", "structured_outputs", "guided_choice", "none")


class RejectedError(Exception):
    """The server takes this one request in no form (a text beyond its context)."""


class Endpoint:
    """The chat completions of a server, with what its constraints turned out to be.

    Safe to call from several threads.
    """

    def __init__(self, spec: JudgeSpec) -> None:
        self.spec = spec
        self.constrain = CONSTRAINTS[0] if spec.constrain == "auto" else spec.constrain
        self._lock = threading.Lock()

    def ask(self, messages: list[dict[str, str]], **options: Any) -> tuple[dict[str, Any], int]:  # noqa: ANN401
        """Return the server's reply and the number of tries.

        Raises
        ------
        RejectedError
            If the server rejects the request itself.
        InvalidInputError
            If it refuses the key, the model or the address.
        IncompleteError
            If it does not answer, however often it is asked.
        """
        body = {
            "model": self.spec.model,
            "messages": messages,
            "temperature": 0.0,
            "max_tokens": self.spec.max_tokens,
            "seed": self.spec.seed,
            **options,
        }
        last = ""
        for n_tries in range(1, self.spec.n_retries + 2):
            try:
                return self._post(body), n_tries
            except urllib.error.HTTPError as err:
                with err:
                    detail = err.read(300).decode(errors="replace")
                last = f"HTTP {err.code}: {' '.join(detail.split())[:120]}"
                if err.code in _REFUSED:
                    msg = (
                        f"{self.spec.endpoint} refuses requests ({last}); check the endpoint, the "
                        f"model {self.spec.model!r} and the key in ${self.spec.api_key_env}"
                    )
                    raise InvalidInputError(msg) from err
                if err.code < 500 and err.code not in _AGAIN:
                    raise RejectedError(last) from err
            except (OSError, ValueError) as err:  # refused, reset, timed out, or no JSON
                last = f"{type(err).__name__}: {err}"
            if n_tries <= self.spec.n_retries:
                time.sleep(self.spec.backoff_seconds * 2 ** (n_tries - 1))
        msg = f"{self.spec.endpoint} gave no answer in {self.spec.n_retries + 1} tries ({last})"
        raise IncompleteError(msg)

    def ask_choice(
        self, messages: list[dict[str, str]], choices: list[str], *, schema: dict[str, Any]
    ) -> tuple[dict[str, Any], int, str]:
        """Return the reply, the tries, and the constraint that the server took.

        With ``auto`` a constraint that the server rejects is given up for the next one, for this
        and all later requests.
        """
        while True:
            constrain = self.constrain
            try:
                reply, n_tries = self.ask(messages, **_options(constrain, choices, schema))
            except RejectedError:
                if self.spec.constrain != "auto" or constrain == CONSTRAINTS[-1]:
                    raise
                # Is it the constraint or the text? Without any, the server must take the text.
                after = CONSTRAINTS[CONSTRAINTS.index(constrain) + 1]
                plain, n_tries = self.ask(messages)
                with self._lock:
                    if self.constrain == constrain:
                        self.constrain = after
                if after == CONSTRAINTS[-1]:
                    return plain, n_tries, after
                continue
            return reply, n_tries, constrain

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = os.environ.get(self.spec.api_key_env)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # The scheme is http or https: JudgeSpec takes no other.
        request = urllib.request.Request(
            f"{self.spec.endpoint}/chat/completions",
            data=json.dumps(body).encode(),
            headers=headers,
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=self.spec.timeout_seconds) as response:
            data = response.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            msg = f"the reply is longer than {_LIMIT} bytes"
            raise ValueError(msg)
        reply = json.loads(data)
        if not isinstance(reply, dict):
            msg = f"the reply is no JSON object but {type(reply).__name__}"
            raise ValueError(msg)
        return reply


def _options(constrain: str, choices: list[str], schema: dict[str, Any]) -> dict[str, Any]:
    if constrain == "json_schema":
        named = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": named}}
    if constrain == "structured_outputs":
        return {"structured_outputs": {"choice": choices}}
    if constrain == "guided_choice":
        return {"guided_choice": choices}
    return {}
