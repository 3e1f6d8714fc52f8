"""The built-in dataset: 100 characters in 20 families, drawn from a seed without any network.

Every image shows one character of DejaVu Sans, the font that ships inside matplotlib, in a random
colour, place, size and rotation, over clutter (strokes and stray characters) and noise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from laq.dataset.layout import Description, Split, write_split
from laq.pictures import SQUASHED_TO_32
from laq.progress import progress

FAMILIES: Final[dict[str, dict[str, str]]] = {
    "arrows": {"left": "←", "right": "→", "up": "↑", "down": "↓", "both_ways": "↔"},
    "cards": {"spade": "♠", "heart": "♥", "diamond": "♦", "club": "♣", "open_heart": "♡"},
    "chess": {"king": "♔", "queen": "♕", "rook": "♖", "bishop": "♗", "knight": "♘"},
    "circled": {"plus": "⊕", "minus": "⊖", "times": "⊗", "slash": "⊘", "dot": "⊙"},
    "currency": {"dollar": "$", "euro": "€", "pound": "£", "yen": "¥", "won": "₩"},
    "cyrillic": {"zhe": "Ж", "de": "Д", "ya": "Я", "yu": "Ю", "ef": "Ф"},
    "dice": {"one": "⚀", "two": "⚁", "three": "⚂", "four": "⚃", "five": "⚄"},
    "digits": {"two": "2", "three": "3", "five": "5", "six": "6", "eight": "8"},
    "georgian": {"an": "ა", "ban": "ბ", "gan": "გ", "don": "დ", "en": "ე"},
    "greek": {"alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "lambda": "λ"},
    "hebrew": {"alef": "א", "bet": "ב", "gimel": "ג", "dalet": "ד", "shin": "ש"},
    "latin": {"b": "B", "e": "E", "f": "F", "p": "P", "r": "R"},
    "logic": {"for_all": "∀", "exists": "∃", "in": "∈", "subset": "⊂", "union": "∪"},
    "music": {"quarter": "♩", "eighth": "♪", "beamed": "♫", "flat": "♭", "sharp": "♯"},
    "operators": {"sum": "∑", "product": "∏", "integral": "∫", "root": "√", "infinity": "∞"},
    "planets": {"venus": "♀", "mars": "♂", "mercury": "☿", "saturn": "♄", "neptune": "♆"},
    "relations": {"less": "≤", "greater": "≥", "unequal": "≠", "nearly": "≈", "identical": "≡"},
    "shapes": {"square": "■", "triangle": "▲", "disc": "●", "rhombus": "◆", "star": "★"},
    "weather": {"sun": "☀", "cloud": "☁", "umbrella": "☂", "snowman": "☃", "comet": "☄"},
    "zodiac": {"aries": "♈", "taurus": "♉", "gemini": "♊", "cancer": "♋", "leo": "♌"},
}
SIDE: Final = SQUASHED_TO_32.size  # of the images, in pixels
_CANVAS: Final = 48  # characters are drawn once at this size, then placed by an affine map


@dataclass(frozen=True)
class Style:
    """How hard the images are: ranges that each image draws from, in pixels unless said."""

    glyph_height: tuple[float, float] = (10.0, 20.0)
    rotation_degrees: float = 28.0
    contrast: tuple[float, float] = (0.17, 0.62)  # of the full range, between glyph and ground
    strokes: int = 4
    stray_glyphs: int = 2
    noise: tuple[float, float] = (7.0, 37.0)  # standard deviation, in grey levels


def class_characters() -> dict[str, str]:
    """Class name → character, sorted by name; a class's place here is its number."""
    named = ((f"{f}_{c}", ch) for f, members in FAMILIES.items() for c, ch in members.items())
    return dict(sorted(named))


def superclasses() -> list[int]:
    """The number of each class's family, by the class's number."""
    names = sorted(FAMILIES)
    return [names.index(next(f for f in names if c.startswith(f + "_"))) for c in class_characters()]


