"""LVIS's format (arXiv 1908.03195): COCO's instances, annotated for some categories only in each image.

A file is LVIS's if its images tell which categories were looked for: ``neg_category_ids`` are known not to be there,
``not_exhaustive_category_ids`` may have more objects than are annotated. Its categories have a ``frequency``: r, c or f
(rare, common, frequent) for 1 to 10, 11 to 100 and more training images.
"""

import mmap
from pathlib import Path
from typing import Any

from .problems import Problems

_FEDERATED = ("neg_category_ids", "not_exhaustive_category_ids")
FREQUENCIES = ("r", "c", "f")


def is_lvis_file(path: str | Path) -> bool:
    """Whether a JSON file is LVIS's, by the one word that tells, without parsing what may be a gigabyte.

    A file that is not there, or empty, is not.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(f'"{_FEDERATED[0]}"'.encode()) >= 0
    except (OSError, ValueError):  # ValueError: nothing to map
        return False


def as_coco(content: dict[str, Any], problems: Problems) -> bool:
    """Puts the content of a LVIS file, as far as it is sound, into COCO's form, in place; COCO's it leaves alone.

    Images get a ``file_name`` below the image folder: the last two parts of their ``coco_url``, such as
    ``val2017/000000000139.jpg``, where they have one. Categories are called by their first synonym, as by Detectron2.
    No annotation is a crowd.

    Returns:
        whether it is LVIS's: some image names categories that are not in it.
    """
    images = [(index, image) for index, image in enumerate(content["images"]) if isinstance(image, dict)]
    if not any(_FEDERATED[0] in image for _, image in images):
        return False
    categories = [(index, item) for index, item in enumerate(content["categories"]) if isinstance(item, dict)]
    ids = {item["id"] for _, item in categories if type(item.get("id")) is int}
    for index, image in images:
        _read_image(image, f"images[{index}] (id {image.get('id')!r})", ids, problems)
    for index, category in categories:
        _read_category(category, f"categories[{index}] (id {category.get('id')!r})", problems)
    present: dict[Any, list[Any]] = {}  # lists: what an unsound file has may be no key
    for annotation in content.get("annotations", ()):
        if isinstance(annotation, dict):
            annotation.setdefault("iscrowd", 0)
            present.setdefault(repr(annotation.get("image_id")), []).append(annotation.get("category_id"))
    for index, image in images:
        absent = image.get(_FEDERATED[0])
        both = (
            [item for item in absent if item in present.get(repr(image.get("id")), ())]
            if isinstance(absent, list)
            else []
        )
        if both:
            where = f"images[{index}] (id {image.get('id')!r}) has objects of category {both[0]!r}"
            remedy = "A class cannot be both: correct the list, or the objects."
            problems.add(f"images with objects of classes in {_FEDERATED[0]!r}", where, remedy)
    return True


def _read_image(image: dict[str, Any], where: str, ids: set[Any], problems: Problems) -> None:
    for key in _FEDERATED:
        listed = image.get(key)
        if not isinstance(listed, list):
            remedy = "LVIS's evaluation needs it in every image: list category ids there, or nothing in []."
            problems.add(f"images without a list {key!r}", f"{where} has {key} {listed!r:.40}", remedy)
            continue
        wrong = [item for item in listed if type(item) is not int or item not in ids]
        if wrong:
            remedy = "Correct the ids, or add the categories."
            problems.add(f"ids in {key!r} that are not in 'categories'", f"{where}: {wrong[0]!r:.40}", remedy)
    url = image.get("coco_url")
    if url is None:
        return
    parts = url.split("/")[-2:] if isinstance(url, str) else []
    if len(parts) < 2 or not all(parts):
        remedy = "Its last two parts tell where the image is below the image folder; without it, 'file_name' does."
        problems.add("images with an unusable 'coco_url'", f"{where} has {url!r:.60}", remedy)
        return
    image["file_name"] = "/".join(parts)


def _read_category(category: dict[str, Any], where: str, problems: Problems) -> None:
    if category.get("frequency") not in FREQUENCIES:
        remedy = "Set each to r, c or f: in 1 to 10, in 11 to 100, in more images to train on."
        what = f"{where} has frequency {category.get('frequency')!r}"
        problems.add("categories without a frequency", what, remedy)
    synonyms = category.get("synonyms")
    if isinstance(synonyms, list) and synonyms and isinstance(synonyms[0], str):
        category["name"] = synonyms[0]
