"""Codecs of installed packages: what a package gives, and the checks around it that make it a codec like any other.

A package's coder sees only flat ids in the alphabet, or streams whose lengths fit and an array of the right size to
write to; what it gives back is checked again. So a fault in it ends as an error that names the package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, Self

import numpy as np

from tokenshard.codecs.base import Bytes, Codec, Grids, Ids, Lengths, sample_sizes
from tokenshard.codecs.blocks import check_ids, check_lengths, ids_buffer, read_only
from tokenshard.errors import FormatError, SpecError, TokenshardError
from tokenshard.extensions import CODECS, extensions, load_extension, package_of
from tokenshard.spec.codec import MAX_MODEL_BYTES, CodecSpec


class Coder(Protocol):
    """What an entry point of `tokenshard.codecs` is: a class that codes blocks of ids, each sample a stream of its own.

    Instances are immutable, picklable and safe to use from several threads. Arrays that they are given cannot be
    written to, but for ``out``. Equal arguments give equal bytes, on any machine.
    """

    @classmethod
    def fit(cls, ids: Ids, grids: Grids, alphabet: int) -> Self:
        """The coder for ids like these: flat, of samples with these token grids (int32 [samples, rank])."""
        ...

    @classmethod
    def from_model(cls, model: bytes | None, alphabet: int) -> Self:
        """The coder that gave these :meth:`model_bytes`. Raises FormatError for others."""
        ...

    def model_bytes(self) -> bytes | None:
        """What decoding needs beside the streams, at most 16 MiB; None where that is nothing."""
        ...

    def encode(self, ids: Ids, grids: Grids) -> tuple[Bytes, Lengths]:
        """Streams of all samples back to back (uint8 [total]) and the bytes of each (int32 [samples])."""
        ...

    def decode(self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids) -> None:
        """Write the ids of all samples to ``out``, back to back (uint16 [ids]; int32 above 65,536 entries).

        Raises FormatError, or ValueError, on streams that do not give exactly the ids of the grids.
        """
        ...


@dataclass(frozen=True)
class ExtensionCodec:
    """A :class:`Coder` as a codec."""

    name: str
    alphabet: int
    package: str
    """NAME==VERSION of the package that is installed here"""
    coder: Coder
    layout: ClassVar[Literal["binary"]] = "binary"
    group: ClassVar[int] = 1
    needs_earlier: ClassVar[bool] = False

    def encode(self, ids: Ids, grids: Grids, earlier: Ids | None = None) -> tuple[Bytes, Lengths]:
        check_ids(ids, sample_sizes(grids), self.alphabet)
        data, lengths = self.coder.encode(read_only(ids), read_only(grids))
        typed = data.dtype == np.uint8 and lengths.dtype == np.int32
        fits = typed and data.ndim == 1 and lengths.shape == (len(grids),)
        if not fits or lengths.min(initial=0) < 0 or lengths.sum(dtype=np.int64) != len(data):
            raise SpecError(f"{self._who}: `encode` must give uint8 streams and their int32 lengths, which add up")
        return data, lengths

    def decode(
        self, data: Bytes, lengths: Lengths, grids: Grids, out: Ids | None = None, earlier: Ids | None = None
    ) -> Ids:
        check_lengths(data, lengths, grids)
        ids = ids_buffer(out, int(sample_sizes(grids).sum()), self.alphabet)
        ids[:] = 0  # what a coder leaves out is the same each time
        with _told(FormatError, f"{self._who} cannot decode", "the shard is damaged"):
            self.coder.decode(read_only(data), read_only(lengths), read_only(grids), ids)
        if len(ids) and (ids.min() < 0 or ids.max() >= self.alphabet):
            raise FormatError(f"{self._who} decoded an id outside the alphabet of {self.alphabet}")
        return ids

    def model_bytes(self) -> bytes | None:
        return self.coder.model_bytes()

    @property
    def _who(self) -> str:
        return f"codec {self.name!r} of {self.package}"


def fit_extension(name: str, ids: Ids, grids: Grids, alphabet: int) -> ExtensionCodec:
    """The installed codec of that name, fitted, and tried on these ids: what is stored can be read again.

    Raises SpecError where it cannot be loaded, or does not keep what :class:`Coder` promises.
    """
    made, package = load_extension(CODECS, name), package_of(CODECS, name)
    with _told(SpecError, f"codec {name!r} of {package} cannot be used", "repair it or choose another codec"):
        codec = ExtensionCodec(name, alphabet, package, made.fit(read_only(ids), read_only(grids), alphabet))
        model = codec.model_bytes()
        if model is not None and not (isinstance(model, bytes) and 0 < len(model) <= MAX_MODEL_BYTES):
            raise ValueError(f"its model is not of 1 to {MAX_MODEL_BYTES} bytes")
        again = ExtensionCodec(name, alphabet, package, made.from_model(model, alphabet))
        data, lengths = codec.encode(ids, grids)
        repeated = again.encode(ids, grids)
        if not (np.array_equal(data, repeated[0]) and np.array_equal(lengths, repeated[1])):
            raise ValueError("its model, read again, encodes the same ids to other bytes")
        if not np.array_equal(again.decode(data, lengths, grids), ids):
            raise ValueError("decoded ids differ from those that were encoded")
        size, last = int(sample_sizes(grids[-1:]).sum()), int(lengths[-1:].sum())
        alone = again.decode(data[len(data) - last :], lengths[-1:], grids[-1:])
        if not np.array_equal(alone, ids[len(ids) - size :]):
            raise ValueError("a sample that is decoded alone has other ids")
    return codec


def open_extension(spec: CodecSpec, model: bytes | None) -> ExtensionCodec:
    """The codec of a package that a shard's spec names. Raises FormatError where the package is not installed."""
    name, version = (spec.package or "==").split("==")
    where = f"column {spec.column} has the codec {spec.codec!r} of the package {name}"
    if spec.codec not in extensions(CODECS):
        raise FormatError(f"{where}, which is not installed; install version {version} of it, if you trust it")
    package = package_of(CODECS, spec.codec)
    if _normalized(package.partition("==")[0]) != _normalized(name):
        raise FormatError(f"{where}, but the one that is installed belongs to {package}; remove that one")
    with _told(FormatError, f"{where}, which cannot open its model", f"version {version} wrote it, here is {package}"):
        coder = load_extension(CODECS, spec.codec).from_model(model, spec.alphabet)
    return ExtensionCodec(spec.codec, spec.alphabet, package, coder)


def package_of_codec(codec: Codec) -> str | None:
    """NAME==VERSION of the package whose codec it is; None for a codec of the format."""
    return codec.package if isinstance(codec, ExtensionCodec) else None


def check_same_package(codec: Codec, spec: CodecSpec) -> None:
    """Raises SpecError unless ``codec`` may write a column that says which version of which package wrote it."""
    if package_of_codec(codec) != spec.package:
        raise SpecError(
            f"column {spec.column} is written with {spec.package}, but {package_of_codec(codec)} is installed; install "
            "that version, or `tokenshard transcode` the dataset with this one"
        )


def _normalized(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@contextmanager
def _told(kind: type[TokenshardError], what: str, remedy: str) -> Iterator[None]:
    """Turns whatever the code of a package raises into one error of that kind."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise kind(f"{what}: {reason}; {remedy}") from error