def write_glyphs(folder: Path, seed: int, train_per_class: int, test_per_class: int) -> Description:
    """Draw the dataset into ``folder``; the same arguments give the same bytes."""
    painter, names = _Painter(Style()), list(class_characters())
    counts: dict[Split, int] = {"train": train_per_class, "test": test_per_class}
    for (split, per_class), stream in zip(counts.items(), np.random.SeedSequence(seed).spawn(2), strict=True):
        labels = np.tile(np.arange(len(names)), per_class).tolist()
        rng = np.random.default_rng(stream)
        images = (painter.draw(label, rng)[None] for label in progress(labels, f"draw {split}"))
        write_split(folder, split, images, labels)
    families = sorted(FAMILIES)
    return Description(names, SQUASHED_TO_32, [families[number] for number in superclasses()])


class _Painter:
    """Draws images (3, 32, 32) uint8 of a class in one style."""

    def __init__(self, style: Style) -> None:
        import matplotlib as mpl  # noqa: PLC0415 (networks are served without it)

        self.style = style
        font_file = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        font = ImageFont.truetype(str(font_file), _CANVAS)
        self.masks = [_mask(character, font) for character in class_characters().values()]

    def draw(self, class_number: int, rng: np.random.Generator) -> np.ndarray:
        """One image of the class, its look drawn from ``rng``."""
        s = self.style
        ground, ink = self._two_colours(rng)
        image = Image.new("RGB", (SIDE, SIDE), _rgb(ground))
        self._clutter(image, ground, rng)
        mask = self._placed(self.masks[class_number], s.glyph_height, 16 + rng.uniform(-4, 4, 2), rng)
        image.paste(_rgb(ink), (0, 0), mask)
        pixels = np.asarray(image, dtype=np.float64)
        pixels = pixels + rng.normal(0, rng.uniform(*s.noise), pixels.shape)
        return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(2, 0, 1)

    def _two_colours(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Two colours whose brightness differs by the style's contrast, at random either way."""
        gap = rng.uniform(*self.style.contrast) * 255
        dark = rng.uniform(0, 255 - gap)
        pair = [dark + rng.uniform(-40, 40, 3), dark + gap + rng.uniform(-40, 40, 3)]
        first = int(rng.integers(2))
        return pair[first], pair[1 - first]

    def _clutter(self, image: Image.Image, ground: np.ndarray, rng: np.random.Generator) -> None:
        pen = ImageDraw.Draw(image)
        for _ in range(rng.integers(self.style.strokes + 1)):
            ends = [float(v) for v in rng.uniform(-4, SIDE + 4, 4)]
            pen.line(ends, _rgb(ground + rng.uniform(-60, 60, 3)), int(rng.integers(1, 4)))
        for _ in range(rng.integers(self.style.stray_glyphs + 1)):
            stray = self.masks[rng.integers(len(self.masks))]
            corner = rng.choice([1.0, SIDE - 1.0], 2) + rng.uniform(-3, 3, 2)
            placed = self._placed(stray, (8.0, 14.0), corner, rng)
            image.paste(_rgb(ground + rng.uniform(-110, 110, 3)), (0, 0), placed)

    def _placed(
        self, mask: Image.Image, heights: tuple[float, float], centre: np.ndarray, rng: np.random.Generator
    ) -> Image.Image:
        """``mask`` scaled, stretched, rotated and moved to ``centre`` of a 32 x 32 image."""
        angle = np.deg2rad(rng.uniform(-1, 1) * self.style.rotation_degrees)
        zoom = mask.height / rng.uniform(*heights) * rng.uniform(0.85, 1.15, 2)
        cos, sin = np.cos(angle), np.sin(angle)
        inverse = np.array([[cos, sin], [-sin, cos]]) * zoom[:, None]
        shift = np.array(mask.size) / 2 - inverse @ centre
        coefficients = [*inverse[0], shift[0], *inverse[1], shift[1]]
        return mask.transform(
            (SIDE, SIDE), Image.Transform.AFFINE, [float(c) for c in coefficients], Image.Resampling.BILINEAR
        )


def _mask(character: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """The character's coverage, cropped to its ink and scaled to the canvas, as an 8-bit image."""
    left, top, right, bottom = (int(v) for v in font.getbbox(character))
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), character, 255, font)
    side = max(mask.size)
    square = Image.new("L", (side, side))
    square.paste(mask, ((side - mask.width) // 2, (side - mask.height) // 2))
    return square.resize((_CANVAS, _CANVAS), Image.Resampling.LANCZOS)


def _rgb(colour: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.rint(colour), 0, 255).astype(int).tolist()
    return red, green, blue
