"""An example picture of each class, for the page of a study on this machine."""

import io
import re
from base64 import b64encode
from math import ceil, sqrt
from typing import Final

import numpy as np
import torch
from PIL import Image

from laq.dataset.images import ImageSet

SIDE: Final = 48  # pixels, as in page.css and page.js
_QUALITY: Final = 85  # of the JPEG
_ELEMENT: Final = re.compile(r'<style id="examples">.*?</style>\n', re.DOTALL)


def example_pictures(data: ImageSet) -> str:
    """The first image of each class of ``data`` as the address of one JPEG, which the page holds in itself.

    The pictures are squares of ``SIDE`` pixels, row by row in the order of the classes, as many in a row as
    there are rows at most; a class without images has a black one.
    """
    classes = len(data.class_names)
    columns = ceil(sqrt(classes))
    sheet = Image.new("RGB", (columns * SIDE, ceil(classes / columns) * SIDE))
    numbers, rows = np.unique(data.labels.numpy(), return_index=True)
    for number, pixels in zip(numbers.tolist(), data.take(torch.from_numpy(rows)).images, strict=True):
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        place = (number % columns * SIDE, number // columns * SIDE)
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), place)
    content = io.BytesIO()
    sheet.save(content, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{b64encode(content.getvalue()).decode()}"


def without_examples(page: str) -> str:
    """The page without its example pictures, for datasets whose pictures may not be given away."""
    return _ELEMENT.sub("", page)
