"""What must not be written down: credentials in storage options and URLs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import JsonValue

BY_ENVIRONMENT = "give it by the environment instead (AWS_PROFILE, AWS_ACCESS_KEY_ID, …, or a role of the machine)"
_CREDENTIAL = re.compile(
    r"secret|passw|credential|access_?key|sas_?token|account_?key|connection_string", re.IGNORECASE
)
_VARIABLE = re.compile(rf"{_CREDENTIAL.pattern}|token|private|api_?key|sas_", re.IGNORECASE)
_EXACTLY = {"key", "token", "username"}
_METHODS = {"anon", "cloud", "google_default"}
"""Values of gcsfs's `token` that name a way to log in, and are none."""
_USER = re.compile(r"\w+://[^/@]*:[^/@]*@")


def credential_in(options: Mapping[str, JsonValue]) -> str | None:
    """Dotted name of the first option that is a credential; None where there is none."""
    for name, value in options.items():
        if isinstance(value, dict):
            if (below := credential_in(value)) is not None:
                return f"{name}.{below}"
        elif value is not None and value not in _METHODS and (name.lower() in _EXACTLY or _CREDENTIAL.search(name)):
            return name
    return None


def has_password(url: str) -> bool:
    """Whether a URL names a user with a password."""
    return _USER.match(url) is not None


def is_secret_variable(name: str) -> bool:
    """Whether an environment variable is named like a secret, e.g. HF_TOKEN."""
    return _VARIABLE.search(name) is not None
