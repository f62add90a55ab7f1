"""Converts annotations in Pascal VOC XML or YOLO text format to COCO instances format.

Names, boxes and the difficult flag of VOC objects are converted; difficult objects become crowds, which are ignored in
training and evaluation. A line of a YOLO file consists of a class and either a box, which may be followed by a
confidence, or a polygon. Keypoints are not converted.
"""

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import yaml
from PIL import Image

from .images import list_images, open_image, read_sizes
from .problems import DatasetError, Problems

Box = tuple[float, float, float, float]
_CLASS_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
_TOLERANCE = 0.1  # fraction of the image size by which a normalized coordinate may lie outside the image
# Maps the folder of annotations to the folder of images next to it.
_FOLDERS = {"labels": "images", "Annotations": "JPEGImages"}


class _Object(NamedTuple):
    """Object with a box (x, y, width, height) and a polygon [x1, y1, …], which may be empty, both in pixels."""

    name: str
    box: Box
    polygon: list[float]
    is_crowd: bool


def convert_dataset(
    folder: Path, images: Path | None = None, classes: Path | None = None, only: Iterable[str] | None = None
) -> tuple[dict[str, Any], Path]:
    """Converts a folder of ``.xml`` or ``.txt`` files.

    Args:
        folder: folder of annotations, or a folder with a subfolder ``labels`` or ``Annotations``.
        images: folder of the images. Default: ``images`` or ``JPEGImages`` next to the annotations, or ``folder``.
        classes: YAML file with ``names``, or text file with one name per line. Default: the class file of a YOLO data
            set; for VOC, the names in the annotations, sorted alphabetically.
        only: names of the images to convert, with or without folder and suffix; None: all.

    Returns:
        The content of a COCO file, and the folder of its images.

    Raises:
        DatasetError: with all problems found.
    """
    if not folder.is_dir():
        raise DatasetError(f"folder {folder} does not exist: correct the path")
    folder = next((folder / name for name in _FOLDERS if (folder / name).is_dir()), folder)
    files = sorted(folder.rglob("*"))
    is_voc = any(path.suffix.lower() == ".xml" for path in files)
    suffix = ".xml" if is_voc else ".txt"
    files = [path for path in files if path.suffix.lower() == suffix and path.name not in _CLASS_FILES]
    if not files:
        raise DatasetError(
            f"folder {folder} has no annotations: no .xml files, and no .txt files other than class files"
        )
    images = images or _image_folder(folder)
    class_file = classes or (None if is_voc else _find_class_file(folder, images))
    names, num_keypoints = _read_names(class_file) if class_file else ([], 0)
    problems = Problems(f"folder {folder}")
    found = _list_images(images, problems)
    selection = None if only is None else _Selection(only)
    objects: dict[Path, list[_Object]] = {}
    if files and not is_voc:  # an image without an annotation file has no objects
        objects = {path: [] for path in found.values() if selection is None or path in selection}
    for file in files:
        if file == class_file or (selection is not None and file not in selection):
            continue
        root = _parse_xml(file, problems) if is_voc else None
        path = found.get(str(file.relative_to(folder).with_suffix("")))
        if path is None and root is not None:
            path = found.get(Path((root.findtext("filename") or "").replace("\\", "/")).stem)
        if path is None and not is_voc and not _is_yolo(file):
            continue  # such as README.roboflow.txt
        if path is None:
            remedy = f"Place the images in {images}, or remove the annotations."
            problems.add("annotations without an image", str(file), remedy)
            continue
        height, width = _read_size(path)
        if root is not None:
            objects[path] = _read_voc(root, file, path, height, width, problems)
        elif not is_voc:
            objects[path] = _read_yolo(file, height, width, names, num_keypoints, problems)
    names = names or sorted({item.name for items in objects.values() for item in items})
    unknown = sorted({item.name for items in objects.values() for item in items} - set(names))
    if unknown:
        problems.add("classes that the class file lacks", unknown, "Add them to the class file.", len(unknown))
    if selection is not None and selection.unmatched:
        unmatched, remedy = sorted(selection.unmatched), "Correct or remove them, or write them without folders."
        problems.add("names in the selection without a file", unmatched, remedy, len(unmatched))
    if not objects and not problems:
        problems.add("folders without annotations", str(folder), "Use a folder of .xml (VOC) or .txt files (YOLO).")
    problems.raise_if_any()
    return _to_coco(objects, names, images), images


