"""Files of pictures, read as people see them, whatever their mode, depth and orientation.

This is the one reader: whoever learns from pictures, measures or serves them gets the same pixels.
"""

import io
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError

from laq.errors import LaqError

# Others stay closed: some run programs (EPS), most hold no photographs.
FORMATS: Final = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS: Final = 50_000_000  # the largest pictures of today's telephones
MOST_PIXELS: Final = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow opens nothing larger
_MAX_SCANS: Final = 100  # of a JPEG, each of which may take as long as the whole picture; usual are 10
# A marker in a JPEG: in coded data 0xff is followed by 0, or by 0xd0 to 0xd7 where decoding can start again.
_MARKER: Final = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_WHITE: Final = 255
Resize = Literal["crop", "squash", "pad"]
Interpolation = Literal["bilinear", "bicubic", "lanczos", "box", "nearest"]
# Blocks of more than 32 MiB return to the system when they are freed; in smaller ones glibc
# keeps the memory of a large picture for every thread that has read one.
Image.core.set_block_size(64 * 2**20)  # type: ignore[attr-defined]  # in Pillow's manual, "Block allocator"


@dataclass(frozen=True)
class Preprocessing:
    """How a picture of any size becomes an image that networks see: a square in mode RGB.

    Attributes:
        size: the side in pixels.
        resize: ``crop`` scales the shorter side to ``size`` and keeps the centre, ``squash`` scales both,
            ``pad`` scales the longer side and puts the picture in the middle of a black square.
        interpolation: Pillow's filter. Where a picture becomes smaller, all but ``nearest`` use every pixel.
    """

    size: int
    resize: Resize = "crop"
    interpolation: Interpolation = "bilinear"

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture at this size; one that has it already keeps its pixels."""
        square, by = (self.size, self.size), Image.Resampling[self.interpolation.upper()]
        picture = picture.convert("RGB")
        if self.resize == "squash":
            return picture.resize(square, by)
        if self.resize == "crop":
            return ImageOps.fit(picture, square, by)
        longer = max(picture.size)
        width, height = (max(1, round(side * self.size / longer)) for side in picture.size)
        padded = Image.new("RGB", square)
        padded.paste(
            picture.resize((width, height), by), ((self.size - width) // 2, (self.size - height) // 2)
        )
        return padded


SQUASHED_TO_32: Final = Preprocessing(32, "squash")  # what studies of small images do


def read_picture(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file's ``content``, in mode RGB with 8 bits each.

    - It is turned as its EXIF orientation says; EXIF that cannot be read turns nothing.
    - What is transparent lies on white: alpha channels, palette entries, and a PNG's transparent colour.
    - Grey of any depth up to 16 bits is scaled, so that the depth's white becomes 255.
    - Palettes, CMYK and YCbCr become RGB as Pillow does it; colour profiles are not applied.
    - Of several frames, the first one is taken.

    Args:
        content: the bytes of a BMP, GIF, JPEG, PNG, PPM, TIFF or WebP file.
        name: what errors call the picture.
        max_pixels: its largest width times height, which is checked before anything is decoded; some 180
            million (``MOST_PIXELS``) at most.

    Raises:
        LaqError: it is no picture, broken, cut off, too large, or its pixels have no agreed white
            (floating point, 32 bits) or no agreed colours (Lab).
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_effort(image, content, max_pixels)
            return _as_seen(image)
    except UnidentifiedImageError as error:
        raise LaqError(f"{name}: found no picture; it must be a file of {', '.join(FORMATS)}") from error
    except LaqError as error:
        raise LaqError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        most = min(max_pixels, MOST_PIXELS)
        raise LaqError(
            f"{name}: found more pixels than the {most} that are allowed; scale it down"
        ) from error
    except Exception as error:  # what decoders raise of broken files is as various as the files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise LaqError(
            f"{name}: found a picture that is broken or cut off ({reason}); send it whole"
        ) from error


def check_size(width: int, height: int, max_pixels: int) -> None:
    """See that a picture has no more pixels than are allowed.

    Raises:
        LaqError: it has more.
    """
    if width * height > max_pixels:
        raise LaqError(f"found {width} x {height} pixels; at most {max_pixels} are allowed; scale it down")


def _check_effort(image: ImageFile.ImageFile, content: bytes, max_pixels: int) -> None:
    """See by headers alone that decoding takes no more memory and time than the allowed pixels do."""
    sizes = [image.size]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # A tile is decoded as a whole, also where it is larger than the picture.
        tags = (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
        sizes.append((image.tag_v2.get(tags[0], 0), image.tag_v2.get(tags[1], 0)))
    for width, height in sizes:
        check_size(width, height, max_pixels)
    if image.format in {"JPEG", "MPO"} and _scans(content) > _MAX_SCANS:
        raise LaqError(f"found a JPEG of more than {_MAX_SCANS} scans; save it in fewer")


def _scans(jpeg: bytes) -> int:
    """How often a JPEG goes over its pixels."""
    scans, at = 0, 2
    while scans <= _MAX_SCANS and (marker := _MARKER.search(jpeg, at)):
        kind, at = marker[1][0], marker.end()
        if kind == _END_OF_IMAGE:
            break
        scans += kind == _START_OF_SCAN
        at += int.from_bytes(jpeg[at : at + 2], "big")  # a segment begins with its length
    return scans


def _as_seen(image: ImageFile.ImageFile) -> Image.Image:
    """An opened picture, decoded: upright, on white, in mode RGB."""
    _rescale_transparent_colour(image)
    image.load()
    with suppress(Exception):  # what broken EXIF raises is various too, and viewers ignore it
        ImageOps.exif_transpose(image, in_place=True)
    # Pillow keeps the 16 bits of some PNGs and PPMs in mode I; in other files this has no agreed white.
    if image.mode in {"F", "LAB"} or (image.mode == "I" and image.format not in {"PNG", "PPM"}):
        raise LaqError(f"found pixels of Pillow's mode {image.mode}; save it as grey or RGB of 8 or 16 bits")
    seen = _with_8_bits(image) if image.mode.startswith("I") else image
    if not seen.has_transparency_data:
        return seen.convert("RGB")
    seen, ground = seen.convert("RGBA"), Image.new("RGB", image.size, "white")
    ground.paste(seen, mask=seen.getchannel("A"))
    return ground


def _rescale_transparent_colour(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour into 8 bits as its pixels, which Pillow leaves in the file's depth."""
    colour = image.info.get("transparency")
    depth = image.tile[0][3] if image.format == "PNG" and image.tile else None
    if depth == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    elif depth in {"L;2", "L;4"} and isinstance(colour, int):
        image.info["transparency"] = colour * _WHITE // (2 ** int(depth[-1]) - 1)


def _with_8_bits(image: ImageFile.ImageFile) -> Image.Image:
    """Grey of 9 to 16 bits as L, or as LA where one of its values is transparent."""
    white, inverted = 65_535, False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 2 ** image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
        inverted = image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    values = np.asarray(image)
    grey = (np.arange(white + 1) * _WHITE + white // 2) // white
    scaled = Image.fromarray((_WHITE - grey if inverted else grey).astype(np.uint8)[values])
    if (transparent := image.info.get("transparency")) is not None:
        scaled.putalpha(Image.fromarray((values != transparent).astype(np.uint8) * _WHITE))
    return scaled
