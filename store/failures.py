"""What a remote storage said when it refused or failed, and the error that explains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..schemas import StorageError
from .backend import NoSpaceError, TransientError
from .location import Location

__all__ = ["Failure", "storage_error"]

_CHECK = "check the endpoint, the credentials and the bucket name"
_FORBIDDEN = {"403", "401", "AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId"}
_FULL = {"507", "InsufficientStorage", "QuotaExceeded", "XMinioStorageFull"}
_ELSEWHERE = {"301", "PermanentRedirect", "AuthorizationHeaderMalformed"}
_PASSING_STATUS = {408, 409, 429, 500, 502, 503, 504}
# What S3 and its like ask to be repeated (Amazon S3, "Error responses"), 409 among them: the
# server could not decide between two writers of one key, and a second try will be decided.
_PASSING_CODES = {
    "BandwidthLimitExceeded",
    "ConditionalRequestConflict",
    "InternalError",
    "OperationAborted",
    "RequestLimitExceeded",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}


@dataclass(frozen=True)
class Failure:
    """A failed request, in words that both S3 clients share.

    ``code`` is the S3 error code, ``status`` the HTTP status (0 where no answer came).
    """

    kind: Literal["answer", "timeout", "connection", "credentials", "full", "other"]
    said: str = ""
    code: str = ""
    status: int = 0

    @property
    def is_full(self) -> bool:
        """Whether the storage is full: never tried again."""
        return (
            self.kind == "full"
            or bool({self.code, str(self.status)} & _FULL)
            or "no space left on device" in self.said.lower()
        )

    @property
    def is_passing(self) -> bool:
        """Whether the same request can succeed a moment later."""
        if self.is_full:
            return False
        answered = self.status in _PASSING_STATUS or self.code in _PASSING_CODES
        return self.kind in {"timeout", "connection"} or answered


def storage_error(failure: Failure, *, doing: str, location: Location) -> StorageError:
    """Return the error that says what failed, where, and what to check; without secrets."""
    what = f"{doing} at {location.url} failed"
    said = location.scrub(" ".join(failure.said.split()))[:300]
    marks = {failure.code, str(failure.status)}
    if failure.code == "NoSuchBucket":
        return StorageError(f"{what}: the bucket does not exist; create it or {_CHECK}")
    if marks & _FORBIDDEN:
        return StorageError(
            f"{what}: the server refused the request ({said or failure.code}); check the "
            "credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or storage_options), their "
            "rights on the bucket and the bucket name"
        )
    if marks & _ELSEWHERE:
        return StorageError(
            f"{what}: the bucket lies in another region ({said}); set AWS_REGION or "
            "storage_options client_kwargs region_name"
        )
    if failure.kind == "credentials":
        return StorageError(
            f"{what}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "or pass storage_options (anon=True for a public bucket)"
        )
    if failure.is_full:
        return NoSpaceError(f"{what}: {said}; free some space and run the same command again")
    if failure.kind == "timeout":
        return TransientError(f"{what}: no answer in time; {_CHECK}, and the network")
    error = TransientError if failure.is_passing else StorageError
    return error(f"{what}: {said or failure.code or failure.kind}; {_CHECK}")
