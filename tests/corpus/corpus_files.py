"""Rows of the corpus: images and other parts of annotation files, and files in other formats."""

import json
import unicodedata
from typing import Any

from corpus_annotations import crowded, plain, targets
from corpus_inputs import HEIGHT, IMAGES, WIDTH, Inputs, accept, entries, error, lists, options, text, together, warn

VOC = b"<annotation><folder>a</folder><object><name>red</name></object></annotation>"


def rename(change: Any) -> Any:
    """Returns a function that renames image files, but not their records."""

    def apply(inputs: Inputs) -> None:
        inputs.pictures = {change(name): content for name, content in inputs.pictures.items()}

    return apply


FILES = [
    error(
        "width and height exchanged in all images",
        r"records with swapped width and height \(5\)|width and height of the images are swapped",
        entries("images", width=HEIGHT, height=WIDTH),
    ),
    error(
        "width and height exchanged in one image",
        r"records with swapped width and height \(1\).*4\.png is 80 x 64",
        entries("images", 3, width=HEIGHT, height=WIDTH),
    ),
    error("image of width 0", r"invalid images \(1\)", entries("images", 0, width=0)),
    error("huge image in its record", r"invalid images \(1\)", entries("images", 0, width=10**12)),
    error("no file name", r"images without a file_name \(1\)", entries("images", 0, file_name=...)),
    warn(
        "Windows separators",
        r"image files whose names differ in path separators",
        together(
            entries("images", 0, file_name="a\\b\\1.png"),
            rename(lambda name: f"a/b/{name}" if name == "1.png" else name),
        ),
        plain,
    ),
    error(
        "absolute paths of another machine",
        r"missing image files \(5\)(.|\n)*similar name exist for 5 of 5",
        entries("images", file_name=lambda item: f"/home/someone/{item['file_name']}"),
    ),
    error(
        "images in a sub-folder",
        r"missing image files \(5\)(.|\n)*use the image folder \S*images/train",
        rename(lambda name: f"train/{name}"),
    ),
    warn(
        "file names in another Unicode normalization",
        "Unicode normalization",
        together(
            entries("images", 0, file_name=unicodedata.normalize("NFC", "caf\u00e9.png")),
            rename(lambda name: unicodedata.normalize("NFD", "caf\u00e9.png") if name == "1.png" else name),
        ),
        plain,
    ),
    error(
        "file name of 5,000 characters",
        r"missing image files \(1\)",
        entries("images", 0, file_name="a" * 5000 + ".png"),
    ),
    error(
        "more objects than queries",
        r"images with more objects than the 8 queries \(1\)(.|\n)*MODEL\.DETR\.NUM_OBJECT_QUERIES",
        crowded(9),
    ),
    warn(
        "more objects than detections",
        r"images with more objects than the 1 detections per image \(5\).*set TEST\.DETECTIONS_PER_IMAGE to at least 2",
        options("TEST.DETECTIONS_PER_IMAGE", "1"),
        ap=None,
    ),
    accept(
        "image without objects",
        lambda inputs: inputs.content["annotations"].__delitem__(slice(2)),
        targets(count=IMAGES),
        ap=None,
    ),
    error("no images", "empty list of images", lists(images=[])),
    error("no categories", "empty list of categories", lists(categories=[])),
    error("no annotations", "list 'annotations' is empty", lists(annotations=[])),
    error("no list of images", r"has no list 'images'", lists(images=...)),
    error("no list of annotations", r"has no list 'annotations'", lists(annotations=...)),
    error("annotations that are an object", r"has no list 'annotations'", lists(annotations={})),
    accept("repeated key", text(lambda content: b'{"images": [],' + content[1:]), plain),
    error("truncated JSON", "is not JSON", text(lambda content: content[:-200])),
    error("empty file", "is not JSON", text(b"")),
    error("JSON null", "contains a NoneType", text(b"null")),
    error("JSON list", "contains a list", text(b"[1, 2]")),
    error("deeply nested JSON", "is not JSON", text(b"[" * 100_000)),
    error("COCO results file", "like a COCO results file", text(json.dumps([{"image_id": 1, "score": 1}]).encode())),
    error("Pascal VOC's XML", "Pascal VOC XML format, not JSON: convert it with .*convert-data", text(VOC)),
    error("YOLO text", "YOLO text format, not JSON: convert it with .*convert-data", text(b"0 0.5 0.5 0.1 0.2\n" * 3)),
    error("archive", "is a compressed archive, not JSON: unpack it", text(b"PK\x03\x04rest")),
    accept("byte order mark", text(lambda content: b"\xef\xbb\xbf" + content), plain),
    accept("UTF-16", text(lambda content: content.decode().encode("utf-16")), plain),
    error("Latin-1", "is not JSON", text(lambda content: content.replace(b"red", b"r\xe9d"))),
    error("no file", "annotation file .* does not exist", lambda inputs: setattr(inputs, "content", None)),
    error(
        "folder as file",
        "is a folder",
        lambda inputs: (inputs.json_file.mkdir(parents=True), setattr(inputs, "content", None)),
    ),
]
