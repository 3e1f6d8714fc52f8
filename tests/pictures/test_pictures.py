"""Pictures are read as people see them, and files that are none, or too much, are refused in a line."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from laq.errors import LaqError
from laq.pictures import MAX_PIXELS, read_picture
from tests.conftest import ROOT
from tests.pictures.files import encoded, png, tiff
from tests.project import environment

HEIGHT, WIDTH = 16, 24
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
# It changes slowly, as JPEG likes it, and no turn or flip of it is itself.
COLOURS = np.stack([ROWS * 15, COLUMNS * 10, 255 - ROWS * 5 - COLUMNS * 3], 2).astype(np.uint8)
GREY = COLOURS[..., 2]
GREYS = np.repeat(GREY[..., None], 3, 2)
HALF = GREY > 200
ALPHA = (COLUMNS * 11).astype(np.uint8)
PALETTE = np.array([[200, 30, 30], [0, 255, 10], [30, 30, 90], [90, 80, 70]], np.uint8)
INDICES = ((ROWS // 4 + COLUMNS // 6) % 4).astype(np.uint8)


def pixels(content: bytes) -> np.ndarray:
    picture = read_picture(content, "picture")
    assert picture.mode == "RGB"
    return np.asarray(picture)


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(colours * share + 255 * (1 - share))


def with_palette() -> Image.Image:
    picture = Image.fromarray(INDICES)
    picture.putpalette(PALETTE.tobytes())
    return picture


BEHIND = on_white(COLOURS, ALPHA)
SIXTEEN = GREY.astype(np.uint16) * 257
MODES: dict[str, tuple[bytes, np.ndarray, int]] = {
    "RGB": (encoded(COLOURS), COLOURS, 0),
    "RGB, BMP": (encoded(COLOURS, "BMP"), COLOURS, 0),
    "RGB, PPM": (encoded(COLOURS, "PPM"), COLOURS, 0),
    "RGB, TIFF": (encoded(COLOURS, "TIFF"), COLOURS, 0),
    "RGB, WebP": (encoded(COLOURS, "WEBP", lossless=True), COLOURS, 0),
    "RGB, JPEG": (encoded(COLOURS, "JPEG", quality=95, subsampling=0), COLOURS, 4),
    "RGB, progressive JPEG": (encoded(COLOURS, "JPEG", quality=95, subsampling=0, progressive=True), COLOURS, 4),
    "RGB, GIF": (encoded(Image.fromarray(PALETTE[INDICES]).quantize(4), "GIF"), PALETTE[INDICES], 0),
    "RGB of 16 bits": (png(2, 16, 2, struct.pack(">6H", 65535, 0, 257 * 9, 1, 2, 3)), np.array([[[255, 0, 9], [0] * 3]]), 0),
    "RGB of 16 bits, one transparent": (
        png(2, 16, 2, struct.pack(">6H", 65535, 0, 1000, 1, 2, 3), transparent=struct.pack(">3H", 65535, 0, 1000)),
        np.array([[[255] * 3, [0] * 3]]), 0,
    ),
    "RGB, one transparent": (encoded(PALETTE[INDICES], transparency=(0, 255, 10)), on_white(PALETTE[INDICES], (INDICES != 1) * 255), 0),
    "RGBA": (encoded(np.dstack([COLOURS, ALPHA])), BEHIND, 1),
    "RGBA, WebP": (encoded(np.dstack([COLOURS, ALPHA]), "WEBP", lossless=True, exact=True), BEHIND, 1),
    "RGBA, TIFF": (encoded(np.dstack([COLOURS, ALPHA]), "TIFF"), BEHIND, 1),
    "L": (encoded(GREY), GREYS, 0),
    "L, JPEG": (encoded(GREY, "JPEG", quality=95), GREYS, 2),
    "L, PGM": (encoded(GREY, "PPM"), GREYS, 0),
    "L, white is 0": (tiff(WIDTH, HEIGHT, (255 - GREY).tobytes(), black=0), GREYS, 0),
    "LA": (encoded(np.dstack([GREY, ALPHA])), on_white(GREYS, ALPHA), 1),
    "P": (encoded(with_palette()), PALETTE[INDICES], 0),
    "P, BMP": (encoded(with_palette(), "BMP"), PALETTE[INDICES], 0),
    "P, TIFF": (encoded(with_palette(), "TIFF"), PALETTE[INDICES], 0),
    "P, one transparent": (encoded(with_palette(), transparency=2), on_white(PALETTE[INDICES], (INDICES != 2) * 255), 0),
    "P, one transparent, GIF": (encoded(with_palette(), "GIF", transparency=2), on_white(PALETTE[INDICES], (INDICES != 2) * 255), 0),
    "P, all a bit transparent": (
        encoded(with_palette(), transparency=bytes([255, 100, 0, 30])),
        on_white(PALETTE[INDICES], np.array([255, 100, 0, 30])[INDICES]), 1,
    ),
    "1": (encoded(Image.fromarray(HALF)), HALF[..., None] * np.full(3, 255), 0),
    "1, TIFF": (encoded(Image.fromarray(HALF), "TIFF"), HALF[..., None] * np.full(3, 255), 0),
    "1, PBM": (encoded(Image.fromarray(HALF), "PPM"), HALF[..., None] * np.full(3, 255), 0),
    "grey of 2 bits, one transparent": (
        png(4, 2, 0, bytes([0b00011011]), transparent=b"\0\1"), np.array([[[0] * 3, [255] * 3, [170] * 3, [255] * 3]]), 0,
    ),
    "grey of 4 bits, one transparent": (
        png(2, 4, 0, bytes([0x3A]), transparent=b"\0\3"), np.array([[[255] * 3, [170] * 3]]), 0,
    ),
    "grey of 12 bits": (tiff(2, 1, bytes([0xFF, 0xF8, 0x00]), bits=12), np.array([[[255] * 3, [128] * 3]]), 0),
    "grey of 16 bits": (encoded(SIXTEEN), GREYS, 0),
    "grey of 16 bits, TIFF": (encoded(SIXTEEN, "TIFF"), GREYS, 0),
    "grey of 16 bits, the other byte first": (encoded(SIXTEEN.astype(">u2"), "TIFF"), GREYS, 0),
    "grey of 16 bits, PGM": (encoded(SIXTEEN, "PPM"), GREYS, 0),
    "grey of 16 bits, white is 0": (tiff(WIDTH, HEIGHT, (65535 - SIXTEEN).tobytes(), bits=16, black=0), GREYS, 0),
    "grey of 16 bits, one transparent": (
        png(2, 16, 0, struct.pack(">2H", 1000, 1001), transparent=struct.pack(">H", 1000)), np.array([[[255] * 3, [4] * 3]]), 0,
    ),
    "grey of 16 bits, rounded": (encoded(np.array([[128, 129, 65406, 65407]], np.uint16)), np.repeat([[[0], [1], [254], [255]]], 3, 2), 0),
    "CMYK, TIFF": (encoded(Image.fromarray(COLOURS).convert("CMYK"), "TIFF"), COLOURS, 0),
    "CMYK, JPEG": (encoded(Image.fromarray(COLOURS).convert("CMYK"), "JPEG", quality=95), COLOURS, 4),
    "YCbCr, TIFF": (encoded(Image.fromarray(COLOURS).convert("YCbCr"), "TIFF"), COLOURS, 3),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_is_the_same_in_whatever_mode_it_was_saved(mode: str) -> None:
    content, expected, tolerance = MODES[mode]
    found = pixels(content)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance


# How the stored pixels of an upright picture lie, by EXIF's definition of where row 0 and column 0 are seen.
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: np.rot90,
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(form, {})
    stored = np.ascontiguousarray(TURNED[orientation](COLOURS))
    found = pixels(encoded(stored, form, exif=exif, **options))
    assert found.shape == COLOURS.shape
    assert np.abs(found.astype(int) - COLOURS).max() <= (4 if form == "JPEG" else 0)
    if form in {"PNG", "TIFF"}:
        stored = np.ascontiguousarray(TURNED[orientation](SIXTEEN))
        assert (pixels(encoded(stored, form, exif=exif)) == GREYS).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"])
def test_broken_exif_turns_nothing(exif: bytes) -> None:
    assert (pixels(encoded(COLOURS, exif=exif)) == COLOURS).all()


def test_of_several_frames_the_first_is_taken() -> None:
    others = [Image.fromarray(PALETTE[(INDICES + step) % 4]).quantize(4) for step in range(3)]
    moving = encoded(others[0], "GIF", save_all=True, append_images=others[1:])
    assert (pixels(moving) == PALETTE[INDICES]).all()


def refusal(content: bytes, max_pixels: int = MAX_PIXELS) -> str:
    with pytest.raises(LaqError, match="^picture: found ") as caught:
        read_picture(content, "picture", max_pixels)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(hacked) (w) file\n%%EOF\n"


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"<svg/>", EPS, b"\x89PNG\r\n\x1a\n", b"\xff\xd8", bytes(999)]
)
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    assert "found no picture; it must be a file of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP" in refusal(content)


def test_pixels_without_an_agreed_white_or_colour_are_refused() -> None:
    floats = Image.fromarray(GREY.astype(np.float32))
    assert "mode F" in refusal(encoded(floats, "TIFF"))
    assert "mode F" in refusal(encoded(floats, "PPM"))
    assert "mode I" in refusal(encoded(Image.fromarray(GREY.astype(np.int32)), "TIFF"))
    assert "mode LAB" in refusal(encoded(Image.new("LAB", (4, 4)), "TIFF"))


@pytest.mark.filterwarnings("ignore")
def test_more_pixels_than_allowed_are_refused_before_they_are_decoded() -> None:
    content = encoded(COLOURS)
    assert pixels(content).shape == (HEIGHT, WIDTH, 3)
    assert "found 24 x 16 pixels; at most 383 are allowed" in refusal(content, HEIGHT * WIDTH - 1)
    # Nothing but a header: whoever decoded this would find it cut off.
    huge = png(60_000, 1, 0, b"")
    assert f"found 60000 x 1 pixels; at most {59_999}" in refusal(huge, 59_999)
    squares = {side: struct.pack(">II", side, side) for side in (10_000, 20_000)}
    for side, size in squares.items():
        header = b"IHDR" + size + bytes([1, 0, 0, 0, 0])
        bomb = (
            b"\x89PNG\r\n\x1a\n"
            + struct.pack(">I", 13)
            + header
            + struct.pack(">I", zlib.crc32(header))
            + huge[33:]
        )
        assert (
            f"found {side} x {side}" if side == 10_000 else "found more pixels than the 50000000"
        ) in refusal(bomb)


def test_a_tile_larger_than_its_picture_is_refused() -> None:
    fitting = tiff(8, 8, zlib.compress(bytes([77]) * 256), compression=8, tile=16)
    assert (pixels(fitting) == 77).all()
    assert "found 30000 x 30000 pixels" in refusal(
        tiff(8, 8, zlib.compress(bytes(99)), compression=8, tile=30_000)
    )


def test_a_jpeg_of_endless_scans_is_refused_and_what_follows_a_jpeg_is_not_counted() -> None:
    content = encoded(COLOURS, "JPEG", progressive=True)
    last = content.rfind(b"\xff\xda")
    assert pixels(content[:-2] + content[last:-2] * 50 + content[-2:]).shape == COLOURS.shape
    assert "more than 100 scans" in refusal(content[:-2] + content[last:-2] * 200 + content[-2:])
    # Telephones append films and second pictures, and put small ones into EXIF.
    scans = b"\xff\xda\0\2" * 200
    assert (pixels(content + scans) == pixels(content)).all()
    assert (
        pixels(encoded(COLOURS, "JPEG", progressive=True, exif=b"Exif\0\0" + scans)) == pixels(content)
    ).all()


FORMS = {
    "BMP": encoded(COLOURS, "BMP"),
    "GIF": encoded(with_palette(), "GIF"),
    "JPEG": encoded(COLOURS, "JPEG"),
    "progressive": encoded(COLOURS, "JPEG", progressive=True),
    "PNG": encoded(COLOURS),
    "PPM": encoded(COLOURS, "PPM"),
    "TIFF": encoded(COLOURS, "TIFF"),
    "deflated TIFF": encoded(COLOURS, "TIFF", compression="tiff_deflate"),
    "WEBP": encoded(COLOURS, "WEBP"),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's about what it finds in them
@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_was_cut_off_is_refused_unless_all_its_pixels_are_there(form: str) -> None:
    content, whole = FORMS[form], pixels(FORMS[form])
    for kept in np.linspace(0, len(content) - 24, 50, dtype=int):
        refusal(content[:kept])
    for kept in range(len(content) - 24, len(content)):
        try:
            assert (pixels(content[:kept]) == whole).all()
        except LaqError:
            continue


@pytest.mark.filterwarnings("ignore")  # Pillow's about what it finds in them
@pytest.mark.parametrize("form", FORMS)
def test_whatever_is_broken_in_a_file_it_is_a_picture_or_a_line(form: str) -> None:
    content, told = FORMS[form], []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        broken = bytearray(content)
        for at in rng.integers(len(content) if seed % 2 else min(len(content), 60), size=rng.integers(1, 6)):
            broken[at] = rng.integers(256)
        try:
            assert read_picture(bytes(broken), "picture").mode == "RGB"
        except LaqError as error:
            told.append(str(error))
    assert told
    assert all(line.startswith("picture: found ") and len(line.splitlines()) == 1 for line in told)


THREADS = """
import threading
from pathlib import Path
from laq.pictures import read_picture

def resident():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) // 1024

def work():
    read_picture(content, "picture")
    done.release()
    end.wait()

content, done, end = Path("large.png").read_bytes(), threading.Semaphore(0), threading.Event()
before = resident()
for _ in range(4):
    threading.Thread(target=work).start()
    done.acquire()
print(resident() - before)
end.set()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no process's memory")
def test_threads_that_have_read_large_pictures_keep_no_memory_of_them(tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(encoded(Image.new("RGBA", (4000, 4000))))
    done = subprocess.run(
        [sys.executable, "-c", THREADS], cwd=tmp_path, env=environment() | {"PYTHONPATH": str(ROOT)}, check=True,
        text=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert int(done.stdout) < 100  # MiB, of which a picture takes 64 at least
