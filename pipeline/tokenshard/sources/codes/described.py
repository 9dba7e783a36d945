"""The description that an export lays beside its files (`tokenshard.json`), with the types of its columns."""

from __future__ import annotations

import base64
import binascii

import pyarrow as pa
from pydantic import ValidationError

from tokenshard.errors import FormatError
from tokenshard.spec.exchange import DESCRIPTION, EXPORT_VERSION, ExportDescription
from tokenshard.store import Store

MAX_BYTES = 1 << 26


def read_description(store: Store, exchange: str) -> ExportDescription | None:
    """The description of an export in that format below the root of ``store``, if there is one.

    Raises FormatError when it is damaged or too new.
    """
    if not store.exists(DESCRIPTION):
        return None
    where = store.url(DESCRIPTION)
    try:
        described = ExportDescription.model_validate_json(store.read(DESCRIPTION, 0, MAX_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise FormatError(
            f"{where}: damaged ({reason}); export again, or remove it to go by the files alone"
        ) from error
    if described.format_version > EXPORT_VERSION:
        raise FormatError(
            f"{where}: written by a newer tokenshard (version {described.format_version} of the description, this one "
            f"reads {EXPORT_VERSION}); upgrade with: pip install --upgrade tokenshard"
        )
    described_schema(described, where)
    return described if described.exchange == exchange else None


def described_schema(described: ExportDescription, where: str = DESCRIPTION) -> pa.Schema:
    """Names and types of the exported columns. Raises FormatError when they are damaged."""
    if not described.arrow_schema:
        return pa.schema([])
    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(described.arrow_schema, validate=True)))
    except (pa.ArrowException, OSError, ValueError, binascii.Error) as error:
        raise FormatError(f"{where}: arrow_schema is damaged ({error}); export again, or remove the file") from error
    if schema.names != [column.name for column in described.columns]:
        raise FormatError(f"{where}: arrow_schema and columns differ; export again, or remove the file")
    return schema
