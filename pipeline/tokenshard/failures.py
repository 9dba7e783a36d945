"""What a failure of storage means: whether to try again, and one line that says what to do."""

from __future__ import annotations

import errno

_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "urllib3"}
_TRANSIENT_ERRNO = {errno.EBUSY, errno.EREMOTEIO, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ECONNRESET}


def is_transient(error: Exception) -> bool:
    """Whether a failure of remote storage may be gone the next time."""
    if isinstance(error, PermissionError):
        return False
    if isinstance(error, TimeoutError | ConnectionError) or boto_code(error) == "NoSuchUpload":
        return True  # NoSuchUpload: an earlier, unanswered request had completed or aborted the upload
    if type(error).__module__.split(".")[0] in _CLIENTS:  # some of theirs, timeouts among them, are an OSError, too
        return not _credentials(error) and "SSL" not in type(error).__name__
    return isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO


def boto_code(error: BaseException) -> str | None:
    """S3 error code behind a translated exception."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    return str(response["Error"].get("Code")) if response and "Error" in response else None


def _credentials(error: BaseException) -> bool:
    return "Credential" in type(error).__name__ or "Token" in type(error).__name__ or "Profile" in type(error).__name__


def explain(url: str, action: str, error: Exception, attempts: int, deadline: float | None) -> str:
    """One line for a failure of an action. ``deadline``: the seconds that were allowed, where they were the limit."""
    tried = f" (after {attempts} attempts)" if attempts > 1 else ""
    reason = " ".join(str(error).split()) or type(error).__name__
    if boto_code(error) == "NoSuchBucket":
        return f"{url}: cannot {action}: there is no such bucket; create it or correct the URL"
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"{url}: cannot {action}: the disk is full; free some space and run the same command again"
    if isinstance(error, PermissionError) or _credentials(error):
        where = (
            "the file permissions"
            if "://" not in url
            else "the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE) and the bucket policy"
        )
        return f"{url}: cannot {action}: access denied ({reason}); check {where}"
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return f"{url}: cannot {action}: {error.strerror}; choose another path"
    kind = type(error).__name__
    if isinstance(error, TimeoutError | ConnectionError) or "Connect" in kind or "Timeout" in kind:
        endpoint = "check the network and the endpoint (storage option endpoint_url, AWS_ENDPOINT_URL)"
        if deadline is None:
            return f"{url}: cannot {action}{tried}: {reason}; {endpoint}"
        late = f"no answer within {deadline:g} seconds{tried}"
        return f"{url}: cannot {action}: {late}; {endpoint}, or wait longer with the storage option deadline"
    return f"{url}: cannot {action}{tried}: {reason}"
