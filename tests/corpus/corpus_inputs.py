"""Inputs of the corpus: a small data set, a tiny model, and functions that change them.

python tests/corpus/corpus_inputs.py DIR   # writes the inputs of all rows and prints the table
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT, IMAGES = 80, 64, 5
RED, BLUE = 3, 7  # category ids
BOXES = {RED: [30, 20, 24, 32], BLUE: [4, 6, 20, 16]}  # x, y, width, height
CONFIG = """
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  PIXEL_MEAN: [0.0, 0.0, 0.0]
  PIXEL_STD: [1.0, 1.0, 1.0]
  BACKBONE: {FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, NORM: GN, STEM_OUT_CHANNELS: 16, RES2_OUT_CHANNELS: 16, OUT_FEATURES: [res2, res3, res4, res5]}
  DETR:
    {HIDDEN_DIM: 32, NHEADS: 8, ENC_LAYERS: 1, DEC_LAYERS: 1, DIM_FEEDFORWARD: 32, NUM_OBJECT_QUERIES: 8,
     IN_FEATURES: [res4, res5], NUM_FEATURE_LEVELS: 2, DROPOUT: 0.0}
INPUT: {MIN_SIZE_TRAIN: [64], MAX_SIZE_TRAIN: 160, MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 160, RANDOM_FLIP: none,
  CROP: {ENABLED: False}}
DATASETS: {TRAIN: [corpus], TEST: [corpus]}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 5, BASE_LR: 1.0e-4, BACKBONE_MULTIPLIER: 1.0, MAX_ITER: 1, STEPS: [], WARMUP_ITERS: 0,
  CHECKPOINT_PERIOD: 10}
SEED: 1
OUTPUT_DIR: output
"""


@dataclass
class Inputs:
    """Input files and command line of a run, before a case changes them.

    Attributes:
        folder: folder in which everything is written.
        content: content of the annotation file; bytes are written unchanged, None writes no file.
        pictures: content of the image files by file name.
        options: config keys and values.
        flags: flags of train_net.py.
        config: content of the config file; None writes no file.
        truth: class and box (cx, cy, w, h in [0, 1]) of each object that the detector predicts in evaluations; empty:
            its own predictions.
        first_run: config keys and values of a run before; (): none.
        between: called after the first run; may change files and inputs.
        environment: environment variables.
        function: registered as ``corpus_function`` in Detectron2's catalog; None: none.
    """

    folder: Path
    content: Any = None
    pictures: dict[str, bytes] = field(default_factory=dict)
    options: list[object] = field(default_factory=list)
    flags: list[object] = field(default_factory=list)
    config: str | None = CONFIG
    truth: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)
    first_run: tuple[object, ...] = ()
    between: Callable[[], object] = lambda: None
    environment: dict[str, str] = field(default_factory=dict)
    function: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for image_id in range(1, IMAGES + 1):
            name = f"{image_id}.png"
            images.append({"id": image_id, "file_name": name, "width": WIDTH, "height": HEIGHT})
            self.pictures[name] = encode(picture())
            for category_id, box in BOXES.items():
                x, y, width, height = box
                entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_id, "bbox": box}
                outline = [[x, y, x + width, y, x + width, y + height, x, y + height]]
                entry |= {"area": width * height, "iscrowd": 0, "segmentation": outline}
                annotations.append(json.loads(json.dumps(entry)))
        categories = [{"id": RED, "name": "red"}, {"id": BLUE, "name": "blue"}]
        self.content = {"images": images, "annotations": annotations, "categories": categories}
        for label, (x, y, width, height) in enumerate(BOXES.values()):
            box = (x + width / 2) / WIDTH, (y + height / 2) / HEIGHT, width / WIDTH, height / HEIGHT
            self.truth.append((label, box))

    @property
    def json_file(self) -> Path:
        """Path of the annotation file."""
        return self.folder / "instances.json"

    @property
    def image_root(self) -> Path:
        """Folder of the images."""
        return self.folder / "images"

    def write(self, first: tuple[object, ...] = ()) -> list[str]:
        """Writes the files and returns the command line; with ``first``, that of the first run."""
        self.image_root.mkdir(parents=True, exist_ok=True)
        for name, content in self.pictures.items():
            (self.image_root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.image_root / name).write_bytes(content)
        if self.content is not None:
            content = self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()
            self.json_file.write_bytes(content)
        if self.config is not None:
            (self.folder / "config.yaml").write_text(self.config)
        words = ["--config-file", self.folder / "config.yaml", "--register", "corpus", self.json_file, self.image_root]
        return [str(word) for word in (*words, *self.flags, *self.options, *first)]


Change = Callable[[Inputs], object]  # changes inputs in place


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: name of the input.
        policy: ``accept``; ``warn``: accept, with a warning; ``skip``: skip, with a warning; ``error``: status 2.
        message: regular expression that the output contains.
        make: changes the inputs.
        check: raises if the result of an accepted input is wrong.
        ap: AP of the predictions in ``Inputs.truth``; None: not compared.
        engines: engines in which the row is run.
    """

    name: str
    policy: str
    message: str
    make: Change
    check: Callable[[Any], object] | None = None
    ap: float | None = 100.0
    engines: tuple[str, ...] = ("standalone", "detectron2")


