"""Samples that a tokenizer encodes, whatever their modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenshard.engine.encoding import Encoded, Encoding, Window, cut
from tokenshard.engine.job_folder import PilotResult
from tokenshard.errors import SpecError
from tokenshard.sources.base import CodeLayout, MadeColumn, Sample
from tokenshard.spec.conversion import TokenizeJob
from tokenshard.spec.manifest import TokenizerEntry
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.store import Store
from tokenshard.tokenizers.base import ClipTokenizer, Tokenizer
from tokenshard.tokenizers.folder import load_tokenizer, read_tables, read_tokenizer_spec, save_tokenizer
from tokenshard.tokenizers.frames import NUM_FRAMES, encode_frames
from tokenshard.tokenizers.packaged import saved_tokenizer
from tokenshard.tokenizers.registry import KINDS, check_trainable, parse_tokenizer, tokenizer_class, trainable_class


@dataclass(frozen=True)
class Axes:
    """The first axes of a decoded sample, which its tokens cover."""

    extents: tuple[str, ...]
    """columns that hold their sizes"""
    window: tuple[int, ...]
    """most that the pilot keeps of each"""
    tokenizers: frozenset[str]
    """modalities of tokenizers that can encode it"""


AXES: Mapping[str, Axes] = {
    "image": Axes(("height", "width"), (256, 256), frozenset({"image"})),
    "video": Axes(("frames", "height", "width"), (8, 256, 256), frozenset({"image", "video", "clip"})),
    "grid": Axes(("height", "width"), (256, 256), frozenset({"grid"})),
}
"""By what a job encodes; a new modality is a line here."""
GROUPS = "groups"
"""Column with the groups of frames of a clip, which are the steps of a token grid in time."""


class Tokenizing(Encoding):
    """The encoding of a job with a tokenizer: fitted on the input, or a saved one."""

    def __init__(self, spec: TokenizeJob) -> None:
        self._spec, self._axes = spec, AXES[spec.dataset_kind]

    @property
    def frames(self) -> int | None:
        return self._axes.window[0] if self._axes.extents[0] == "frames" else None

    def window(self, sample: Sample, draw: np.random.Generator) -> Window:
        limits = self._axes.window
        part = sample.data[cut(sample.data.shape[: len(limits)], limits, draw)]
        return Window(replace(sample, data=np.ascontiguousarray(part), columns={}), sample.data.size / part.size)

    def fit(self, windows: Sequence[Window], output: Store, inputs: int) -> tuple[TokenizerEntry, TokenizerEncoder]:
        tables: Sequence[bytes] = ()
        if _is_kind(self._spec):
            kind, options = parse_tokenizer(self._spec.tokenizer)
            if self._spec.encoder is not None:
                options["encoder"] = self._spec.encoder
            data = [window.sample.data for window in windows]
            images = [image for sample in data for image in sample] if len(self._axes.extents) > 2 else data
            tokenizer = trainable_class(kind).fit(images, self._spec.seed, **options)
        else:
            saved = saved_tokenizer(self._spec.tokenizer, self._spec.storage)
            tokenizer = placed(_with_encoder(load_tokenizer(saved), self._spec), self._spec)
            tables = read_tables(saved, tokenizer.spec)
        save_tokenizer(tokenizer, output, _folder(tokenizer.spec.fingerprint), tables)
        numerics = self._spec.stated_numerics(tokenizer.spec.numerics)
        entry = TokenizerEntry(fingerprint=tokenizer.spec.fingerprint, numerics=numerics)
        return entry, TokenizerEncoder(tokenizer, len(self._axes.extents), tables)

    def layout(self, tokenizer: TokenizerEntry, output: Store) -> CodeLayout:
        described = read_tokenizer_spec(output, _folder(tokenizer.fingerprint))
        extents = self._axes.extents if described.downsample else ()
        missing = len(extents) - len(described.downsample)
        downsample = (*(1 for _ in extents[:missing]), *described.downsample) if extents else ()
        columns, streams = _made(described)
        if described.modality == "video":  # the first group is one frame alone, the last may lack some
            extents, downsample, columns = (GROUPS, *extents[1:]), (1, *downsample[1:]), {NUM_FRAMES: "int32"}
        return CodeLayout(
            alphabets=described.levels,
            grid=(None,) * max(1, len(extents)),
            extents=extents,
            downsample=downsample,
            kind=self._spec.dataset_kind,
            preprocess=self._spec.source.output_fields(),
            made=tuple(MadeColumn(name, arrow_type) for name, arrow_type in columns.items()),
            streams=streams,
        )

    def load(self, pilot: PilotResult, output: Store) -> TokenizerEncoder:
        stored = load_tokenizer(output, _folder(pilot.tokenizer))
        tokenizer = placed(_with_encoder(stored, self._spec), self._spec)
        return TokenizerEncoder(tokenizer, len(self._axes.extents))


@dataclass(frozen=True)
class TokenizerEncoder:
    """A tokenizer as the engine uses it; tokens cover the first ``rank`` axes of a sample, or are a mere sequence."""

    tokenizer: Tokenizer
    rank: int
    tables: Sequence[bytes] = ()

    def encode(self, samples: Sequence[Sample]) -> Sequence[Encoded]:
        if isinstance(self.tokenizer, ClipTokenizer):
            return [Encoded(*self.tokenizer.encode_clip(sample.data)) for sample in samples]
        if self._is_video:
            clips = self.tokenizer.encode(np.stack([sample.data for sample in samples]))
            frames = [len(sample.data) for sample in samples]
            return [Encoded(ids, {NUM_FRAMES: count}) for ids, count in zip(clips, frames, strict=True)]
        if self._is_sequence:
            return [Encoded(self.tokenizer.encode(sample.data[None])[0]) for sample in samples]
        if self.rank > len(self.tokenizer.spec.downsample):
            return [Encoded(encode_frames(self.tokenizer, sample.data)) for sample in samples]
        return [Encoded(ids) for ids in self.tokenizer.encode(np.stack([sample.data for sample in samples]))]

    def size(self, sample: Sample, ids: NDArray[Any]) -> tuple[int, ...]:
        if self._is_video:
            return ids.shape[1], *sample.data.shape[1:3]
        return ids.shape[1:] if self._is_sequence else sample.data.shape[: self.rank]

    @property
    def _is_video(self) -> bool:
        return self.tokenizer.spec.modality == "video"

    @property
    def _is_sequence(self) -> bool:
        return not self.tokenizer.spec.downsample


def placed(tokenizer: Tokenizer, spec: TokenizeJob) -> Tokenizer:
    """A tokenizer on the device and in the numerics mode of a job. Raises SpecError where it has no such mode."""
    if spec.numerics is None and spec.device == "cpu" and not spec.compiled:
        return tokenizer
    from tokenshard.tokenizers.trained import TrainedTokenizer

    if not isinstance(tokenizer, TrainedTokenizer):
        raise SpecError(
            f"a {tokenizer.spec.kind} tokenizer computes in {tokenizer.spec.numerics} on CPUs only; numerics, device "
            "and compile are for conv tokenizers, e.g. --tokenizer default"
        )
    return tokenizer.on(spec.device, spec.numerics, spec.compiled)


def check_tokenizer(spec: TokenizeJob) -> None:
    """Raises SpecError or FormatError, before any work, where the tokenizer is not one that can be fitted or loaded."""
    saved = saved_tokenizer(spec.tokenizer, spec.storage)
    if _is_kind(spec) or not saved.exists("tokenizer.json"):
        kind, _ = parse_tokenizer(spec.tokenizer)
        check_trainable(kind)
        _check_modality(KINDS[kind].modality, spec)
        if spec.encoder is not None and not KINDS[kind].lent:
            raise SpecError(f"{spec.tokenizer}: has an encoder of its own; leave {spec.encoder!r} out")
        if spec.numerics is not None or spec.device != "cpu" or spec.compiled:
            raise SpecError(
                f"{spec.tokenizer}: numerics, device and compile are for conv tokenizers, e.g. --tokenizer default"
            )
    else:
        described = placed(_with_encoder(load_tokenizer(saved), spec), spec).spec
        _check_modality(described.modality, spec)
        read_tables(saved, described)


def _check_modality(modality: str, spec: TokenizeJob) -> None:
    """Raises SpecError for a tokenizer of something else than the job converts."""
    allowed = AXES[spec.dataset_kind].tokenizers
    if modality not in allowed:
        raise SpecError(
            f"{spec.tokenizer}: a tokenizer of {modality} samples; these are {spec.dataset_kind} samples, which take "
            f"one of {' or '.join(sorted(allowed))}"
        )


def _with_encoder(tokenizer: Tokenizer, spec: TokenizeJob) -> Tokenizer:
    """The tokenizer with the encoder of the spec, where it needs one that is not part of it."""
    if spec.encoder is None and tokenizer.spec.kind not in {"conv", "clip-codebook"}:
        return tokenizer  # without an import of torch
    from tokenshard.tokenizers.encoders import with_encoder

    return with_encoder(tokenizer, spec.encoder)


def _made(described: TokenizerSpec) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """The columns that a tokenizer makes (name -> Arrow type), and those of them that are streams."""
    found = tokenizer_class(described.kind)
    return getattr(found, "made", {}), getattr(found, "streams", ())


def _is_kind(spec: TokenizeJob) -> bool:
    """Whether the spec names a kind of tokenizer, not a saved one."""
    return spec.tokenizer.partition(":")[0] in KINDS


def _folder(fingerprint: str) -> str:
    return f"tokenizer/{fingerprint}"