class _Selection:
    """Selection of images by name, with or without folder and suffix.

    Args:
        names: names of images. A name with folders selects the files whose path ends with it, where the folders
            ``labels`` and ``images`` are equivalent.

    Attributes:
        unmatched: names that have not matched any file.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_stem: dict[str, list[tuple[str, tuple[str, ...]]]] = defaultdict(list)
        for name in names:
            parts = tuple(part for part in Path(name.replace("\\", "/")).parts if part not in (".", "/"))
            if parts:
                self._by_stem[_stem(parts[-1])].append((name, parts[:-1]))
        self.unmatched = {name for entries in self._by_stem.values() for name, _ in entries}

    def __contains__(self, path: Path) -> bool:
        folders = [_FOLDERS.get(part, part) for part in path.absolute().parts[:-1]]
        is_selected = False
        for stem in {path.stem, path.name}:
            for name, parent in self._by_stem.get(stem, ()):
                expected = [_FOLDERS.get(part, part) for part in parent]
                if not expected or folders[-len(expected) :] == expected:
                    self.unmatched.discard(name)
                    is_selected = True
        return is_selected


def _stem(name: str) -> str:
    is_file = Path(name).suffix.lower() in {*Image.registered_extensions(), ".xml", ".txt"}
    return Path(name).stem if is_file else name


def _is_yolo(file: Path) -> bool:
    """Returns whether the first line of a text file is a YOLO object."""
    try:
        values = [*map(float, read_text(file).strip().partition("\n")[0].split())]
    except (DatasetError, ValueError):
        return False
    return len(values) >= 4


def read_text(file: Path) -> str:
    """Reads a text file in UTF-8; raises `DatasetError` for other encodings."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not UTF-8 text ({error}): save it in UTF-8") from error


def _image_folder(folder: Path) -> Path:
    """Returns the folder of images for a folder of annotations, such as ``images/train`` for ``labels/train``."""
    for index in reversed(range(len(folder.parts))):
        other = _FOLDERS.get(folder.parts[index])
        candidate = Path(*folder.parts[:index], other or "", *folder.parts[index + 1 :])
        if other and candidate.is_dir():
            return candidate
    return folder


def _list_images(folder: Path, problems: Problems) -> dict[str, Path]:
    """Returns the image files by relative path without suffix and, if unique, by name without suffix."""
    paths = list_images(folder)
    for first, second in pairwise(sorted(paths, key=lambda path: path.with_suffix(""))):
        if first.with_suffix("") == second.with_suffix(""):
            what = f"{first} and {second.name}"
            problems.add("images whose names differ only in the suffix", what, "Remove or rename one of them.")
    counts = Counter(path.stem for path in paths)
    unique = {path.stem: path for path in paths if counts[path.stem] == 1}
    return unique | {str(path.relative_to(folder).with_suffix("")): path for path in paths}


def _find_class_file(*folders: Path) -> Path:
    for folder in folders:
        for parent in (folder, *folder.absolute().parents[:3]):
            for name in _CLASS_FILES:
                if (parent / name).is_file():
                    return parent / name
    raise DatasetError(
        f"no class file ({', '.join(_CLASS_FILES)}) in {folders[0]} or its parent folders: add one, or pass --classes"
    )


def _read_names(file: Path) -> tuple[list[str], int]:
    """Returns the class names and the number of keypoint values after each box."""
    content = read_text(file)
    if file.suffix not in (".yaml", ".yml"):
        return [line.strip() for line in content.splitlines() if line.strip()], 0
    try:
        found = yaml.safe_load(content)
        names, shape = found["names"], found.get("kpt_shape") or (0, 0)
        names = [names[key] for key in sorted(names, key=int)] if isinstance(names, dict) else list(names)
        return [str(name) for name in names], int(shape[0]) * int(shape[1])
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(f"{file} has no list of class names ({error}): write `names: [cat, dog]`") from error


@functools.lru_cache(maxsize=1_000_000)
def _read_size(path: Path, stored: bool = False) -> tuple[int, int]:
    with open_image(path) as image:
        return read_sizes(image)[int(stored)]


def _parse_xml(file: Path, problems: Problems) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        problems.add("files that are not valid XML", f"{file} ({error})", "Correct or remove them.")
        return None


