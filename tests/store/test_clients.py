"""Both S3 clients keep the promises of the seam, and what fails in passing is tried again."""

import asyncio
import json
import os
import pickle
import subprocess
import sys
import uuid

import numpy as np
import pytest
from s3fs import S3FileSystem

from actlake.schemas import CorruptError, InvalidInputError, StorageError
from actlake.store import create_store, open_run, open_store
from actlake.store.backend import NoSpaceError, TransientError
from actlake.store.clients import open_backend, s3_client
from actlake.store.location import parse_location
from actlake.store.obstore import ObstoreBackend
from actlake.store.remote import FsspecBackend
from actlake.store.retry import RetryingBackend, RetryPolicy
from actlake.store.s3_options import obstore_settings
from tests.servers import free_port
from tests.store.bad_proxy import bad_proxy
from tests.store.samples import make_plan, make_values, write_run

BACKENDS = {"obstore": ObstoreBackend, "s3fs": FsspecBackend}
PLAIN = {"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:1",
         "client_kwargs": {"region_name": "r"}}  # fmt: skip


@pytest.fixture(params=["s3_server", "moto_server"])
def server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=sorted(BACKENDS))
def client(request):
    return request.param


@pytest.fixture(scope="module")
def proxy(moto_server):
    with bad_proxy(moto_server.endpoint) as running:
        yield running


def backend_of(server, client, **options):
    url = f"{server.url}/a b/é+{uuid.uuid4().hex}"
    location = parse_location(
        url, storage_options={**server.options(), "client": client, **options}
    )
    backend = open_backend(location)
    # Falling back is silent, so every test says which client it means.
    assert type(backend.inner) is BACKENDS[client]
    return backend


@pytest.fixture
def behind_proxy(moto_server, proxy, client):
    backend = backend_of(moto_server, client, endpoint_url=proxy.endpoint)
    backend.policy = RetryPolicy(attempts=4, base_seconds=0.01)
    proxy.plan("GET")
    return backend


def test_objects_come_back_as_they_went(server, client):
    backend = backend_of(server, client)
    rng = np.random.default_rng(0)
    data = {"a": b"", "b/c": b"x", "b/d é+%20": rng.bytes(100_000), "b/e/f": rng.bytes(9_000_000)}
    for key, value in data.items():
        backend.put(key, value)
    for key, value in data.items():
        assert backend.get(key, max_bytes=len(value)) == value
        assert type(backend.get(key, max_bytes=len(value))) is bytes
        assert asyncio.run(backend.get_async(key, max_bytes=len(value))) == value
        assert backend.size(key) == len(value)
    assert dict(backend.walk("")) == {key: len(value) for key, value in data.items()}
    assert dict(backend.walk("b")) == {k: len(v) for k, v in data.items() if k.startswith("b/")}
    assert backend.children("") == ["a", "b"]
    assert backend.children("b") == ["c", "d é+%20", "e"]
    assert backend.children("none") == []
    assert list(backend.walk("none")) == []
    for key in data:
        backend.delete(key)
        backend.delete(key)
        assert backend.get(key, max_bytes=9) is None
        assert asyncio.run(backend.get_async(key, max_bytes=9)) is None
        assert backend.size(key) is None
    assert backend.size("b") is None


def test_an_object_that_is_larger_than_expected_is_not_read(server, client):
    backend = backend_of(server, client)
    backend.put("big", bytes(1000))
    with pytest.raises(CorruptError, match="big"):
        backend.get("big", max_bytes=999)
    with pytest.raises(CorruptError, match="big"):
        asyncio.run(backend.get_async("big", max_bytes=999))


def test_a_get_is_one_request_without_a_head(moto_server, proxy, behind_proxy):
    behind_proxy.put("k", b"value")
    proxy.plan("NONE")
    assert behind_proxy.get("k", max_bytes=10) == b"value"
    assert [line.partition(" ")[0] for line in proxy.seen] == ["GET"]


def test_create_only_where_the_server_honours_it(moto_server, client):
    backend = backend_of(moto_server, client)
    assert backend.create("k", b"first")
    assert not backend.create("k", b"second")
    assert backend.get("k", max_bytes=10) == b"first"


@pytest.mark.parametrize("fault", ["500", "503", "reset", "truncated", "lost reply", "409"])
def test_what_fails_in_passing_is_read_again(proxy, behind_proxy, fault):
    data = np.random.default_rng(1).bytes(300_000)
    behind_proxy.put("k", data)
    proxy.plan("GET", fault, fault)
    assert behind_proxy.get("k", max_bytes=len(data)) == data
    assert proxy.faults == []
    proxy.plan("GET", fault, fault)
    assert asyncio.run(behind_proxy.get_async("k", max_bytes=len(data))) == data
    assert proxy.faults == []


