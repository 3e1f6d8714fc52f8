"""A test image as a picture, for those who try a served network."""

from io import BytesIO

from PIL import Image

from laq.dataset.images import read_images
from laq.errors import LaqError
from laq.paths import DATASET
from laq.subsets.asked import asked_subset


def sample_picture(subset: str, number: int) -> tuple[str, bytes]:
    """The class and the PNG of a test image of a subset's classes, which are counted in the dataset's order.

    Raises:
        LaqError: the subset has fewer test images, or a stage's output is missing or damaged.
    """
    images = read_images(DATASET, "test").select(asked_subset("", subset).classes)
    if number >= len(images):
        raise LaqError(
            f"--number: found {number}; must be below {len(images)}, the number of {subset}'s test images"
        )
    pixels = images.images[number].permute(1, 2, 0).numpy()
    content = BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return images.class_names[int(images.labels[number])], content.getvalue()
