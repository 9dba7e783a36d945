"""The few error types of tokenshard.

Every message names the input, says what is wrong with it and what the user can do. The command line prints a
`TokenshardError` as one line; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class TokenshardError(Exception):
    """Base of all errors a user can do something about."""

    exit_code = 1


class SpecError(TokenshardError):
    """A job spec, option or argument is wrong (exit code 2, as for any usage error)."""

    exit_code = 2


class StoreError(TokenshardError):
    """A file or object store refused or failed an operation after the allowed retries.

    ``transient``: the failure may be over later (time-out, overload, lost connection).
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class FormatError(TokenshardError):
    """A file of a dataset, tokenizer or model is damaged, incomplete, or needs a newer version of tokenshard."""


class ManifestConflict(TokenshardError):
    """Another job committed this manifest version first: re-read the newest manifest, rebase on it and commit again."""


class InputError(TokenshardError):
    """One raw input cannot be read or encoded. Becomes a row of the rejects table, never the end of a job."""


class JobError(TokenshardError):
    """A job could not be completed, say because another driver holds its output, or no worker can be set up."""


class TooManyRejects(JobError):
    """The job finished its work but more inputs were rejected than ``max_rejects`` allows (exit code 3)."""

    exit_code = 3
