"""Stores on every kind of storage."""

from __future__ import annotations

import uuid

import pytest

from actlake.store import create_store


@pytest.fixture
def store(tmp_path):
    """A new store in a local folder."""
    return create_store(tmp_path / "store")


@pytest.fixture(params=["local", "rclone", "moto"])
def place(request, tmp_path):
    """A URL for a new store with its storage options, on each kind of storage."""
    if request.param == "local":
        return str(tmp_path / "store"), {}
    name = {"rclone": "s3_server", "moto": "moto_server"}[request.param]
    server = request.getfixturevalue(name)
    return f"{server.url}/{uuid.uuid4().hex}", server.options()


@pytest.fixture
def any_store(place):
    """A new store on each kind of storage."""
    url, options = place
    return create_store(url, storage_options=options)
