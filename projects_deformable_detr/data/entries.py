"""Checks the categories and images of annotation files, and finds the image files."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from .catalog import DatasetSpec
from .files import ImageEntry, convert, with_integers
from .problems import Problems

_MAX_SEARCHED = 200_000  # maximum number of files in the image folder to compare with missing ones


def check_categories(entries: list[Any], problems: Problems, *, drop_root: bool = False) -> dict[int, str]:
    """Checks the categories and returns their names by id, in the order of the ids.

    Args:
        entries: decoded JSON. Integer ids written as floats or strings are converted in place.
        problems: collects errors and warnings.
        drop_root: whether to drop the category that `find_root` returns.
    """
    found: dict[int, str] = {}
    for index, entry in enumerate(entries):
        if isinstance(entry, dict):
            entries[index] = entry = with_integers(entry, ("id",), problems)
        if not (isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("name"), str)):
            remedy = "Each category requires an integer 'id' and a string 'name'."
            problems.add("invalid categories", f"categories[{index}] is {entry!r:.80}", remedy)
        elif entry["id"] in found:
            names = f"id {entry['id']}: {found[entry['id']]!r} and {entry['name']!r}"
            problems.add("duplicate category ids", names, "Give each category a unique id.")
        else:
            found[entry["id"]] = entry["name"]
    if not entries:
        problems.add("empty list of categories", "'categories'", "Add the classes.")
    if drop_root and not problems:
        found.pop(find_root(entries), None)
    ids = defaultdict(list)
    for category_id in sorted(found):
        ids[found[category_id].strip()].append(str(category_id))
    for name, several in ids.items():
        if len(several) > 1:
            what = f"{name!r} has the ids {', '.join(several)}"
            problems.warn("duplicate category names", what, "Categories with the same name remain separate classes.")
    return dict(sorted(found.items()))


def find_root(entries: list[dict[str, Any]]) -> Any:
    """Returns the id of the root category that exporters such as Roboflow add, or None.

    The root has no supercategory (or ``"none"``) and is the supercategory of all other categories.
    """
    above = {name for entry in entries if isinstance(name := entry.get("supercategory"), str)} - {"", "none"}
    roots = [entry for entry in entries if entry.get("supercategory") in (None, "", "none")]
    return roots[0]["id"] if len(roots) == 1 and above == {roots[0]["name"]} else None


def convert_images(entries: list[Any], problems: Problems) -> list[ImageEntry]:
    """Returns the entries of ``images`` as structs."""

    def report(index: int, entry: Any, message: str) -> None:
        remedy = "Each image requires an integer 'id', a string 'file_name', and 'width' and 'height' in pixels."
        problems.add("invalid images", f"images[{index}] is {entry!r:.80} ({message})", remedy)

    if not entries:
        problems.add("empty list of images", "'images'", "Add the images.")
    return convert(entries, ImageEntry, report, lambda entry: with_integers(entry, ("id", "width", "height"), problems))


def check_images(images: list[ImageEntry], spec: DatasetSpec, problems: Problems, hint: str = "") -> list[ImageEntry]:
    """Checks that image ids are unique and that every image file exists.

    Args:
        images: entries of the file. Each ``file_name`` is replaced with its spelling in the file system.
        spec: data set.
        problems: collects errors and warnings.
        hint: sentence appended to the error about missing files.

    Returns:
        The images, sorted by id.
    """
    found: dict[int, ImageEntry] = {}
    for image in images:
        if image.file_name is None:
            problems.add("images without a file_name", f"id {image.id}", "Each image requires a string 'file_name'.")
        elif image.id in found:
            problems.add("duplicate image ids", f"id {image.id}: {image.file_name}", "Give each image a unique id.")
        else:
            found[image.id] = image
    ordered = [found[image_id] for image_id in sorted(found)]
    if os.path.isdir(spec.image_root):
        remedy = f"Add the files, correct the image folder, or remove the images from the annotation file.{hint}"
        find_files(ordered, str(spec.image_root), "image files", remedy, problems)
    else:
        problems.add("missing image folder", str(spec.image_root), "Correct the path, or create the folder.")
    ids = defaultdict(list)
    for image in ordered:
        ids[image.file_name].append(str(image.id))
    for name, several in ids.items():
        if len(several) > 1:
            what = f"{name} has the ids {', '.join(several)}"
            consequence = "Each entry is treated as a separate image with its own annotations."
            problems.warn("image files with several entries", what, consequence)
    return ordered


class _FolderListings:
    """Cached listings of folders. Listing a folder is faster than one system call per file.

    Args:
        root: folder to which paths are relative.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._names: dict[str, set[str]] = {}

    def find(self, path: str) -> str | None:
        """Returns the spelling of a path in the file system, or None if there is no such file.

        The path may contain Windows separators, and its file name may use another Unicode normalization form.
        """
        for candidate in (path, path.replace("\\", "/")):
            folder, name = os.path.split(os.path.join(self.root, candidate))
            if folder not in self._names:
                entries = os.scandir(folder) if os.path.isdir(folder) else ()
                self._names[folder] = {entry.name for entry in entries if not entry.is_dir()}
            if name in self._names[folder]:
                return candidate
            for form in ("NFC", "NFD"):
                if (other := unicodedata.normalize(form, name)) in self._names[folder]:
                    return os.path.join(os.path.dirname(candidate), other)
        return None


def find_files(entries: Sequence[Any], root: str, kind: str, remedy: str, problems: Problems) -> None:
    """Finds the files of entries, and replaces each ``file_name`` with the spelling in the file system.

    Args:
        entries: objects with a ``file_name`` below ``root``.
        root: folder of the files.
        kind: plural noun for the files in messages.
        remedy: sentence at the end of the message about missing files.
        problems: collects errors and warnings.
    """
    listings, missing = _FolderListings(root), []
    for entry in entries:
        found = listings.find(entry.file_name)
        if found is None:
            missing.append(entry.file_name)
        elif found != entry.file_name:
            what = f"{kind} whose names differ in path separators or Unicode normalization"
            problems.warn(what, f"{entry.file_name!r} is stored as {found!r}", "The stored files are used.")
            entry.file_name = found
    if missing:
        paths = (os.path.join(root, name) for name in missing)
        problems.add(f"missing {kind}", paths, remedy + _similar(missing, root), len(missing))


def _similar(missing: list[str], root: str) -> str:
    """Returns a sentence about files in ``root`` that differ only in folder, case or extension, or ""."""

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", Path(re.split(r"[\\/]", name)[-1]).stem).casefold()

    paths = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    known = {key(path): os.path.relpath(path, root) for path in islice(paths, _MAX_SEARCHED)}
    found = [(name, known[key(name)]) for name in missing if key(name) in known]
    if not found:
        return ""
    folders = {os.path.dirname(path) for _, path in found}
    text = f" Files with a similar name exist for {len(found)} of {len(missing)}, such as {found[0][1]!r} for "
    text += f"{found[0][0]!r}: correct file_name"
    if len(folders) == 1 and "" not in folders and all(os.path.basename(path) == name for name, path in found):
        text += f", or use the image folder {os.path.join(root, *folders)}"
    return text + "."
