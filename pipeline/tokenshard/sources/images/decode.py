"""Bytes of an image file -> uint8 RGB pixels, upright and in the size the job asks for.

Rules, the same for every input form:

* EXIF orientation is applied; unreadable EXIF is ignored. Of animations and multi-page files the first frame is taken.
* Transparency is composited on the background. Colour profiles are not applied. CMYK becomes RGB by Pillow's formula.
* 16 bits a channel become 8 by dropping the low byte. 32-bit integers within [0, 65535] are taken for 16-bit values.
  Floats within [0, 1] are scaled by 255, floats within [0, 255] rounded. Any other range is stretched to [0, 255].
* Damaged and truncated files are errors, never guesses.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tokenshard.errors import InputError
from tokenshard.spec.images import ImageSourceSpec

try:
    from pillow_heif import register_heif_opener

    register_heif_opener()
except ImportError:
    pass

Pixels = NDArray[np.uint8]

# Pillow's own bomb check compares with a global of the process. Here each image is checked against its job's limit,
# after its header was read and before its pixels are.
Image.MAX_IMAGE_PIXELS = None
Image.init()
# What Pillow warns about either does no harm or ends as a reject.
warnings.filterwarnings("ignore", module=r"PIL\.")
# Formats a data set may hold; left out are those that run other programs (EPS, WMF). TGA has no magic number: last.
_FORMATS: list[str] = [
    name
    for name in (
        *("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "AVIF", "HEIF", "JPEG2000"),
        *("PPM", "ICO", "SGI", "PCX", "DDS", "QOI", "SUN", "TGA"),
    )
    if name in Image.OPEN
]
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes, spec: ImageSourceSpec) -> Pixels:
    """Pixels of an image file (uint8 [height, width, 3]).

    Raises InputError for whatever is wrong with it; the error behind it (Pillow's) is its ``__cause__``.
    """
    try:
        with _opened(data, spec.max_pixels) as image:
            image.load()
            return fitted(_rgb(_upright(image), spec.background), spec)
    except Exception as error:
        raise InputError(_reason(error, data)) from error


def decode_grey(data: bytes, height: int, width: int, spec: ImageSourceSpec) -> Pixels:
    """Pixels of one raw grey record (``height * width`` bytes), as RGB."""
    if len(data) != height * width:
        raise InputError(f"record has {len(data)} of {height * width} bytes; the file is truncated")
    return fitted(Image.frombytes("L", (width, height), data).convert("RGB"), spec)


def fitted(image: Image.Image, spec: ImageSourceSpec) -> Pixels:
    """An RGB image brought to the size of the spec by its fit policy (uint8 [height, width, 3])."""
    if spec.height_width is None:
        return np.array(image)
    (height, width), resample = spec.height_width, _RESAMPLING[spec.interpolation]
    if spec.fit == "resize":
        return np.array(image.resize((width, height), resample))
    if spec.fit == "center-crop":
        return np.array(image.resize((width, height), resample, _centre(image, height, width)))
    if image.width * height >= image.height * width:
        inner = (width, max(1, (2 * image.height * width + image.width) // (2 * image.width)))
    else:
        inner = (max(1, (2 * image.width * height + image.height) // (2 * image.height)), height)
    canvas = Image.new("RGB", (width, height), spec.background)
    canvas.paste(image.resize(inner, resample), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.array(canvas)


def _centre(image: Image.Image, height: int, width: int) -> tuple[float, float, float, float]:
    """Box of the source pixels that are left when the resized image is cropped to its centre.

    Resampling just this box equals resizing all and cropping (at whole pixels of the result, so that an image that
    needs no resizing is cropped exactly), without the huge intermediate image a long strip would need.
    """
    if image.width * height <= image.height * width:
        scale, left = image.width / width, 0.0
        top = scale * ((image.height * width - height * image.width) // (2 * image.width))
    else:
        scale, top = image.height / height, 0.0
        left = scale * ((image.width * height - width * image.height) // (2 * image.height))
    return left, top, min(left + scale * width, image.width), min(top + scale * height, image.height)


def _opened(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise InputError("file is empty")
    if data[:4] == b"\0\0\1\0":
        _check_icon(data, max_pixels)
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    _check_size(image.width, image.height, max_pixels)
    return image


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"image is {width} x {height} pixels")
    if width * height > max_pixels:
        raise Image.DecompressionBombError(
            f"image of {width} x {height} pixels is over max_pixels ({max_pixels}); raise it if you trust the image"
        )


def _check_icon(data: bytes, max_pixels: int) -> None:
    """Pillow decodes an icon while opening it, so the headers of its pictures are checked before."""
    for entry in range(6, min(len(data), 6 + 16 * int.from_bytes(data[4:6], "little")), 16):
        start = int.from_bytes(data[entry + 12 : entry + 16], "little")
        header = data[start : start + 24].ljust(24, b"\0")
        if header.startswith(b"\x89PNG"):
            width, height = struct.unpack(">II", header[16:24])
        else:
            width, height = struct.unpack("<ii", header[4:12])
        if width and height:
            _check_size(abs(width), abs(height), max_pixels)


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation: Any = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # whatever damaged EXIF raises, the picture itself is fine
        return image
    method = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image) >> 8)
    if image.mode == "I":
        values = np.asarray(image)
        return _grey(values >> 8 if values.min() >= 0 and values.max() <= 0xFFFF else _stretched(values))
    if image.mode == "F":
        return _grey(_float_levels(np.asarray(image)))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (*background, 255)), picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(levels: NDArray[Any]) -> Image.Image:
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _float_levels(values: NDArray[np.float32]) -> NDArray[Any]:
    values = np.where(np.isfinite(values), values, 0).astype(np.float64)
    if values.min() < 0 or values.max() > 255:
        return _stretched(values)
    return np.rint(values * 255 if values.max() <= 1 else values)


def _stretched(values: NDArray[Any]) -> NDArray[np.float64]:
    low, high = float(values.min()), float(values.max())
    return np.rint((values.astype(np.float64) - low) / max(high - low, 1e-300) * 255)


def _reason(error: Exception, data: bytes) -> str:
    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in _FORMATS:
        return "HEIC images need pillow-heif; run `pip install pillow-heif` and convert again"
    return "not an image in a known format, or its header is damaged"
