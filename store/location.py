"""Where a store lies: parsed URLs, fsspec options, and the removal of secrets from messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..schemas import InvalidInputError

__all__ = ["Location", "is_default_config", "parse_location", "redact_url"]

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://(.*)$", re.DOTALL)
_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_PLAIN_OPTIONS = {
    "anon", "client", "config_kwargs", "endpoint_url", "profile", "region_name", "use_ssl",
}  # fmt: skip

# connect_timeout x attempts at first contact bound how long a dead endpoint is waited for (about
# 20 s). One attempt each: store.retry repeats, and knows that it did.
# The checksum settings: S3-compatible servers answer ranged GETs without the checksums that
# newer botocore expects (https://github.com/boto/boto3/issues/4392).
_S3_CONFIG: dict[str, Any] = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
    "connect_timeout": 4,
    "read_timeout": 60,
    "retries": {"mode": "standard", "total_max_attempts": 1},
    "max_pool_connections": 64,
}


@dataclass(frozen=True)
class Location:
    """A parsed store URL.

    ``url`` holds no secrets and ends without a slash; ``root`` is a local folder or the path
    that the fsspec file system of ``scheme`` understands. ``options`` may hold credentials:
    they are in no repr and are never written.
    """

    url: str
    scheme: str
    root: str
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return self.scheme == "file"

    def scrub(self, text: str) -> str:
        """Return ``text`` without any secret that the options or the environment hold."""
        for secret in sorted(set(_secrets(self.options)), key=len, reverse=True):
            text = text.replace(secret, "***")
        return re.sub(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"]+", lambda m: redact_url(m[0]), text)


def redact_url(url: str) -> str:
    """Return ``url`` without user name, password, query and fragment."""
    match = _SCHEME.match(url)
    if match is None:
        return url
    rest = re.split(r"[?#]", match[2], maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if "@" in rest and "@" not in host:  # an unquoted slash inside a secret
        host, slash, path = rest.rpartition("@")[2].partition("/")
    return f"{match[1]}://{host.rpartition('@')[2]}{slash}{path}"


def parse_location(
    url: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None
) -> Location:
    """Return the location that ``url`` names.

    Parameters
    ----------
    url
        A folder, or any fsspec URL (``s3://bucket/prefix``).
    storage_options
        Passed to the fsspec file system; what the caller sets wins over the defaults.

    Raises
    ------
    InvalidInputError
        If the URL is empty, names no bucket, or carries credentials or a query.
    """
    text = os.fspath(url)
    options = dict(storage_options or {})
    if not text.strip():
        msg = "the store URL is empty; give a folder or a URL such as s3://bucket/prefix"
        raise InvalidInputError(msg)
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else "file"
    if match is None or scheme in {"file", "local"}:
        path = Path(match[2] if match else text).expanduser().absolute()
        return Location(url=str(path), scheme="file", root=str(path))
    clean = redact_url(text).rstrip("/")
    host = match[2].partition("/")[0]
    if "@" in host or redact_url(text) != text:
        msg = (
            f"the store URL {clean} was given with credentials or a query in it; "
            "pass credentials through the environment (AWS_ACCESS_KEY_ID, ...), fsspec's own "
            "configuration or storage_options"
        )
        raise InvalidInputError(msg)
    root = match[2].strip("/")
    if not root and scheme != "memory":
        msg = f"the store URL {clean} names no bucket or host; expected e.g. s3://bucket/prefix"
        raise InvalidInputError(msg)
    if scheme in {"s3", "s3a"}:
        options["config_kwargs"] = {**_S3_CONFIG, **options.get("config_kwargs", {})}
        # Another process may write at any time: a listing is never served from a cache.
        options.setdefault("use_listings_cache", False)
    if scheme in {"http", "https"}:
        root = clean
    return Location(url=clean, scheme=scheme, root=root, options=options)


def is_default_config(config: Mapping[str, Any] | None) -> bool:
    """Return whether ``config_kwargs`` are what ``parse_location`` gives every S3 store."""
    return not config or dict(config) == _S3_CONFIG


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield every string that could be a credential."""
    yield from (os.environ[name] for name in _SECRET_VARIABLES if len(os.environ.get(name, "")) > 3)
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets(value)
        elif isinstance(value, str) and name not in _PLAIN_OPTIONS and len(value) > 3:
            yield value