def accept(name: str, make: Change, check: Any = None, *, message: str = "", ap: float | None = 100.0) -> Case:
    """Returns the row of an input that is accepted."""
    return Case(name, "accept", message, make, check, ap)


def warn(name: str, message: str, make: Change, check: Any = None, ap: float | None = 100.0) -> Case:
    """Returns the row of an input that is accepted with a warning."""
    return Case(name, "warn", message, make, check, ap)


def skip(name: str, message: str, make: Change, check: Any = None, ap: float | None = 100.0) -> Case:
    """Returns the row of an input of which a part is dropped with a warning."""
    return Case(name, "skip", message, make, check, ap)


def error(name: str, message: str, make: Change, check: Any = None) -> Case:
    """Returns the row of an input that is rejected."""
    return Case(name, "error", message, make, check)


def picture(mode: str = "RGB") -> Image.Image:
    """Returns a gray image with a rectangle for each object."""
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    for color, (x, y, width, height) in zip(((200, 40, 40), (40, 40, 200)), BOXES.values(), strict=True):
        pixels[y : y + height, x : x + width] = color
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Returns the content of an image file."""
    stream = BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def together(*changes: Change) -> Change:
    """Returns a function that applies several changes in order."""

    def apply(inputs: Inputs) -> None:
        for change in changes:
            change(inputs)

    return apply


def entries(key: str, *indices: int, **values: Any) -> Change:
    """Returns a function that changes entries of a list of the annotation file.

    Args:
        key: key of the list.
        indices: indices of the entries; by default all.
        values: new values by key; ``...`` removes a key, a function is called with the entry.
    """

    def change(inputs: Inputs) -> None:
        for index, entry in enumerate(inputs.content[key]):
            if index not in indices and indices:
                continue
            new = {name: value(entry) if callable(value) else value for name, value in values.items()}
            entry.update(new)
            for name in [name for name, value in new.items() if value is ...]:
                del entry[name]

    return change


def lists(**values: Any) -> Change:
    """Returns a function that replaces keys of the annotation file; ``...`` removes a key."""

    def change(inputs: Inputs) -> None:
        inputs.content.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del inputs.content[key]

    return change


def text(content: bytes | Callable[[bytes], bytes]) -> Change:
    """Returns a function that replaces the annotation file; functions are called with its content."""

    def change(inputs: Inputs) -> None:
        inputs.content = content(json.dumps(inputs.content).encode()) if callable(content) else content

    return change


def files(content: bytes | Callable[[bytes], bytes], *indices: int, suffix: str = "png") -> Change:
    """Returns a function that replaces image files (default: all); functions are called with the content."""

    def change(inputs: Inputs) -> None:
        for index, entry in enumerate(inputs.content["images"]):
            if index in indices or not indices:
                old = inputs.pictures.pop(entry["file_name"])
                entry["file_name"] = f"{index + 1}.{suffix}"
                inputs.pictures[entry["file_name"]] = content(old) if callable(content) else content

    return change


def options(*words: object) -> Change:
    """Returns a function that adds config keys and values."""
    return lambda inputs: inputs.options.extend(words)


def flags(*words: object) -> Change:
    """Returns a function that adds flags."""
    return lambda inputs: inputs.flags.extend(words)


def main() -> None:
    """Writes the inputs of all rows below a folder and prints the table."""
    from corpus_table import CASES

    print("| input | policy | message |\n|---|---|---|")
    for case in CASES:
        if len(sys.argv) > 1:
            inputs = Inputs(Path(sys.argv[1], case.name))
            case.make(inputs)
            inputs.write()
        print(f"| {case.name} | {case.policy} | {case.message} |")


if __name__ == "__main__":
    main()
