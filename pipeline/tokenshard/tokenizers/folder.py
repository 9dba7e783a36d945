"""A tokenizer as a folder: ``tokenizer.json``, ``model.safetensors``, perhaps entropy tables. Each dataset has its own.

Files are created once and never changed. What is read back is checked before it is used: format and version, the hash
of the weights, and the names, dtypes and shapes of the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from tokenshard.errors import FormatError, SpecError, TokenshardError
from tokenshard.spec.tokenizer import PAGES, TokenizerSpec
from tokenshard.store import Store
from tokenshard.tokenizers.base import Tokenizer
from tokenshard.tokenizers.registry import tokenizer_class
from tokenshard.tokenizers.weights import weights_from_bytes, weights_sha256, weights_to_bytes

DESCRIPTION = "tokenizer.json"
WEIGHTS = "model.safetensors"
FORMAT = "tokenshard-tokenizer"
FORMAT_VERSION = 1
MAX_DESCRIPTION_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 1 << 32
MAX_TABLES_BYTES = 1 << 22


def save_tokenizer(tokenizer: Tokenizer, store: Store, prefix: str, tables: Sequence[bytes] = ()) -> None:
    """Write the files below ``prefix``, the description last. Equal tokenizers write equal bytes.

    ``tables`` are those the description names. Saving the same tokenizer again changes nothing; raises
    :class:`TokenshardError` if another one is there already.
    """
    description = json.dumps(tokenizer.spec.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    _put(store, prefix, description.encode(), weights_to_bytes(tokenizer.tensors()), tables)


def _put(
    store: Store,
    prefix: str,
    description: bytes,
    weights: bytes,
    tables: Sequence[bytes],
    further: Mapping[str, bytes] | None = None,
) -> None:
    files = {f"{hashlib.sha256(table).hexdigest()}.tsm": table for table in tables}
    for file, content in {**files, **(further or {}), WEIGHTS: weights, DESCRIPTION: description}.items():
        name = _join(prefix, file)
        if not store.put_if_absent(name, content) and store.read(name) != content:
            raise TokenshardError(f"{store.url(name)} belongs to another tokenizer; save this one to a new folder")


def load_tokenizer(store: Store, prefix: str = "") -> Tokenizer:
    """The tokenizer saved below ``prefix``.

    Raises :class:`FormatError` with the file and the reason when it is missing, damaged, inconsistent or too new;
    :class:`SpecError` where the ids are those of page vectors, which no tokenizer decodes.
    """
    spec = read_tokenizer_spec(store, prefix)
    name = _join(prefix, WEIGHTS)
    weights = _read(store, name, MAX_WEIGHTS_BYTES)
    try:
        return tokenizer_from(spec, weights)
    except (FormatError, SpecError) as error:
        raise type(error)(f"{store.url(name)}: {error}") from error


def read_tables(store: Store, spec: TokenizerSpec, prefix: str = "") -> tuple[bytes, ...]:
    """The entropy tables (`.tsm` files) that come with a tokenizer, one a level; none where it has none.

    Raises :class:`FormatError` when one is missing or damaged.
    """
    if len(spec.tables) not in (0, len(spec.levels)):
        raise FormatError(f"{store.url(prefix)}: {len(spec.tables)} entropy tables for {len(spec.levels)} levels")
    return tuple(_read_table(store, _join(prefix, f"{sha256}.tsm"), sha256) for sha256 in spec.tables)


def _read_table(store: Store, name: str, sha256: str) -> bytes:
    data = _read(store, name, MAX_TABLES_BYTES)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise FormatError(f"{store.url(name)}: damaged (SHA-256 differs); copy it again")
    return data


def copy_tokenizer(store: Store, output: Store) -> TokenizerSpec:
    """Copy the tokenizer saved in ``store`` into the dataset ``output``, byte for byte, whatever its kind.

    Raises :class:`FormatError` when it is missing or damaged.
    """
    spec = read_tokenizer_spec(store)
    weights = _read(store, WEIGHTS, MAX_WEIGHTS_BYTES)
    _check_weights(spec, weights)
    description = _read(store, DESCRIPTION, MAX_DESCRIPTION_BYTES)
    further = {name: _read(store, _checked_name(store, name), MAX_WEIGHTS_BYTES) for name in spec.files}
    _put(output, f"tokenizer/{spec.fingerprint}", description, weights, read_tables(store, spec), further)
    return spec


def _checked_name(store: Store, name: str) -> str:
    """The name of a further file. Raises :class:`FormatError` for one that leads out of the folder."""
    if name in {"", ".", "..", WEIGHTS, DESCRIPTION} or "/" in name or "\\" in name:
        raise FormatError(f"{store.url(DESCRIPTION)}: {name!r} is no name of a file beside it")
    return name


def tokenizer_from(spec: TokenizerSpec, weights: bytes) -> Tokenizer:
    """The tokenizer of a description and the bytes of its weights file; :class:`FormatError` if they do not fit."""
    _check_weights(spec, weights)
    if spec.kind == PAGES:
        raise SpecError(
            "its ids stand for vectors of pages, which are searched and not decoded: tokenshard search query OUT TEXT, "
            "or tokenshard.retrieval.search.PageSearch"
        )
    try:
        cls = tokenizer_class(spec.kind)
    except SpecError as error:
        raise FormatError(f"{error}; a newer tokenshard may be needed") from error
    return cls.from_tensors(spec, weights_from_bytes(weights))


def _check_weights(spec: TokenizerSpec, weights: bytes) -> None:
    found = weights_sha256(weights)
    if found != spec.weights_sha256:
        raise FormatError(
            f"SHA-256 of the weights is {found[:16]}…, the description says {spec.weights_sha256[:16]}…; "
            "the file is damaged or was replaced: copy it again"
        )


def read_tokenizer_spec(store: Store, prefix: str = "") -> TokenizerSpec:
    """The description of the tokenizer saved below ``prefix``; :class:`FormatError` as for :func:`load_tokenizer`."""
    name = _join(prefix, DESCRIPTION)
    url = store.url(name)
    try:
        content = json.loads(_read(store, name, MAX_DESCRIPTION_BYTES))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{url}: not a JSON document ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FormatError(f"{url}: not the description of a tokenizer (format is not {FORMAT!r})")
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise FormatError(f"{url}: format version {version} needs a newer tokenshard (this one reads {FORMAT_VERSION})")
    try:
        return TokenizerSpec.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise FormatError(f"{url}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _read(store: Store, name: str, limit: int) -> bytes:
    try:
        size = store.size(name)
        if size > limit:
            raise FormatError(f"{store.url(name)}: {size} bytes, more than the {limit} allowed")
        return store.read(name)
    except FileNotFoundError as error:
        raise FormatError(
            f"{store.url(name)}: no such file; a saved tokenizer has {DESCRIPTION} and {WEIGHTS}"
        ) from error


def _join(prefix: str, name: str) -> str:
    return f"{prefix.strip('/')}/{name}".lstrip("/")
