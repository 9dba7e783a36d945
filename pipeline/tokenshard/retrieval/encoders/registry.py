"""Page encoders by name, and as files of a dataset. A new kind of encoder is a file of its own and a line here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from tokenshard.errors import FormatError, SpecError, TokenshardError
from tokenshard.retrieval.encoders.base import PageEncoder
from tokenshard.spec.documents import EncoderSpec
from tokenshard.store import Store
from tokenshard.tokenizers.weights import weights_from_bytes, weights_sha256, weights_to_bytes

DESCRIPTION = "encoder.json"
FITTED = "encoder.safetensors"
FILES = (FITTED, DESCRIPTION)
"""In the order in which they are written."""
_MAX_DESCRIPTION = 1 << 20
_MAX_FITTED = 1 << 28


def open_encoder(name: str, device: str = "cpu", numerics: str = "fp32") -> PageEncoder:
    """The encoder of that name: ``minilm[:DIMENSIONS[,TOKENS]]``, ``patch-dct``, ``hf:FOLDER``.

    Raises SpecError where there is none, or it does not run on that device and in that numerics mode.
    """
    kind, _, options = name.partition(":")
    if kind not in ENCODERS:
        raise SpecError(f"encoder {name!r} is unknown; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[kind](options, device, numerics)


def _minilm(options: str, device: str, numerics: str) -> PageEncoder:
    from tokenshard.retrieval.encoders.minilm import DIMENSIONS, MiniLM

    numbers = options.split(",") if options else [str(DIMENSIONS)]
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers) or numerics != "fp32":
        raise SpecError(f"encoder minilm:{options} in {numerics}: expected minilm:DIMENSIONS,TOKENS in fp32")
    return MiniLM(int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else None, device)


def _patch_dct(options: str, device: str, numerics: str) -> PageEncoder:
    from tokenshard.retrieval.encoders.patch_dct import PatchDct

    if options or device != "cpu" or numerics != "fp32":
        raise SpecError("encoder patch-dct has no options, and runs on CPUs in fp32")
    return PatchDct()


def _transformers(options: str, device: str, numerics: str) -> PageEncoder:
    from tokenshard.retrieval.encoders.transformers import open_transformers

    return open_transformers(options, device, numerics)


def _ready(options: str, device: str, numerics: str) -> PageEncoder:
    from tokenshard.retrieval.encoders.ready import ReadyVectors

    if not options.isdecimal():
        raise SpecError(f"encoder vectors:{options}: expected vectors:DIMENSIONS")
    return ReadyVectors(int(options))


ENCODERS: Mapping[str, Callable[[str, str, str], PageEncoder]] = {
    "minilm": _minilm,
    "patch-dct": _patch_dct,
    "hf": _transformers,
    "vectors": _ready,
}


# -- in a dataset -----------------------------------------------------------------------------------------------------


def save_encoder(encoder: PageEncoder, store: Store, prefix: str) -> None:
    """Write what queries need: the description, and what was fitted. Pretrained weights stay where they are.

    Saving the same again changes nothing; raises TokenshardError where another encoder is there already.
    """
    put_encoder(encoder_files(encoder), store, prefix)


def encoder_files(encoder: PageEncoder) -> dict[str, bytes]:
    """Its files by name. Raises SpecError where it was to be fitted to pages, and was not."""
    description = json.dumps(encoder.spec.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
    return {FITTED: weights_to_bytes(encoder.tensors()), DESCRIPTION: description.encode()}


def read_encoder_files(store: Store, prefix: str) -> dict[str, bytes]:
    """The files of the encoder saved below ``prefix``. Raises FormatError where they are missing or damaged."""
    spec, place = read_encoder_spec(store, prefix), f"{prefix}/{FITTED}".lstrip("/")
    fitted = _read(store, place, _MAX_FITTED)
    if spec.fitted_sha256 is not None and weights_sha256(fitted) != spec.fitted_sha256:
        raise FormatError(f"{store.url(place)}: damaged (SHA-256 differs); copy it again")
    return {FITTED: fitted, DESCRIPTION: _read(store, f"{prefix}/{DESCRIPTION}".lstrip("/"), _MAX_DESCRIPTION)}


def put_encoder(files: Mapping[str, bytes], store: Store, prefix: str) -> None:
    """Write the files of an encoder, as :func:`save_encoder` does."""
    for name in FILES:
        content = files[name]
        place = f"{prefix}/{name}".lstrip("/")
        if not store.put_if_absent(place, content) and store.read(place) != content:
            raise TokenshardError(f"{store.url(place)} belongs to another encoder; choose a new folder")


def load_encoder(store: Store, prefix: str, name: str | None = None, device: str = "cpu") -> PageEncoder:
    """The encoder saved below ``prefix``, with its pretrained weights. ``name``: where these are now, e.g. `hf:FOLDER`.

    Raises FormatError where the files are missing or damaged, or the weights are not those that made the vectors.
    """
    spec = read_encoder_spec(store, prefix)
    fitted = weights_from_bytes(read_encoder_files(store, prefix)[FITTED])
    encoder = open_encoder(name or spec.name, device, spec.numerics).with_tensors(fitted)
    if encoder.spec.fingerprint != spec.fingerprint:
        raise FormatError(
            f"{name or spec.name}: not the encoder that made the vectors of {store.url(prefix)}; its weights or "
            "settings are others"
        )
    return encoder


def read_encoder_spec(store: Store, prefix: str) -> EncoderSpec:
    """The description of the encoder saved below ``prefix``. Raises FormatError where it is missing or damaged."""
    place = f"{prefix}/{DESCRIPTION}".lstrip("/")
    try:
        return EncoderSpec.model_validate_json(_read(store, place, _MAX_DESCRIPTION))
    except ValidationError as error:
        raise FormatError(f"{store.url(place)}: not the description of a page encoder") from error


def _read(store: Store, name: str, most: int) -> bytes:
    try:
        if store.size(name) > most:
            raise FormatError(f"{store.url(name)}: larger than the {most} bytes allowed")
        return store.read(name)
    except FileNotFoundError as error:
        raise FormatError(f"{store.url(name)}: no such file; is this a dataset of documents?") from error
