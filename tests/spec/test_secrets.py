"""Job specs are stored with the output: they take options, not credentials."""

from __future__ import annotations

from typing import Any

import pytest

from tokenshard.errors import SpecError
from tokenshard.spec.job import parse_job
from tokenshard.spec.secrets import credential_in, has_password


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, None),
        ({"endpoint_url": "http://127.0.0.1:9000", "anon": True, "deadline": 5, "hedge": True}, None),
        ({"profile": "me", "client_kwargs": {"region_name": "us-east-1"}, "key": None}, None),
        ({"token": "google_default"}, None),
        ({"key": "AK"}, "key"),
        ({"secret": "x"}, "secret"),
        ({"token": "x"}, "token"),
        ({"account_key": "x"}, "account_key"),
        ({"connection_string": "x"}, "connection_string"),
        ({"client_kwargs": {"aws_secret_access_key": "x"}}, "client_kwargs.aws_secret_access_key"),
        ({"password": "x"}, "password"),
    ],
)
def test_credentials_are_told_from_other_options(options: dict[str, Any], found: str | None) -> None:
    assert credential_in(options) == found


@pytest.mark.parametrize(
    ("url", "has"),
    [
        ("s3://bucket/a:b@c", False),
        ("photos/a:b@c", False),
        ("sftp://user@host/x", False),
        ("sftp://user:word@host/x", True),
        ("https://:token@host/x", True),
    ],
)
def test_a_password_in_a_url_is_seen(url: str, has: bool) -> None:
    assert has_password(url) == has


@pytest.mark.parametrize("field", ["source", "output", "storage"])
def test_a_job_spec_with_a_credential_is_refused_without_repeating_it(field: str) -> None:
    fields = {
        "source": "{path: 'sftp://me:hush@host/photos'}" if field == "source" else "{path: photos/}",
        "output": "sftp://me:hush@host/tokens" if field == "output" else "tokens/",
        "storage": "{secret: hush}" if field == "storage" else "{}",
    }
    text = "kind: convert-images\n" + "".join(f"{name}: {value}\n" for name, value in fields.items())
    with pytest.raises(SpecError, match=rf"{field}.*by the environment") as caught:
        parse_job(text, "job.yaml")
    assert "hush" not in str(caught.value)