@pytest.mark.parametrize("fault", ["500", "503", "reset", "lost reply", "409"])
def test_what_fails_in_passing_is_written_again_and_recognised(proxy, behind_proxy, fault):
    proxy.plan("PUT", fault, fault)
    behind_proxy.put("k", b"value")
    proxy.plan("PUT", fault, fault)
    assert behind_proxy.create("new", b"mine")  # though its own first attempt may have won
    assert proxy.faults == []
    proxy.plan("PUT", fault)
    assert not behind_proxy.create("k", b"mine!")
    assert behind_proxy.get("k", max_bytes=9) == b"value"


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [("403", StorageError, "refused the request"), ("507", NoSpaceError, "free some space")],
)
def test_refusals_are_not_repeated(proxy, behind_proxy, fault, error, message):
    for method, call in (
        ("PUT", lambda: behind_proxy.put("k", b"v")),
        ("PUT", lambda: behind_proxy.create("c", b"v")),
        ("GET", lambda: behind_proxy.get("k", max_bytes=9)),
    ):
        proxy.plan(method, fault)
        with pytest.raises(error, match=message):
            call()
        assert len(proxy.seen) == 1


def test_what_does_not_pass_is_given_up_with_the_reason(proxy, behind_proxy):
    proxy.plan("PUT", *["503"] * 10)
    with pytest.raises(TransientError, match=r"injected.*tried 4 times"):
        behind_proxy.put("k", b"v")
    assert len(proxy.seen) == 4
    proxy.plan("GET")
    assert behind_proxy.get("absent", max_bytes=9) is None
    assert len(proxy.seen) == 1


def test_a_run_is_written_and_read_through_a_storage_that_fails_often(moto_server, proxy, client):
    options = {**moto_server.options(), "client": client, "endpoint_url": proxy.endpoint}
    plan = make_plan()
    proxy.plan("PUT", *(["503", "", "reset", "", "lost reply", ""] * 4))
    store = create_store(f"{moto_server.url}/{uuid.uuid4().hex}", storage_options=options)
    assert store.info.create_only
    write_run(store, plan)
    assert proxy.faults == []
    proxy.plan("GET", *(["truncated", "", "500", "", "reset", ""] * 4))
    ds = open_run(store, "tiny")
    for name, full in make_values(plan).items():
        np.testing.assert_array_equal(ds[name].values, full)


def test_backends_go_to_other_processes_without_connections(server, client):
    backend = backend_of(server, client)
    backend.put("k", b"v")
    copy = pickle.loads(pickle.dumps(backend))
    assert type(copy) is RetryingBackend
    assert type(copy.inner) is BACKENDS[client]
    assert copy.inner._opened is None
    assert copy.policy == backend.policy
    assert copy.get("k", max_bytes=9) == b"v"


FORKS = """
import json, os, sys
from actlake.store.clients import open_backend
from actlake.store.location import parse_location
url, options = sys.argv[1], json.loads(sys.argv[2])
old = open_backend(parse_location(url, storage_options=options))
old.put("k", b"v")
packed = __import__("pickle").dumps(old)
pid = os.fork()
if pid == 0:
    found = [old.get("k", max_bytes=9)]
    found.append(__import__("pickle").loads(packed).get("k", max_bytes=9))
    new = open_backend(parse_location(url, storage_options=options))
    new.put("child", b"w")
    os._exit(0 if found == [b"v", b"v"] else 3)
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(type(old.inner).__name__, old.get("child", max_bytes=9), status)
"""


def test_a_forked_child_does_not_hang(s3_server, client):
    """A pool that forks is still what Python 3.11 to 3.13 start on Linux."""
    url = f"{s3_server.url}/{uuid.uuid4().hex}"
    options = json.dumps({**s3_server.options(), "client": client})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, url, options],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [BACKENDS[client].__name__, "b'w'", "0"]


def test_a_missing_bucket_and_wrong_credentials_are_told_apart(s3_server, client):
    secret = "very-wrong-secret-value"
    for options, url, message in (
        (s3_server.options(), "s3://no-such-bucket/x", "bucket does not exist"),
        (s3_server.options(secret=secret), f"{s3_server.url}/x", "check the credentials"),
    ):
        location = parse_location(url, storage_options={**options, "client": client})
        backend = open_backend(location)
        for call in (
            lambda b=backend: b.get("k", max_bytes=9),
            lambda b=backend: b.put("k", b"v"),
            lambda b=backend: b.create("k", b"v"),
            lambda b=backend: list(b.walk("")),
        ):
            with pytest.raises(StorageError, match=message) as caught:
                call()
            assert secret not in str(caught.value)
            assert "\n" not in str(caught.value)


# -- which client


