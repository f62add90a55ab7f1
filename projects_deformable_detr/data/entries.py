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

_MAX_SEARCHED = 200_000  # maximum number of files below the image folder to compare with missing ones


def check_categories(entries: list[Any], problems: Problems, *, drop_root: bool = False) -> dict[int, str]:
    """Checks the categories and returns their names by id, in the order of the ids.

    Args:
        entries: decoded JSON. Ids that are whole floats or strings of digits are replaced in place.
        problems: collects the faults.
        drop_root: whether to leave out the category that `find_root` returns.
    """
    found: dict[int, str] = {}
    for index, entry in enumerate(entries):
        if isinstance(entry, dict):
            entries[index] = entry = with_integers(entry, ("id",), problems)
        is_sound = isinstance(entry, dict) and type(entry.get("id")) is int and isinstance(entry.get("name"), str)
        if not is_sound:
            remedy = "Give each an integer 'id' and a string 'name'."
            problems.add("categories that are incomplete", f"categories[{index}] is {entry!r:.80}", remedy)
        elif entry["id"] in found:
            names = f"id {entry['id']}: {found[entry['id']]!r} and {entry['name']!r}"
            problems.add("category ids that are used twice", names, "Give each category a unique id.")
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
            problems.warn("names of several categories", what, "Each category is a class of its own.")
    return dict(sorted(found.items()))


def find_root(entries: list[dict[str, Any]]) -> Any:
    """Returns the id of the root category that exporters such as Roboflow add; None if there is none.

    The root has no supercategory, or ``"none"``, and is the supercategory of all other categories.
    """
    above = {name for entry in entries if isinstance(name := entry.get("supercategory"), str)} - {"", "none"}
    roots = [entry for entry in entries if entry.get("supercategory") in (None, "", "none")]
    return roots[0]["id"] if len(roots) == 1 and above == {roots[0]["name"]} else None


def convert_images(entries: list[Any], problems: Problems) -> list[ImageEntry]:
    """Returns the entries of ``images`` as structs."""

    def report(index: int, entry: Any, message: str) -> None:
        remedy = "Give each an integer 'id', a string 'file_name', and 'width' and 'height' in pixels."
        problems.add("images that are incomplete", f"images[{index}] is {entry!r:.80} ({message})", remedy)

    return convert(entries, ImageEntry, report, lambda entry: with_integers(entry, ("id", "width", "height"), problems))


def check_images(images: list[ImageEntry], spec: DatasetSpec, problems: Problems, hint: str = "") -> list[ImageEntry]:
    """Checks that image ids are unique and that every image file exists.

    Args:
        images: entries of the file. A ``file_name`` that is spelled differently in the file system is replaced.
        spec: data set.
        problems: collects the faults.
        hint: sentence to append to the error about missing files.

    Returns:
        The images in the order of their ids.
    """
    found: dict[int, ImageEntry] = {}
    for image in images:
        if image.file_name is None:
            problems.add("images without a file_name", f"id {image.id}", "Give each a string 'file_name'.")
        elif image.id in found:
            problems.add("image ids that are used twice", f"id {image.id}: {image.file_name}", "Use unique ids.")
        else:
            found[image.id] = image
    if not images:
        problems.add("empty list of images", "'images'", "Add the images.")
    ordered = [found[image_id] for image_id in sorted(found)]
    if os.path.isdir(spec.image_root):
        remedy = f"Add the files, correct the image folder, or remove their records.{hint}"
        find_files(ordered, str(spec.image_root), "image files", remedy, problems)
    else:
        problems.add("missing image folder", str(spec.image_root), "Correct the path, or place the images there.")
    ids = defaultdict(list)
    for image in ordered:
        ids[image.file_name].append(str(image.id))
    for name, several in ids.items():
        if len(several) > 1:
            what = f"{name} has the ids {', '.join(several)}"
            consequence = "Each id is an image of its own, trained and evaluated with its own annotations only."
            problems.warn("image files that are listed several times", what, consequence)
    return ordered


class _FolderListings:
    """Names of the files in folders. Listing a folder is faster than one system call per file.

    Args:
        root: folder to which paths are relative.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._names: dict[str, set[str]] = {}

    def find(self, path: str) -> str | None:
        """Returns the path as it is spelled in the file system, or None.

        The path may contain Windows separators, and its file name may be in another Unicode normalization.
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
        remedy: sentence that ends the message about missing files.
        problems: collects the faults.
    """
    listings, missing = _FolderListings(root), []
    for entry in entries:
        found = listings.find(entry.file_name)
        if found is None:
            missing.append(entry.file_name)
        elif found != entry.file_name:
            what = f"names of {kind} with Windows separators or in another Unicode normalization"
            problems.warn(what, f"{entry.file_name!r} is {found!r}", "The files are used.")
            entry.file_name = found
    if missing:
        paths = (os.path.join(root, name) for name in missing)
        problems.add(f"{kind} that are missing", paths, remedy + _similar(missing, root), len(missing))


def _similar(missing: list[str], root: str) -> str:
    """Returns a sentence about files below ``root`` that differ in folder, case or extension only, or ""."""

    def key(name: str) -> str:
        return unicodedata.normalize("NFC", Path(re.split(r"[\\/]", name)[-1]).stem).casefold()

    paths = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)
    known = {key(path): os.path.relpath(path, root) for path in islice(paths, _MAX_SEARCHED)}
    found = [(name, known[key(name)]) for name in missing if key(name) in known]
    if not found:
        return ""
    folders = {os.path.dirname(path) for _, path in found}
    text = f" {len(found)} of {len(missing)} have a similar name below the image folder, such as {found[0][1]!r} for "
    text += f"{found[0][0]!r}: correct file_name"
    if len(folders) == 1 and "" not in folders and all(os.path.basename(path) == name for name, path in found):
        text += f", or use the image folder {os.path.join(root, *folders)}"
    return text + "."
