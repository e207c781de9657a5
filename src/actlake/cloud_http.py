"""A small client for the JSON APIs of cloud providers."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .corpus.keyed_http import keyed_opener
from .schemas.errors import CloudError, InvalidInputError

__all__ = ["Api"]

MAX_BYTES = 32 << 20
_PASSING = {408, 429, 500, 502, 503, 504}
_REPEATABLE = {"GET", "DELETE"}  # creating twice would rent two machines


@dataclass(frozen=True)
class Api:
    """One provider's API: its address, and the key that is sent with every request.

    The key is in no repr and in no error.
    """

    base: str
    key: str = field(repr=False)
    name: str = "the provider"
    timeout_seconds: float = 60
    n_attempts: int = 4
    wait_seconds: float = 1

    def __post_init__(self) -> None:
        """Refuse an address to which the key would travel in the clear."""
        parts = urllib.parse.urlsplit(self.base)
        if parts.scheme != "https" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
            msg = f"the API of {self.name} at {parts.scheme}://{parts.hostname} is not https"
            raise InvalidInputError(msg)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        missing_ok: bool = False,
    ) -> Any:  # JSON of any shape  # noqa: ANN401
        """Return the JSON that the API answers; None for an empty answer, or 404 if ``missing_ok``.

        Reading and destroying are repeated where a failure can pass; creating never is.

        Raises
        ------
        CloudError
            If the API refuses, fails, or answers what is not JSON.
        """
        n_attempts = self.n_attempts if method in _REPEATABLE else 1
        for attempt in range(n_attempts):
            try:
                return self._call(method, path, body=body, query=query)
            except urllib.error.HTTPError as err:
                with err:
                    said = err.read(2000).decode("utf-8", "replace")
                if missing_ok and err.code == 404:
                    return None
                if err.code not in _PASSING or attempt == n_attempts - 1:
                    said = " ".join(said.replace(self.key, "***").split())[:300]
                    msg = f"{self.name} answered {err.code} to {method} {path}: {said}"
                    raise CloudError(msg) from None
            except (urllib.error.URLError, OSError, TimeoutError) as err:
                if attempt == n_attempts - 1:
                    msg = f"{self.name} could not be reached for {method} {path}: {err}"
                    raise CloudError(msg) from err
            time.sleep(self.wait_seconds * 2**attempt)
        return None

    def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None,
        query: Mapping[str, Any] | None,
    ) -> Any:  # noqa: ANN401
        """Send one request."""
        url = self.base.rstrip("/") + path
        if query:
            url += "?" + urllib.parse.urlencode(query)
        request = urllib.request.Request(
            url,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.key}",
                "Accept": "application/json",
                "User-Agent": "actlake",
                **({} if body is None else {"Content-Type": "application/json"}),
            },
        )
        with keyed_opener().open(request, timeout=self.timeout_seconds) as answer:
            data = answer.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            msg = f"{self.name} answered more than {MAX_BYTES} bytes to {method} {path}"
            raise CloudError(msg)
        if not data.strip():
            return None
        try:
            return json.loads(data)
        except ValueError as err:
            msg = f"{self.name} answered no JSON to {method} {path}: {data[:100]!r}"
            raise CloudError(msg) from err
