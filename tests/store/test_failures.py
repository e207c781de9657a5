import json
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from actlake.schemas import ActlakeError, CorruptError, NotFoundError, StorageError
from actlake.store import create_store, open_run, open_store
from actlake.store import store as store_module
from tests.servers import free_port
from tests.store.samples import make_plan, write_run

SECRET = "very-wrong-secret-value"


@pytest.mark.parametrize("kind", ["disk", "file sizes"])
def test_a_full_disk_discards_the_partial_block_and_resume_works(tmp_path, kind):
    script = Path(__file__).with_name("full_disk.py")
    command = [sys.executable, str(script), str(tmp_path), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    failed = report["failed"]
    assert 0 < failed < 5, report
    assert report["committed"] == list(range(failed))
    assert f"block {failed} (rows {failed * 8} to {failed * 8 + 7})" in report["message"]
    assert "discarded" in report["message"]
    assert f"{failed} of 5 blocks are committed" in report["message"]
    assert "run the same command again" in report["message"]
    assert "\n" not in report["message"]
    assert report["strays"] == report["left"] == []
    assert report["partial"] == [row < failed * 8 for row in range(40)]
    assert report["resumed"] == list(range(failed, 5))
    assert report["same"]
    assert report["ok"]


def message_of(caught):
    """Return the message, after checking that it and its whole chain hold no secret."""
    chain = "".join(traceback.format_exception(caught.value))
    message = str(caught.value)
    for text in (message, chain):
        assert SECRET not in text
    assert "\n" not in message
    return message


@pytest.mark.parametrize("call", [open_store, create_store])
def test_wrong_credentials_are_refused_in_one_clear_line(s3_server, call):
    options = s3_server.options(secret=SECRET)
    with pytest.raises(StorageError) as caught:
        call(f"{s3_server.url}/forbidden", storage_options=options)
    message = message_of(caught)
    assert f"{s3_server.url}/forbidden" in message
    assert "check the credentials" in message
    good = create_store(f"{s3_server.url}/x", storage_options=s3_server.options())
    assert not [key for key, _ in good.backend.walk("") if "forbidden" in key]


def test_reading_with_credentials_that_were_withdrawn_fails_clearly(s3_server):
    store = create_store(f"{s3_server.url}/lazy", storage_options=s3_server.options())
    write_run(store, make_plan())
    ds = open_run(store, "tiny")
    store.backend.inner._opened = None
    object.__setattr__(store.location, "options", {
        **store.location.options, "secret": SECRET,
    })  # fmt: skip
    with pytest.raises(StorageError) as caught:
        ds["resid_post_norm"].compute()
    assert "check the credentials" in message_of(caught)


@pytest.mark.parametrize("call", [open_store, create_store])
def test_nothing_listening_is_reported_within_seconds(call):
    options = {
        "key": "k", "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{free_port()}",
    }  # fmt: skip
    start = time.monotonic()
    with pytest.raises(StorageError) as caught:
        call("s3://bucket/store", storage_options=options)
    assert time.monotonic() - start < 20
    message = message_of(caught)
    assert "s3://bucket/store" in message
    assert "check the endpoint" in message


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(store_module, "FIRST_CONTACT_SECONDS", 1.5)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        options = {
            "key": "k", "secret": SECRET,
            "endpoint_url": f"http://127.0.0.1:{sock.getsockname()[1]}",
        }  # fmt: skip
        start = time.monotonic()
        with pytest.raises(StorageError) as caught:
            open_store("s3://bucket/store", storage_options=options)
        assert time.monotonic() - start < 10
    assert "no answer in time" in message_of(caught)


def test_a_missing_bucket_is_named(s3_server):
    with pytest.raises(StorageError, match="bucket does not exist") as caught:
        create_store("s3://no-such-bucket/x", storage_options=s3_server.options())
    assert "s3://no-such-bucket/x" in message_of(caught)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(StorageError, match="scheme of the URL"):
        open_store("nosuchscheme://bucket/x")


def test_a_plain_web_server_cannot_be_written_to():
    with pytest.raises(ActlakeError, match="http://127"):
        create_store(f"http://127.0.0.1:{free_port()}/x")


def test_a_file_where_the_store_should_be_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(NotFoundError, match="no store at"):
        open_store(path)
    with pytest.raises(StorageError, match="check that the folder exists"):
        create_store(path)
    assert path.read_text() == "mine"


def test_a_store_of_a_newer_version_is_refused(store):
    data = store.backend.get("store.json", max_bytes=10**5)
    store.backend.put(
        "store.json", data.replace(b'"encoding-version": "1"', b'"encoding-version": "9"')
    )
    with pytest.raises(CorruptError, match="install a newer actlake"):
        open_store(store.url)
