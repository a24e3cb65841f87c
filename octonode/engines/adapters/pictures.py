"""Opens pictures that strangers sent, under limits, before any pixel of them is decoded. Blocks."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

from octonode.errors import OctonodeError
from octonode.protocol.work.vision import PIXELS_MAX

FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""Decoders that are tried; Pillow has some forty more, each of which a stranger could choose to attack."""
BACKGROUND: Final = (255, 255, 255)
"""Behind what is transparent."""
JPEG_SCANS_MAX: Final = 64
"""Of a progressive JPEG, as a few bytes each may pass over all of its pixels; cameras and programs write ten or so."""
PNG_COMPRESS_LEVEL: Final = 1
"""Zlib's fastest: pictures that an engine made shall not wait for their packing."""

# Pillow only warns up to twice this; `open_picture` refuses itself, with words of ours.
Image.MAX_IMAGE_PIXELS = PIXELS_MAX
# What a decoder of Pillow raises for bytes that are none of its format.
_DECODER_ERRORS: Final = (OSError, ValueError, SyntaxError, EOFError, OverflowError, KeyError, IndexError, struct.error)


def open_picture(data: bytes, *, pixels_max: int = PIXELS_MAX) -> Image.Image:
    """The picture in RGB, decoded, turned upright as its EXIF data says; of an animation the first frame.

    Raises OctonodeError: TOO_LARGE when its header declares more than `pixels_max` pixels, BAD_REQUEST for what is no
    picture of FORMATS or is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(picture.width, picture.height, pixels_max)
            _check_scans(picture, data)
            picture.load()
            return _flat(ImageOps.exif_transpose(picture))
    except Image.DecompressionBombError:
        raise _too_large("more pixels than can be", pixels_max) from None
    except UnidentifiedImageError:
        raise OctonodeError(
            f"the image is none of {', '.join(FORMATS)}; convert it to PNG or JPEG", code="BAD_REQUEST"
        ) from None
    except (*_DECODER_ERRORS, zlib.error) as error:
        text = f"the image is damaged ({type(error).__name__}); send it whole, as PNG or JPEG"
        raise OctonodeError(text, code="BAD_REQUEST") from None


def png_of(picture: Image.Image) -> bytes:
    """A PNG file without any metadata."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=PNG_COMPRESS_LEVEL)
    return file.getvalue()


def _check_size(width: int, height: int, pixels_max: int) -> None:
    if width < 1 or height < 1:
        raise OctonodeError("the image has no pixels", code="BAD_REQUEST")
    if width * height > pixels_max:
        raise _too_large(f"{width} x {height} pixels", pixels_max)


def _check_scans(picture: Image.Image, data: bytes) -> None:
    """The marker of a scan stands nowhere in what is compressed: there each FF is followed by a zero."""
    if picture.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > JPEG_SCANS_MAX:
        raise OctonodeError(
            f"the image has more than {JPEG_SCANS_MAX} scans, which take too long to decode; save it anew as JPEG",
            code="TOO_LARGE",
        )


def _too_large(what: str, pixels_max: int) -> OctonodeError:
    return OctonodeError(
        f"the image declares {what}; at most {pixels_max / 1e6:g} million are taken: scale it down", code="TOO_LARGE"
    )


def _flat(picture: Image.Image) -> Image.Image:
    """Without transparency: models know none, and would see what lies under it."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        seen = picture.convert("RGBA")
        ground = Image.new("RGB", seen.size, BACKGROUND)
        ground.paste(seen, mask=seen.getchannel("A"))
        return ground
    return picture.convert("RGB")
