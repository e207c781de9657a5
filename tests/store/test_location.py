import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlake.schemas import InvalidInputError
from actlake.store.backend import check_key
from actlake.store.location import parse_location, redact_url

SECRETS = st.text(st.characters(categories=["L", "N"], max_codepoint=127), min_size=6, max_size=40)


@given(user=SECRETS, secret=SECRETS, path=st.sampled_from(["", "/store", "/a/b"]))
def test_urls_are_shown_without_credentials(user, secret, path):
    url = f"s3://USER-{user}:PASS-{secret}@bucket{path}?X-Amz-Signature=SIG-{secret}#f"
    assert redact_url(url) == f"s3://bucket{path}"


def test_a_secret_with_slashes_and_signs_is_removed_too():
    assert redact_url("s3://AKIA:ab/cd@ef/gh@bucket/store") == "s3://bucket/store"


@pytest.mark.parametrize(
    "url", ["s3://key:hunter2@bucket/x", "s3://bucket/x?token=hunter2", "s3://k:hun/hunter2@bucket"]
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url):
    with pytest.raises(InvalidInputError, match="storage_options") as caught:
        parse_location(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "  ", "s3://", "s3:///"])
def test_a_url_without_a_place_is_refused(url):
    with pytest.raises(InvalidInputError, match="store URL"):
        parse_location(url)


def test_secrets_of_options_and_environment_leave_no_trace(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from-the-environment")
    options = {"key": "AKIA123", "client_kwargs": {"aws_session_token": "nested-token"}}
    location = parse_location("s3://bucket/x", storage_options=options)
    text = "AKIA123 nested-token from-the-environment https://user:pw@host/p?sig=1"
    assert location.scrub(text) == "*** *** *** https://host/p"
    assert "AKIA123" not in repr(location)


def test_options_of_the_caller_win():
    options = {"config_kwargs": {"connect_timeout": 1}}
    config = parse_location("s3://b", storage_options=options).options["config_kwargs"]
    assert config["connect_timeout"] == 1
    assert config["request_checksum_calculation"] == "when_required"


def test_local_paths_may_hold_any_character(tmp_path):
    assert parse_location(tmp_path / "a @b?c#d").root == str(tmp_path / "a @b?c#d")
    assert parse_location(f"file://{tmp_path}/x").root == str(tmp_path / "x")


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "a/../b", "..", "a//b", "a/./b", "a\\b", "a\0b"]
)
def test_keys_cannot_leave_the_store(key):
    with pytest.raises(InvalidInputError, match="not a plain path"):
        check_key(key)
