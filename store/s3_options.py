"""S3 options in s3fs's spelling, and what obstore is told for them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from .location import Location, is_default_config

if TYPE_CHECKING:
    from obstore.store import S3Credential

__all__ = ["Credentials", "ObstoreSettings", "obstore_settings"]

_KNOWN = {
    "anon", "client", "client_kwargs", "config_kwargs", "endpoint_url", "key", "profile",
    "secret", "token", "use_listings_cache",
}  # fmt: skip
_KNOWN_CLIENT_KWARGS = {"endpoint_url", "region_name"}
# Of these only botocore knows the meaning: where one is set, s3fs is used.
_ONLY_BOTOCORE = ("AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT")
_PROFILE_ONLY_BOTOCORE = {"s3", "use_fips_endpoint", "use_dualstack_endpoint", "ca_bundle"}
_ENDPOINT_SETTINGS = {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "endpoint_url", "services"}
_CERTIFICATES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")  # as above, where the endpoint is TLS
_DNS_BUCKET = re.compile(r"^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$")
_FRESH = timedelta(minutes=5)  # how long obstore keeps what a refreshing source gave


@dataclass(frozen=True)
class Credentials:
    """A source of credentials, as obstore asks for them; keys are in no repr and no pickle."""

    source: Callable[[], S3Credential]

    def __call__(self) -> S3Credential:
        """Return the credentials of this moment."""
        return self.source()


@dataclass(frozen=True)
class ObstoreSettings:
    """Where and how obstore connects; ``credentials`` None is an anonymous connection."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    virtual_hosted: bool
    credentials: Credentials | None


def obstore_settings(location: Location) -> ObstoreSettings | None:
    """Return how obstore reaches ``location``, None where only s3fs can honour the options.

    Everything is resolved by botocore, so that environment, profiles and fsspec's own
    configuration mean what they mean to s3fs.
    """
    import botocore.session
    from botocore.exceptions import BotoCoreError
    from fsspec.config import conf

    if any(os.environ.get(name) for name in _ONLY_BOTOCORE):
        return None
    options = {**conf.get("s3", {}), **location.options}
    client = options.get("client_kwargs") or {}
    if set(options) - _KNOWN or set(client) - _KNOWN_CLIENT_KWARGS:
        return None
    if not is_default_config(options.get("config_kwargs")):
        return None
    if bool(options.get("key")) != bool(options.get("secret")):
        return None
    try:
        session = botocore.session.Session(profile=options.get("profile"))
        region = client.get("region_name") or session.get_config_variable("region")
        endpoint = options.get("endpoint_url") or client.get("endpoint_url")
        profile = session.get_scoped_config()
        if set(profile) & _PROFILE_ONLY_BOTOCORE:
            return None
        if endpoint is None and (set(profile) | set(os.environ)) & _ENDPOINT_SETTINGS:
            endpoint = _configured_endpoint(session, region)
        credentials = None if options.get("anon") else _credentials(options, session)
    except (BotoCoreError, ValueError):
        return None
    if not options.get("anon") and credentials is None:
        return None  # s3fs says so in its own time, after all that botocore tries
    if endpoint is None and region is None:
        return None  # a bucket of an unknown region: botocore follows redirects
    if endpoint is not None and not _is_url(endpoint):
        return None
    is_plain = endpoint is not None and endpoint.startswith("http://")
    if not is_plain and any(os.environ.get(name) for name in _CERTIFICATES):
        return None
    bucket, _, prefix = location.root.partition("/")
    return ObstoreSettings(
        bucket=bucket,
        prefix=prefix,
        endpoint=endpoint,
        region=region or "us-east-1",
        virtual_hosted=endpoint is None and bool(_DNS_BUCKET.match(bucket)),
        credentials=credentials,
    )


def _configured_endpoint(session: Any, region: str | None) -> str | None:  # noqa: ANN401
    """Return the endpoint that environment or profile name, None for Amazon's own."""
    client = session.create_client("s3", region_name=region or "us-east-1")
    url = str(client.meta.endpoint_url)
    host = urlsplit(url).hostname or ""
    return None if host.endswith((".amazonaws.com", ".amazonaws.com.cn")) else url


def _credentials(options: Mapping[str, Any], session: Any) -> Credentials | None:  # noqa: ANN401
    if options.get("key"):
        fixed: S3Credential = {
            "access_key_id": options["key"],
            "secret_access_key": options["secret"],
            "token": options.get("token"),
            "expires_at": None,
        }
        return Credentials(lambda: fixed)
    found = session.get_credentials()
    if found is None:
        return None

    def current() -> S3Credential:
        frozen = found.get_frozen_credentials()  # botocore refreshes what expires
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _FRESH,
        }

    return Credentials(current)


def _is_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError:
        return False
    plain = re.fullmatch(r"[!-~]+", endpoint) is not None
    return plain and parts.scheme in {"http", "https"} and bool(parts.hostname)