def _read_voc(
    root: ElementTree.Element, file: Path, path: Path, height: int, width: int, problems: Problems
) -> list[_Object]:
    stated = [root.findtext(f"size/{side}") or "0" for side in ("width", "height")]
    try:
        size = float(stated[0]), float(stated[1])
    except ValueError:
        size = math.nan, math.nan
    # Some tools ignore the EXIF orientation.
    if size not in ((0, 0), (width, height), _read_size(path, stored=True)[::-1]):
        what = f"{file}: {' x '.join(stated)}, but its image is {width} x {height}"
        problems.add("annotations whose size differs from their image", what, "Correct <size> and the boxes.")
    objects = []
    for item in root.iter("object"):
        try:
            corners = [float(item.findtext(f"bndbox/{side}") or "") for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError:
            corners = [math.nan] * 4
        name = (item.findtext("name") or "").strip()
        if not name or not all(map(math.isfinite, corners)):
            problems.add("objects without a name or a box", str(file), "Each object requires <name> and <bndbox>.")
            continue
        x1, y1, x2, y2 = corners
        # Coordinates start at 1, and xmax and ymax are the last pixels of the box.
        box = x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1
        objects.append(_Object(name, box, [], (item.findtext("difficult") or "").strip() == "1"))
    return objects


def _read_yolo(
    file: Path, height: int, width: int, names: list[str], num_keypoints: int, problems: Problems
) -> list[_Object]:
    objects = []
    try:
        lines = read_text(file).splitlines()
    except DatasetError:
        problems.add("files that are not UTF-8 text", str(file), "Save them in UTF-8.")
        return []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            label, *values = map(float, line.split())
        except ValueError:
            label, values = math.nan, []
        is_box = len(values) in (4, 5, 4 + num_keypoints)
        if label % 1 or not (is_box or (len(values) >= 6 and len(values) % 2 == 0)):
            remedy = "Write `class x y width height` or `class x1 y1 x2 y2 x3 y3 …`."
            problems.add("lines that are neither a box nor a polygon", f"{file}:{number}: {line:.60}", remedy)
        elif not all(-_TOLERANCE <= value <= 1 + _TOLERANCE for value in (values[:4] if is_box else values)):
            what = f"{file}:{number}: {line:.60}"
            problems.add("coordinates outside the image", what, "Divide them by the width and height of the image.")
        elif not 0 <= label < len(names):
            what = f"{file}:{number}: class {label:g} of {len(names)}"
            problems.add("classes that the class file lacks", what, "Add them to the class file.")
        elif is_box:
            x, y, w, h = values[0] * width, values[1] * height, values[2] * width, values[3] * height
            objects.append(_Object(names[int(label)], (x - w / 2, y - h / 2, w, h), [], False))
        else:
            points = [value * (height if index % 2 else width) for index, value in enumerate(values)]
            xs, ys = points[::2], points[1::2]
            box = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
            objects.append(_Object(names[int(label)], box, points, False))
    return objects


def _to_coco(objects: dict[Path, list[_Object]], names: list[str], images: Path) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index, "name": name} for index, name in enumerate(names, 1)],
    }
    ids = {name: index for index, name in enumerate(names, 1)}
    has_polygons = any(item.polygon for items in objects.values() for item in items)
    for image_id, path in enumerate(sorted(objects), 1):
        height, width = _read_size(path)
        name = path.relative_to(images).as_posix()
        content["images"].append({"id": image_id, "file_name": name, "width": width, "height": height})
        for item in objects[path]:
            x, y, w, h = box = [round(value, 3) for value in item.box]
            polygon = item.polygon or [x, y, x + w, y, x + w, y + h, x, y + h]
            entry: dict[str, Any] = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": ids[item.name],
            }
            entry |= {"bbox": box, "area": _area(polygon), "iscrowd": int(item.is_crowd)}
            if has_polygons:
                entry["segmentation"] = [[round(value, 3) for value in polygon]]
            content["annotations"].append(entry)
    return content


def _area(polygon: list[float]) -> float:
    """Returns the area of a polygon [x1, y1, x2, y2, …] by the shoelace formula."""
    xs, ys = polygon[::2], polygon[1::2]
    pairs = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
    return round(abs(sum(x1 * y2 - x2 * y1 for x1, y1, x2, y2 in pairs)) / 2, 3)
