"""LVIS's format: detection, conversion to COCO's format, and errors for invalid files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projects_deformable_detr.data import catalog, lvis
from projects_deformable_detr.data.catalog import DatasetSpec
from projects_deformable_detr.data.load import load_dataset, read_classes
from projects_deformable_detr.data.problems import DatasetError

Write = Callable[[Any], DatasetSpec]


@pytest.fixture
def federated(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the valid content in LVIS's format; the path of deep/b.png is in its URL."""
    absent = {10: 7, 20: 9, 30: 4}
    for image in content["images"]:
        image |= {"neg_category_ids": [absent[image["id"]]], "not_exhaustive_category_ids": []}
        if image["file_name"] == "deep/b.png":
            image |= {"file_name": "COCO_b.png", "coco_url": "http://images.example/some/deep/b.png"}
    for category, frequency in zip(content["categories"], "rcf", strict=True):
        category |= {"frequency": frequency, "synonyms": [f"first of {category['name']}", "second"]}
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    return content


def test_lvis_file_is_detected_and_loaded(write: Write, federated: dict[str, Any]) -> None:
    spec = write(federated)
    records = load_dataset(spec, for_evaluation=True)
    summary = records.summary
    assert summary.is_lvis
    assert summary.class_names == ("first of four", "first of seven", "first of nine")
    assert read_classes(spec).names == summary.class_names
    assert summary.category_ids == (4, 7, 9) and summary.num_crowd == 0
    assert [Path(record["file_name"]).parts[-2:] for record in records] == [
        ("images", "a.png"), ("deep", "b.png"), ("images", "c.png")
    ]  # fmt: skip


def test_coco_files_are_not_changed(write: Write, content: dict[str, Any]) -> None:
    content["categories"][0]["synonyms"] = ["another"]
    summary = load_dataset(write(content)).summary
    assert not summary.is_lvis and summary.class_names == ("four", "seven", "nine")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][0].pop("not_exhaustive_category_ids"), "without a list 'not_exhaustive_category_ids'"),
        (lambda c: c["images"][1].update(neg_category_ids=3), "without a list 'neg_category_ids'"),
        (lambda c: c["images"][1].update(neg_category_ids=[4, 5]), r"'neg_category_ids' that are not .*: 5"),
        (lambda c: c["images"][1].update(neg_category_ids=[[4]]), r"'neg_category_ids' that are not .*: \[4\]"),
        (lambda c: c["images"][1].update(neg_category_ids=[7, 9]), r"classes in 'neg_category_ids' .*of category 9"),
        (lambda c: c["categories"][2].update(frequency="x"), r"without a valid frequency \(1\).* frequency 'x'"),
        (lambda c: c["images"][2].update(coco_url="b.png"), "invalid 'coco_url'.*'b.png'"),
        (lambda c: c["images"][2].update(coco_url=7), "invalid 'coco_url'.* 7"),
        (lambda c: c["images"][2].update(coco_url="http://x/deep/gone.png"), "missing.*deep/gone.png"),
        (lambda c: c["images"][2].update(coco_url="http://x/deep/gone.png"), "last two parts of coco_url are"),
    ],
)
def test_invalid_files(
    write: Write, federated: dict[str, Any], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    change(federated)
    with pytest.raises(DatasetError, match=message):
        load_dataset(write(federated), for_evaluation=True)


def test_areas_are_filled_in(write: Write, federated: dict[str, Any]) -> None:
    for number, annotation in enumerate(federated["annotations"]):
        annotation |= {"id": number, "area": None}
    records = load_dataset(write(federated), for_evaluation=True)
    assert [item["area"] for item in records.ground_truth()["annotations"]] == [200, 95, 1000, 25]  # type: ignore[attr-defined]
    assert len(records.summary.warnings) == 3  # area, id 0, a clipped box; LVIS has no iscrowd


def test_paths_of_lvis_match_detectron2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for split in ("train", "val"):
        spec = catalog.get(f"lvis_v1_{split}")
        assert (spec.json_file, spec.image_root) == (tmp_path / f"lvis/lvis_v1_{split}.json", tmp_path / "coco")
        with pytest.raises(DatasetError, match=f"lvis_v1_{split}.json does not exist: place LVIS there"):
            load_dataset(spec)
    builtin = pytest.importorskip("detectron2.data.datasets.builtin", reason="compares with Detectron2's paths")
    splits = builtin._PREDEFINED_SPLITS_LVIS["lvis_v1"]
    assert splits["lvis_v1_train"] == ("coco/", "lvis/lvis_v1_train.json")
    assert splits["lvis_v1_val"] == ("coco/", "lvis/lvis_v1_val.json")


@pytest.mark.parametrize(
    ("content", "expected"), [('{"images": [{"neg_category_ids": []}]}', True), ('{"images": []}', False), ("", False)]
)
def test_format_is_detected_from_the_content(tmp_path: Path, content: str, expected: bool) -> None:
    assert not lvis.is_lvis_file(tmp_path / "file.json")
    (tmp_path / "file.json").write_text(content)
    assert lvis.is_lvis_file(tmp_path / "file.json") is expected


def test_ids_as_floats_and_strings(write: Write, federated: dict[str, Any]) -> None:
    expected = load_dataset(write(federated)).ground_truth()
    ids = [item["id"] for item in federated["categories"]]
    absent = [item["neg_category_ids"] for item in federated["images"]]
    for kind in (float, str):
        for category, category_id in zip(federated["categories"], ids, strict=True):
            category["id"] = kind(category_id)
        for image, listed in zip(federated["images"], absent, strict=True):
            image["neg_category_ids"] = [kind(item) for item in listed]
        records = load_dataset(write(federated))
        assert records.ground_truth() == expected
        (warning,) = [text for text in records.summary.warnings if "integers written as" in text]
        assert "(6)" in warning and "neg_category_ids " in warning
    federated["images"][1]["neg_category_ids"] = ["5"]
    with pytest.raises(DatasetError, match="'neg_category_ids' that are not .*: 5"):
        load_dataset(write(federated))
