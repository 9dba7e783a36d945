"""The `canonical` tokenizer: ids are the bytes of the JPEG file that a pinned encoder makes of the pixels.

After Han et al. 2024 (arXiv:2408.08459). No codebook and nothing learned, except pairs of ids that are joined where a
vocabulary above 256 is wanted (byte-pair encoding, Gage 1994), fitted on a sample of the input.

Every file of one encoder and quality begins with the same markers and tables. They are stored once, in the tokenizer;
the ids of an image are its height and width (two bytes each, big-endian) and what comes behind the tables. Ids and
header together are the file again, bit for bit.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from PIL import __version__ as pillow_version
from pydantic import Field, ValidationError

from tokenshard.compiled import kernel
from tokenshard.errors import FormatError, InputError, SpecError
from tokenshard.spec.base import StoredDocument
from tokenshard.spec.tokenizer import TokenizerSpec
from tokenshard.tokenizers.weights import weights_sha256, weights_to_bytes

BYTES = 256
MAX_VOCABULARY = 4096
MAX_SIDE = 65_535
FITTED_BYTES = 1 << 22
"""Joined pairs are counted on the first so many bytes of the sample."""
LONGEST = 1024
"""Bytes that one id may stand for."""
DIMS = 4
"""Bytes of height and width."""
_END = b"\xff\xd9"
_FRAME, _SCAN = 0xC0, 0xDA
_NO_ID = -1


class CanonicalConfig(StoredDocument):
    """`config` of a canonical tokenizer in `tokenizer.json`."""

    format: Literal["jpeg"] = "jpeg"
    quality: int = Field(ge=1, le=100, description="of libjpeg; chroma at half the resolution (4:2:0)")
    encoder: str = Field(description="program that writes the files; another one may write other bytes")


class CanonicalTokenizer:
    """JPEG files as sequences of ids. One level, and a grid of one axis whose length differs from image to image.

    header: uint8, a file up to the end of its scan header
    pairs: uint16 [vocabulary - 256, 2], id 256 + i stands for the two ids of row i
    """

    suffixes = (".jpg", ".jpeg", ".jpe", ".jfif")

    def __init__(self, config: CanonicalConfig, header: NDArray[np.uint8], pairs: NDArray[np.uint16]) -> None:
        self.config, self.header, self.pairs = config, header, pairs
        self._dims = _dims_place(header.tobytes())
        self._spelled = [bytes([value]) for value in range(BYTES)]
        for first, second in pairs.tolist():
            self._spelled.append(self._spelled[first] + self._spelled[second])

    @classmethod
    def fit(
        cls, images: Sequence[NDArray[np.uint8]], seed: int, *, q: int = 25, vocabulary: int = BYTES
    ) -> CanonicalTokenizer:
        """The tokenizer of quality ``q``; ``vocabulary`` - 256 pairs are joined, fewer where none comes twice."""
        config = CanonicalConfig(quality=q, encoder=encoder_version())
        file = _jpeg(np.zeros((8, 8, 3), np.uint8), q)
        header = np.frombuffer(file[: _scan_place(file)], np.uint8)
        plain = cls(config, header, np.empty((0, 2), np.uint16))
        return cls(config, header, _fitted_pairs((plain.encode(image[None])[0, 0] for image in images), vocabulary))

    @classmethod
    def from_tensors(cls, spec: TokenizerSpec, tensors: dict[str, NDArray[Any]]) -> CanonicalTokenizer:
        """The tokenizer of a stored description. Raises :class:`FormatError` where the two do not fit."""
        try:
            config = CanonicalConfig.model_validate(spec.config)
        except ValidationError as error:
            first = error.errors()[0]
            raise FormatError(f"config.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        if len(spec.levels) != 1 or not BYTES <= spec.levels[0] <= MAX_VOCABULARY or spec.downsample:
            raise FormatError(
                f"levels {list(spec.levels)} and downsample {list(spec.downsample)} do not fit a canonical tokenizer: "
                f"one level of {BYTES} to {MAX_VOCABULARY} ids, laid out over no pixels"
            )
        header, pairs = tensors.get("header"), tensors.get("pairs")
        if tensors.keys() != {"header", "pairs"} or header is None or pairs is None:
            raise FormatError(f"the weights hold {sorted(tensors)} instead of header and pairs")
        if header.dtype != np.uint8 or header.ndim != 1 or len(header) > MAX_SIDE:
            raise FormatError(f"tensor header is {header.dtype} {list(header.shape)}, not some bytes")
        if pairs.dtype != np.uint16 or pairs.shape != (spec.levels[0] - BYTES, 2):
            raise FormatError(f"tensor pairs is {pairs.dtype} {list(pairs.shape)}, not [{spec.levels[0] - BYTES}, 2]")
        if (pairs >= BYTES + np.arange(len(pairs))[:, None]).any():
            raise FormatError("tensor pairs joins ids that come later")
        lengths = [1] * BYTES
        for one, other in pairs.tolist():
            lengths.append(lengths[one] + lengths[other])
        if max(lengths) > LONGEST:
            raise FormatError(f"tensor pairs joins ids to more than {LONGEST} bytes")
        return cls(config, header, pairs)

    @cached_property
    def spec(self) -> TokenizerSpec:
        """Description of this tokenizer, with the hash of its weights."""
        return TokenizerSpec(
            kind="canonical",
            levels=(BYTES + len(self.pairs),),
            downsample=(),
            config=self.config.model_dump(mode="json"),
            numerics="integer",
            weights_sha256=weights_sha256(weights_to_bytes(self.tensors())),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Ids are no grid over the pixels: always a SpecError."""
        raise SpecError("a canonical tokenizer has no token grid: how many ids an image has depends on what it shows")

    def encode(self, images: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """One image uint8 [1, height, width, 3] -> uint16 [1, 1, N].

        Raises :class:`InputError` on other arrays, :class:`SpecError` where the pinned encoder is not the one here.
        """
        if images.ndim != 4 or len(images) != 1 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise InputError(f"expected one image uint8 [1, height, width, 3], not {images.dtype} {list(images.shape)}")
        if not all(1 <= side <= MAX_SIDE for side in images.shape[1:3]):
            raise InputError(f"{images.shape[1]} x {images.shape[2]} pixels; JPEG holds sides of 1 to {MAX_SIDE}")
        if (here := encoder_version()) != self.config.encoder:
            raise SpecError(
                f"the ids of this tokenizer are files written by {self.config.encoder}; here is {here}, which may "
                "write other bytes: install that version, or convert to a new dataset"
            )
        file = _jpeg(images[0], self.config.quality)
        size, place = len(self.header), self._dims
        if file[:place] + file[place + DIMS : size] != self._header_but_dims or file[-2:] != _END:
            raise SpecError("the encoder here writes other tables than the tokenizer has; convert to a new dataset")
        ids = np.frombuffer(file[place : place + DIMS] + file[size:-2], np.uint8).astype(np.uint16)
        count = len(ids)
        for number, (first, second) in enumerate(self.pairs.tolist()):
            count = _join(ids, count, first, second, BYTES + number)
        return ids[None, None, :count]

    def file(self, codes: NDArray[Any]) -> bytes:
        """The JPEG file that the ids [1, N] of an image are, as the encoder wrote it.

        Raises :class:`FormatError` on ids outside the vocabulary.
        """
        ids = codes.reshape(-1)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(self._spelled):
            raise FormatError(f"ids {ids.min()} to {ids.max()} do not fit a vocabulary of {len(self._spelled)}")
        content = b"".join([self._spelled[value] for value in ids.tolist()])
        if len(content) < DIMS:
            raise FormatError(f"{len(content)} bytes are no image")
        header = self.header.tobytes()
        return header[: self._dims] + content[:DIMS] + header[self._dims + DIMS :] + content[DIMS:] + _END

    def decode(self, codes: NDArray[Any], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Ids [1, 1, N] -> uint8 [1, height, width, 3]: the decoded file. Raises :class:`FormatError` where it is none,
        or is not of ``size``."""
        content = self.file(codes)
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                if size is not None and image.size != size[::-1]:
                    raise FormatError(f"the ids are an image of {image.height} x {image.width} pixels, not {size}")
                return np.asarray(image.convert("RGB"))[None]
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise FormatError(f"the ids are no JPEG file: {error}") from error

    def tensors(self) -> dict[str, NDArray[Any]]:
        """`header` (uint8) and `pairs` (uint16)."""
        return {"header": self.header, "pairs": self.pairs}

    @cached_property
    def _header_but_dims(self) -> bytes:
        header = self.header.tobytes()
        return header[: self._dims] + header[self._dims + DIMS :]


def encoder_version() -> str:
    """The program that writes JPEG files here."""
    library = "libjpeg-turbo" if features.check_feature("libjpeg_turbo") else "libjpeg"
    version = features.version_feature("libjpeg_turbo") or features.version_codec("jpg")
    return f"Pillow {pillow_version}, {library} {version}"


def _jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=False, progressive=False)
    return file.getvalue()


def _segments(file: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end of the segment) of the header, up to the scan. Raises FormatError."""
    found, place = [], 2
    while file[:2] == b"\xff\xd8" and place + 4 <= len(file) and file[place] == 0xFF:
        end = place + 2 + int.from_bytes(file[place + 2 : place + 4], "big")
        found.append((file[place + 1], place, end))
        if found[-1][0] == _SCAN and end <= len(file):
            return found
        place = end
    raise FormatError("not the header of a JPEG file")


def _scan_place(file: bytes) -> int:
    """Where the entropy-coded data begins."""
    return _segments(file)[-1][2]


def _dims_place(header: bytes) -> int:
    """Where height and width stand: behind marker, length and precision of the frame header."""
    segments = _segments(header)
    places = [start + 5 for marker, start, end in segments if marker == _FRAME and end >= start + 5 + DIMS]
    if len(places) != 1 or segments[-1][2] != len(header):
        raise FormatError("not the header of a baseline JPEG file with one frame")
    return places[0]


# -- pairs ------------------------------------------------------------------------------------------------------------


def _fitted_pairs(files: Any, vocabulary: int) -> NDArray[np.uint16]:
    """The pairs to join, most frequent first; among equals the one with the lowest ids."""
    parts, total = [], 0
    for ids in files if vocabulary > BYTES else ():
        parts += [ids.astype(np.int32), np.array([_NO_ID], np.int32)]  # pairs do not reach into the next file
        total += len(ids)
        if total >= FITTED_BYTES:
            break
    ids = np.concatenate(parts) if parts else np.empty(0, np.int32)
    pairs: list[tuple[int, int]] = []
    lengths = np.ones(vocabulary, np.int64)
    count = len(ids)
    while len(pairs) < vocabulary - BYTES:
        left, right = ids[: count - 1].astype(np.int64), ids[1:count]
        inside = (left >= 0) & (right >= 0) & (lengths[left] + lengths[right] <= LONGEST)
        counts = np.bincount(left[inside] * vocabulary + right[inside], minlength=1)
        best = int(counts.argmax())
        if counts[best] < 2:
            break
        pairs.append(divmod(best, vocabulary))
        joined = BYTES + len(pairs) - 1
        lengths[joined] = lengths[list(pairs[-1])].sum()
        count = _join(ids, count, *pairs[-1], joined)
    return np.array(pairs, np.uint16).reshape(-1, 2)


@kernel()
def _join(ids: NDArray[Any], count: int, first: int, second: int, joined: int) -> int:
    """Put ``joined`` for each ``first``, ``second`` in ids[:count], from left to right and in place; the new count."""
    place, out = 0, 0
    while place < count:
        if place + 1 < count and ids[place] == first and ids[place + 1] == second:
            ids[out] = joined
            place += 2
        else:
            ids[out] = ids[place]
            place += 1
        out += 1
    return out
