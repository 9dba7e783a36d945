"""What may be removed from a dataset folder: files that no version or index lists and no unfinished job needs."""

from __future__ import annotations

from tokenshard.engine.job_folder import JobFolder
from tokenshard.errors import JobError
from tokenshard.retrieval.index import unlisted
from tokenshard.shards.manifest import list_versions, read_manifest
from tokenshard.store import Store


def leftovers(output: Store, journal: bool = False) -> list[str]:
    """Names of data and rejects files that no manifest lists, and of files of search indexes that were built anew since
    (with ``journal``: all of `_job/` too).

    Raises SpecError where there is no dataset, and JobError while a job that was started there is not finished.
    """
    latest = read_manifest(output)
    if JobFolder(output, latest.version + 1).plan() is not None:
        raise JobError(f"{output.root}: a job was started and is not finished; finish it first, by the same command")
    listed: set[str] = set()
    for version in list_versions(output):
        manifest = read_manifest(output, version)
        listed.update(shard.path for shard in manifest.shards)
        listed.update(rejects.path for rejects in manifest.rejects)
    folders = ["data", "rejects", *(["_job"] if journal else [])]
    names = [entry.name for folder in folders for entry in output.list(folder) if entry.name not in listed]
    return names + unlisted(output)
