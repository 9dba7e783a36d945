"""Looks at a store: can a job write there, and does the store keep the promise that commits rest on?

Everything happens below a name of its own, which is removed again, whatever comes between.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tokenshard.doctor.check import Check, Finding
from tokenshard.errors import StoreError
from tokenshard.store import TEMPORARY, Store

CONTENT = bytes(range(256)) * 16
WRITERS = 4
_CREDENTIALS = (
    "check the URL, --storage endpoint_url=…, and the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, …, or a role) and "
    "what they allow: s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket"
)
_CONDITIONAL = "use a store with conditional PUTs (If-None-Match): two jobs at once could both believe they committed"


def store_check(url: str, options: Mapping[str, Any]) -> Check:
    """The check of a folder or a bucket prefix."""
    return Check("store", lambda: _store(Store(url, options)), _CREDENTIALS)


def _store(store: Store) -> Finding:
    folder = f"tokenshard-doctor-{uuid.uuid4().hex}"
    existed = not store.is_local or os.path.isdir(store.root)
    tried: list[str] = []
    try:
        return _tried(store, folder, tried)
    finally:
        for name in tried:
            with suppress(StoreError):
                store.delete(name)
        if store.is_local:
            _remove_folders(store, folder, existed)


def _tried(store: Store, folder: str, tried: list[str]) -> Finding:
    """``tried`` gets the names that may exist afterwards."""
    created, raced = f"{folder}/created", f"{folder}/raced"
    tried.append(created)
    if not store.put_if_absent(created, CONTENT):
        return Finding("failed", f"{store.url(created)}: a new name counts as taken", _CONDITIONAL)
    if store.put_if_absent(created, b"another") or store.read(created) != CONTENT:
        return Finding("failed", f"{store.root}: a second create of one name was not refused", _CONDITIONAL)
    if store.read(created, 100, 50) != CONTENT[100:150]:
        return Finding("failed", f"{store.root}: a range read gave other bytes", "use a store with ranged GETs")
    tried.append(raced)
    with ThreadPoolExecutor(WRITERS) as threads:
        wins = list(threads.map(lambda number: store.put_if_absent(raced, b"%d" % number), range(WRITERS)))
    if sum(wins) != 1:
        return Finding("failed", f"{store.root}: {sum(wins)} of {WRITERS} writers of one name won", _CONDITIONAL)
    listed = sorted(entry.name for entry in store.list(folder))
    if listed != [created, raced]:
        text = f"{store.root}: wrote 2 objects, and the list has {len(listed)} of them"
        return Finding("failed", text, "use a store whose lists show at once what was written")
    for name in listed:
        store.delete(name)
    if list(store.list(folder)):
        return Finding("failed", f"{store.root}: deleted objects are still listed", "allow s3:DeleteObject there")
    return Finding("ok", f"{store.root}: create, refused second create, {WRITERS} at once, range read, list, delete")


def _remove_folders(store: Store, folder: str, existed: bool) -> None:
    """What local files needed, where nothing else lies in it."""
    for name in (folder, TEMPORARY, *(() if existed else ("",))):
        with suppress(OSError):
            os.rmdir(store.url(name))