def client_of(**options):
    return s3_client(parse_location("s3://bucket/x", storage_options=options))


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """An environment that says nothing about S3."""
    for name in list(os.environ):
        if name.startswith("AWS_") or name in {"ACTLAKE_S3_CLIENT", "REQUESTS_CA_BUNDLE"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


def test_the_client_is_a_setting(bare, monkeypatch):
    assert client_of(**PLAIN) == "obstore"
    assert client_of(**PLAIN, client="s3fs") == "s3fs"
    monkeypatch.setenv("ACTLAKE_S3_CLIENT", "s3fs")
    assert client_of(**PLAIN) == "s3fs"
    assert client_of(**PLAIN, client="obstore") == "obstore"
    monkeypatch.setenv("ACTLAKE_S3_CLIENT", "boto")
    with pytest.raises(InvalidInputError, match="expected obstore or s3fs"):
        client_of(**PLAIN)


@pytest.mark.parametrize(
    "more",
    [
        {"config_kwargs": {"signature_version": "s3"}},
        {"client_kwargs": {"verify": False}},
        {"requester_pays": True},
        {"s3_additional_kwargs": {"ACL": "private"}},
        {"endpoint_url": "http://bad host"},
        {"endpoint_url": None, "client_kwargs": {}},
        {"key": None},
    ],
)
def test_options_that_obstore_has_no_word_for_are_honoured_by_s3fs(bare, more):
    assert client_of(**{**PLAIN, **more}) == "s3fs"


@pytest.mark.parametrize(
    "line", ["use_fips_endpoint = true", "s3 =\n  addressing_style = virtual", "ca_bundle = x"]
)
def test_settings_of_a_profile_that_only_botocore_knows_are_honoured_by_s3fs(bare, line):
    assert client_of(**PLAIN) == "obstore"
    (bare / "config").write_text(f"[default]\n{line}\n")
    assert client_of(**PLAIN) == "s3fs"


def test_without_credentials_s3fs_says_so_itself(bare):
    options = {k: v for k, v in PLAIN.items() if k not in {"key", "secret"}}
    assert client_of(**options) == "s3fs"
    assert client_of(**options, anon=True) == "obstore"


def test_certificates_of_ones_own_are_honoured_by_s3fs(bare, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bare / "bundle.pem"))
    assert client_of(**PLAIN) == "obstore"  # no TLS, no certificate
    assert client_of(**{**PLAIN, "endpoint_url": "https://127.0.0.1:1"}) == "s3fs"


def test_environment_and_profiles_mean_what_they_mean_to_s3fs(bare, monkeypatch):
    (bare / "config").write_text(
        "[profile lab]\nregion = eu-lab-1\nendpoint_url = http://lab:9000\n"
    )
    (bare / "credentials").write_text(
        "[lab]\naws_access_key_id = LABKEY\naws_secret_access_key = LABSECRET\n"
    )

    def settings(**options):
        return obstore_settings(parse_location("s3://bucket/x/y", storage_options=options))

    monkeypatch.setenv("AWS_PROFILE", "lab")
    by_variable = settings()
    monkeypatch.delenv("AWS_PROFILE")
    for found in (by_variable, settings(profile="lab")):
        assert (found.endpoint, found.region) == ("http://lab:9000", "eu-lab-1")
        assert (found.bucket, found.prefix) == ("bucket", "x/y")
        assert found.credentials()["access_key_id"] == "LABKEY"
        assert not found.virtual_hosted
        assert "LABSECRET" not in repr(found)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "ENVKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ENVSECRET")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "ENVTOKEN")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://env:9000")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "env-1")
    found = settings()
    assert (found.endpoint, found.region) == ("http://env:9000", "env-1")
    assert found.credentials()["token"] == "ENVTOKEN"
    # A key that is given does not go with a token of the environment.
    given = settings(**PLAIN).credentials()
    assert (given["access_key_id"], given["token"]) == ("k", None)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    amazon = settings(key="k", secret="s", client_kwargs={"region_name": "eu-west-1"})
    assert amazon.endpoint is None
    assert amazon.virtual_hosted


def test_a_store_is_opened_by_environment_alone(bare, monkeypatch, s3_server, client):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("ACTLAKE_S3_CLIENT", client)
    url = f"{s3_server.url}/{uuid.uuid4().hex}"
    store = create_store(url)
    assert type(store.backend.inner) is BACKENDS[client]
    write_run(store, make_plan())
    assert open_store(url).run_ids() == ["tiny"]
    secret = "a-token-that-is-wrong"
    monkeypatch.setenv("AWS_SESSION_TOKEN", secret)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    S3FileSystem.clear_instance_cache()  # fsspec's own: it keeps what the environment was
    with pytest.raises(StorageError) as caught:
        open_store(f"{s3_server.url}/elsewhere")
    assert secret not in str(caught.value)


def test_nothing_listening_is_reported_by_each_client(client):
    options = {**PLAIN, "endpoint_url": f"http://127.0.0.1:{free_port()}", "client": client}
    with pytest.raises(StorageError, match=r"check the endpoint.*tried 4 times"):
        open_store("s3://bucket/store", storage_options=options)


def test_waits_grow_and_differ():
    policy = RetryPolicy()
    one, two = list(policy.waits(8)), list(policy.waits(8))
    assert one != two
    assert len(one) == 7
    for index, wait in enumerate(one):
        longest = min(5.0, 0.1 * 2**index)
        assert longest / 2 <= wait <= longest
    assert sum(one) <= 11.5
