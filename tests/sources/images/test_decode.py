"""Every kind of image file becomes upright RGB pixels, or a clear error before anything dangerous happens."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from tokenshard.errors import InputError
from tokenshard.sources.images.decode import decode_grey, decode_image
from tokenshard.spec.images import ImageSourceSpec

Picture = Callable[..., NDArray[np.uint8]]
Encoded = Callable[..., bytes]
KEEP = ImageSourceSpec(path="x")


def sized(size: tuple[int, int], fit: str, **fields: object) -> ImageSourceSpec:
    return ImageSourceSpec(path="x", size=size, fit=fit, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "TGA", "SGI", "PCX", "QOI"])
def test_lossless_formats_give_the_exact_pixels(format: str, picture: Picture, encoded: Encoded) -> None:
    pixels = picture(1)
    np.testing.assert_array_equal(decode_image(encoded(pixels, format), KEEP), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int, picture: Picture, encoded: Encoded) -> None:
    stored_as = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(stored_as(picture(2))), exif=exif.tobytes())
    np.testing.assert_array_equal(decode_image(data, KEEP), picture(2))


@pytest.mark.parametrize("orientation", [0, 9, 4000])
def test_an_impossible_orientation_is_ignored(orientation: int, picture: Picture, encoded: Encoded) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encoded(picture(), exif=exif.tobytes()), KEEP), picture())


def test_transparency_is_composited_on_the_background(encoded: Encoded) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]
    assert decode_image(encoded(rgba), KEEP)[0].tolist() == [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    on_red = ImageSourceSpec(path="x", background=(255, 0, 0))
    assert decode_image(encoded(rgba), on_red)[0].tolist() == [[10, 20, 30], [255, 0, 0], [204, 0, 0]]


def test_transparent_palette_and_grey_with_alpha_are_composited_too(encoded: Encoded) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([1, 2, 3, 9, 9, 9])
    palette.putpixel((1, 0), 1)
    assert decode_image(encoded(palette, transparency=1), KEEP)[0].tolist() == [[1, 2, 3], [255, 255, 255]]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert decode_image(encoded(grey), KEEP)[0].tolist() == [[255, 255, 255]]


def test_sixteen_bit_grey_keeps_the_high_byte(encoded: Encoded) -> None:
    values = np.array([[0, 255, 256, 0x1234, 0xFFFF]], np.uint16)
    for format in ("PNG", "TIFF"):
        assert decode_image(encoded(values, format), KEEP)[0, :, 0].tolist() == [0, 0, 1, 0x12, 0xFF]


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 1.6, 254.7]], np.float32), [0, 2, 255]),
        (np.array([[-10, 0, 10]], np.float32), [0, 128, 255]),
        (np.array([[0, np.nan, 1]], np.float32), [0, 0, 255]),
        (np.array([[0, 256, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[7, 7, 7]], np.float32) * 1000, [0, 0, 0]),
    ],
)
def test_floats_and_wide_integers_are_scaled_by_their_range(
    values: NDArray[np.float32], levels: list[int], encoded: Encoded
) -> None:
    assert decode_image(encoded(values, "TIFF"), KEEP)[0, :, 0].tolist() == levels


def test_cmyk_grey_and_one_bit_images_become_rgb(encoded: Encoded) -> None:
    assert decode_image(encoded(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), KEEP).tolist() == [[[255, 0, 0]]]
    assert decode_image(encoded(Image.new("L", (1, 1), 77)), KEEP).tolist() == [[[77, 77, 77]]]
    assert decode_image(encoded(Image.new("1", (1, 1), 1)), KEEP).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_taken(format: str, encoded: Encoded) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data, KEEP)[0, 0].tolist() == [255, 0, 0]


# -- fit policies ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fit=st.sampled_from(["resize", "center-crop", "pad"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "lanczos", "nearest"]),
)
def test_every_policy_gives_the_size_asked_for_and_keeps_a_plain_colour(
    source: tuple[int, int], target: tuple[int, int], fit: str, interpolation: str
) -> None:
    spec = sized(target, fit, interpolation=interpolation, background=(9, 8, 7))
    pixels = decode_grey(bytes([200]) * (source[0] * source[1]), *source, spec)
    assert pixels.shape == (*target, 3)
    colours = set(map(tuple, pixels.reshape(-1, 3).tolist()))
    assert (200, 200, 200) in colours
    assert colours <= {(200, 200, 200), (9, 8, 7)}
    assert fit == "pad" or len(colours) == 1


@pytest.mark.parametrize("fit", ["resize", "center-crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (4000, 3), (3, 4000)])
def test_extreme_shapes_work_with_every_policy(
    fit: str, shape: tuple[int, int], picture: Picture, encoded: Encoded
) -> None:
    assert decode_image(encoded(picture(0, *shape)), sized((32, 48), fit)).shape == (32, 48, 3)


@pytest.mark.parametrize("fit", ["resize", "center-crop", "pad"])
def test_an_image_of_the_right_size_is_left_alone(fit: str, picture: Picture, encoded: Encoded) -> None:
    np.testing.assert_array_equal(decode_image(encoded(picture(3, 17, 29)), sized((17, 29), fit)), picture(3, 17, 29))


def test_center_crop_without_resizing_cuts_whole_pixels(picture: Picture, encoded: Encoded) -> None:
    pixels = picture(4, 20, 31)
    np.testing.assert_array_equal(decode_image(encoded(pixels), sized((20, 20), "center-crop")), pixels[:, 5:25])


def test_center_crop_equals_resizing_the_shorter_side_and_cropping(picture: Picture, encoded: Encoded) -> None:
    pixels = picture(5, 60, 120)
    whole = np.array(Image.fromarray(pixels).resize((40, 20), Image.Resampling.BICUBIC))
    cropped = decode_image(encoded(pixels), sized((20, 20), "center-crop"))
    assert np.abs(cropped.astype(int) - whole[:, 10:30]).max() <= 1


def test_resize_squeezes_the_whole_image_with_antialiasing(picture: Picture, encoded: Encoded) -> None:
    stripes = np.zeros((8, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    squeezed = decode_image(encoded(stripes), sized((8, 8), "resize", interpolation="bilinear"))
    assert np.abs(squeezed.astype(int) - 127).max() <= 16


def test_pad_centres_the_whole_image_on_the_background(encoded: Encoded) -> None:
    white = np.full((10, 20, 3), 255, np.uint8)
    padded = decode_image(encoded(white), sized((20, 20), "pad", background=(1, 2, 3)))
    assert (padded[5:15] == 255).all()
    assert (padded[:5] == [1, 2, 3]).all()
    assert (padded[15:] == [1, 2, 3]).all()


# -- bad files -------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", len(body)) + b"IHDR" + body + struct.pack(">I", zlib.crc32(b"IHDR" + body))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 4) + b"IDAT" + bytes(4)


def icon_of(entry: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, len(entry), 22) + entry


@pytest.mark.parametrize(
    "data",
    [
        png_header(65_500, 65_500),
        icon_of(png_header(60_000, 60_000)),
        icon_of(struct.pack("<IiiHHIIiiII", 40, 50_000, 100_000, 1, 32, 0, 0, 0, 0, 0, 0)),
        b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + b",\0\0\0\0\x01\0\x01\0\0\x02\0;",
    ],
    ids=["png", "png in an icon", "bitmap in an icon", "gif"],
)
def test_a_bomb_is_refused_by_its_header_before_decoding(data: bytes) -> None:
    with pytest.raises(InputError, match="over max_pixels") as caught:
        decode_image(data, KEEP)
    assert isinstance(caught.value.__cause__, Image.DecompressionBombError)


def test_the_pixel_limit_is_the_one_of_the_spec(picture: Picture, encoded: Encoded) -> None:
    data = encoded(picture(0, 24, 32))
    decode_image(data, ImageSourceSpec(path="x", max_pixels=24 * 32))
    with pytest.raises(InputError, match="over max_pixels"):
        decode_image(data, ImageSourceSpec(path="x", max_pixels=24 * 32 - 1))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_truncated_image_is_an_error_not_half_a_picture(format: str, picture: Picture, encoded: Encoded) -> None:
    data = encoded(picture(0, 100, 100), format)
    with pytest.raises(InputError):
        decode_image(data[: len(data) // 2], KEEP)


def test_text_and_empty_files_are_named_for_what_they_are() -> None:
    with pytest.raises(InputError, match="not an image in a known format"):
        decode_image(b"<html>404</html>" * 10, KEEP)
    with pytest.raises(InputError, match="file is empty"):
        decode_image(b"", KEEP)


def test_heic_is_refused_with_the_package_to_install_where_that_is_missing() -> None:
    if "HEIF" in Image.OPEN:
        pytest.skip("pillow-heif is installed")
    with pytest.raises(InputError, match="pip install pillow-heif"):
        decode_image(b"\0\0\0\x1cftypheix\0\0\0\0mif1heixmiaf" + bytes(64), KEEP)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_files_give_pixels_or_an_input_error_and_nothing_else(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "TGA"]))
    buffer = io.BytesIO()
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(buffer, format)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    spec = ImageSourceSpec(path="x", max_pixels=1_000_000)
    try:
        assert decode_image(bytes(damaged), spec).dtype == np.uint8
    except InputError:
        return
