"""Fixtures that several rooms share: real S3-compatible servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture(scope="session")
def s3_server() -> Iterator[servers.S3Server]:
    """A real S3 server over a local folder, which ignores create-only conditions."""
    with servers.rclone_server() as server:
        yield server


@pytest.fixture(scope="session")
def moto_server() -> Iterator[servers.S3Server]:
    """An S3 server that honours create-only conditions."""
    with servers.moto_server() as server:
        yield server
