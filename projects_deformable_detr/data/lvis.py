"""LVIS format (arXiv 1908.03195): COCO instances format, with each image annotated for a subset of the categories.

In an LVIS file, each image lists ``neg_category_ids``, the categories verified to be absent from it, and
``not_exhaustive_category_ids``, the categories whose objects are not all annotated. The ``frequency`` of a category is
r (rare, 1 to 10 training images), c (common, 11 to 100) or f (frequent, more than 100).
"""

import json
import mmap
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from .files import AS_INTEGERS, ImageEntry, as_integer
from .problems import Problems
from .records import Array

FREQUENCIES = ("r", "c", "f")
FILE_NAME_HINT = " In LVIS files, the last two parts of coco_url are the path of an image."
FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")


def is_lvis_file(path: str | Path) -> bool:
    """Returns whether a file is in LVIS format; False if it does not exist.

    Searches for ``neg_category_ids`` without decoding the file, because LVIS files are about 1 GB in size.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            encoding = json.detect_encoding(content[:4]).removesuffix("-sig")
            encoding += "-le" * (encoding in ("utf-16", "utf-32"))  # without a byte order mark
            return content.find(f'"{FEDERATED[0]}"'.encode(encoding)) >= 0
    except (OSError, ValueError):  # ValueError: an empty file
        return False


def is_lvis(images: list[ImageEntry]) -> bool:
    """Returns whether a file with these images is in LVIS format."""
    return any(image.neg_category_ids is not msgspec.UNSET for image in images)


def prepare(images: list[ImageEntry], categories: list[Any], problems: Problems) -> None:
    """Checks the fields specific to LVIS, and sets the file names of images and names of categories in place.

    The ``file_name`` of an image with a ``coco_url`` is set to the last two parts of the URL, such as
    ``val2017/000000000139.jpg``. As in Detectron2, the ``name`` of a category is set to its first synonym.
    """
    ids = (as_integer(item.get("id")) for item in categories if isinstance(item, dict))
    known = {category_id for category_id in ids if type(category_id) is int}
    for image in images:
        _prepare_image(image, known, problems)
    for index, category in enumerate(categories):
        if isinstance(category, dict):
            _prepare_category(category, f"categories[{index}] (id {category.get('id')!r})", problems)


def _prepare_image(image: ImageEntry, known: set[int], problems: Problems) -> None:
    where = f"image {image.id}"
    for key in FEDERATED:
        listed = getattr(image, key)
        if not isinstance(listed, list):
            remedy = "LVIS evaluation requires a list of category ids, which may be empty, in every image."
            problems.add(f"images without a list {key!r}", f"{where} has {key} {listed!r:.40}", remedy)
            continue
        others = [item for item in listed if type(item) is not int]
        if others:
            setattr(image, key, listed := [as_integer(item) for item in listed])
            converted = [item for item in others if as_integer(item) is not item]
            examples = (f"{key} {item!r:.40}" for item in converted)
            if converted:
                problems.warn(AS_INTEGERS[0], examples, AS_INTEGERS[1], len(converted))
        wrong = [item for item in listed if type(item) is not int or item not in known]
        if wrong:
            remedy = "Correct the ids, or add the categories."
            problems.add(f"ids in {key!r} that are not in 'categories'", f"{where}: {wrong[0]!r:.40}", remedy)
    url = image.coco_url
    if url is None:
        return
    parts = url.split("/")[-2:] if isinstance(url, str) else []
    if len(parts) < 2 or not all(parts):
        remedy = (
            "Its last two parts must be the path of the image relative to the image folder. Remove it to use file_name."
        )
        problems.add("images with an invalid 'coco_url'", f"{where} has {url!r:.60}", remedy)
        return
    image.file_name = "/".join(parts)


def _prepare_category(category: dict[str, Any], where: str, problems: Problems) -> None:
    if category.get("frequency") not in FREQUENCIES:
        remedy = "Set frequency to r, c or f, for 1 to 10, 11 to 100 or more training images."
        what = f"{where} has frequency {category.get('frequency')!r}"
        problems.add("categories without a valid frequency", what, remedy)
    synonyms = category.get("synonyms")
    if isinstance(synonyms, list) and synonyms and isinstance(synonyms[0], str):
        category["name"] = synonyms[0]


def check_absent_categories(
    images: list[ImageEntry], category_ids: list[int], owners: Array, labels: Array, problems: Problems
) -> None:
    """Checks that no image has objects of its ``neg_category_ids``.

    Args:
        images: entries of the file.
        category_ids: ids of the categories.
        owners, labels: (annotations,) indices into ``images`` and ``category_ids``.
        problems: collects errors.
    """
    positions = {category_id: position for position, category_id in enumerate(category_ids)}
    absent = [(row, item) for row, image in enumerate(images) for item in image.neg_category_ids]
    keys = np.array([row * len(positions) + positions[item] for row, item in absent], np.int64)
    for index in np.flatnonzero(np.isin(keys, owners * len(positions) + labels)).tolist():
        row, item = absent[index]
        where = f"image {images[row].id} has objects of category {item}"
        remedy = "Remove the category from the list, or correct the objects."
        problems.add(f"images with objects of classes in {FEDERATED[0]!r}", where, remedy)
