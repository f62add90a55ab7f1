"""Data sets returned by functions: read once, checked before training."""

import shutil
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from projects_deformable_detr.detectron2_plugin import main
from projects_deformable_detr.detectron2_plugin.launch import setup
from projects_deformable_detr.errors import UserError

NAME = "returned_by_a_function"


@pytest.fixture
def dataset(tmp_path, tiny_name, coco_files, job, monkeypatch):
    """Registers a function; returns the records that it returns, the calls, and a function for arguments of a run."""
    shutil.copytree(coco_files[1], tmp_path / "data")
    records = get_detection_dataset_dicts(tiny_name, filter_empty=False)[:4]
    for record in records:
        record["file_name"] = str(tmp_path / "data" / Path(record["file_name"]).name)
    calls = []
    monkeypatch.setitem(DatasetCatalog.data, NAME, lambda: calls.append(1) or records)
    MetadataCatalog.get(NAME).set(thing_classes=["red", "blue"])

    def make_arguments(*extra):
        names = ("DATASETS.TRAIN", f"('{NAME}',)", "DATASETS.TEST", f"('{NAME}',)")
        args = job(tmp_path, coco_files, *names, "SOLVER.MAX_ITER", 2, "TEST.EVAL_PERIOD", 1, *extra)
        args.register = []
        return args

    yield records, calls, make_arguments
    MetadataCatalog.pop(NAME)


def test_a_function_is_called_once(dataset):
    _, calls, make_arguments = dataset
    function = DatasetCatalog.data[NAME]
    assert "AP" in main(make_arguments())["bbox"]
    assert calls == [1]
    assert DatasetCatalog.data[NAME] is function


def test_images_are_checked_and_skipped(dataset, tmp_path):
    records, _, make_arguments = dataset
    Path(records[1]["file_name"]).write_bytes(b"")
    with pytest.raises(UserError, match=r"(?s)cannot be read \(1\): .*1\.png.*DATASETS\.UNREADABLE_IMAGES skip"):
        setup(make_arguments())
    setup(make_arguments("DATASETS.UNREADABLE_IMAGES", "skip"))
    names = [record["file_name"] for record in DatasetCatalog.get(NAME)]
    assert names == [record["file_name"] for record in records if record is not records[1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("file_name"), r"records without a file_name \(1\): record 2 is"),
        (
            lambda record: record.update(width=99),
            r"images whose size differs from their record \(1\): .*2\.png is 80 x 64",
        ),
        (lambda record: record["annotations"][0].pop("bbox_mode"), r"lack keys \(1\): .*2\.png: bbox_mode"),
        (lambda record: record["annotations"][0].update(bbox=[1, 2, 3]), r"four finite numbers \(1\): .*\[1, 2, 3\]"),
        (lambda record: record["annotations"][0].update(category_id=2), r"not valid class ids \(1\): .*2\.png has 2"),
    ],
)
def test_records_are_checked(dataset, change, message):
    records, _, make_arguments = dataset
    change(records[2])
    with pytest.raises(UserError, match=message):
        setup(make_arguments())
