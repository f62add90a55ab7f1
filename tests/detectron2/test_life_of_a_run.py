"""Output folders, resuming and evaluation through ``main``; signals are tested in tests/test_signals.py."""

import json
import logging
import shutil
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from projects_deformable_detr.detectron2_plugin import main
from projects_deformable_detr.errors import UserError

OPTIONS = ("SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINT_KEEP", 2)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def trained(job, coco_files, tmp_path_factory):
    """Folder of a run of 3 iterations without evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    main(job(folder, coco_files, *OPTIONS, "DATASETS.TEST", "()"))
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained / "output", tmp_path / "output")
    return tmp_path


@pytest.fixture(scope="module")
def swapped_files(coco_files, tmp_path_factory):
    """The data set with the names of its classes exchanged."""
    content = json.loads(Path(coco_files[0]).read_text())
    names = [item["name"] for item in content["categories"]][::-1]
    for item, name in zip(content["categories"], names, strict=True):
        item["name"] = name
    path = tmp_path_factory.mktemp("swapped") / "instances.json"
    path.write_text(json.dumps(content))
    return str(path), coco_files[1]


def test_the_last_checkpoints_are_kept(trained):
    names = {path.name for path in (trained / "output").glob("model_*")}
    assert names == {"model_0000001.pth", "model_0000002.pth", "model_final.pth"}


def test_resuming_with_another_config_or_data_changes_nothing(job, copied, coco_files, swapped_files):
    before = contents(copied / "output")
    for files, options, message in (
        (swapped_files, (), "has 2 classes .*, the data sets have 2"),
        (coco_files, ("MODEL.BACKBONE.FREEZE_AT", 2), "in group 'backbone'.*same MODEL.BACKBONE.FREEZE_AT"),
        (coco_files, ("SOLVER.OPTIMIZER", "SGD"), "another optimizer: resume with the same SOLVER.OPTIMIZER"),
        (
            coco_files,
            ("OUTPUT_DIR", copied / "misspelt"),
            "no checkpoint to resume from in .*misspelt: check OUTPUT_DIR",
        ),
    ):
        with pytest.raises(UserError, match=message):
            main(job(copied, files, *OPTIONS, "DATASETS.TEST", "()", *options, resume=True))
    after = contents(copied / "output")
    assert {**after, "log.txt": None} == {**before, "log.txt": None}
    assert not (copied / "misspelt").exists()


def test_a_new_run_in_the_folder_of_an_earlier_one(job, copied, coco_files):
    before = contents(copied / "output")
    args = job(copied, coco_files, *OPTIONS, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 1)
    args.overwrite = False
    with pytest.raises(UserError, match=r"files of an earlier run \(model_0000001.pth.*--overwrite"):
        main(args)
    assert contents(copied / "output") == before
    args.overwrite = True
    main(args)
    assert {path.name for path in (copied / "output").glob("model_*")} == {"model_0000000.pth", "model_final.pth"}


def test_a_resumed_run_uses_the_learning_rate_of_its_config(job, copied, coco_files, caplog):
    args = job(
        copied, coco_files, *OPTIONS, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 20, "SOLVER.BASE_LR", 1e-7, resume=True
    )
    with caplog.at_level(logging.INFO, "projects_deformable_detr"):
        main(args)
    assert json.loads((copied / "output" / "metrics.json").read_text().splitlines()[-1])["lr"] == pytest.approx(1e-7)
    assert "config's learning rate 1e-07, not the checkpoint's" in caplog.text
    assert "after 3 of 20 iterations" in caplog.text
    caplog.clear()
    main(job(copied, coco_files, *OPTIONS, "DATASETS.TEST", "()", "SOLVER.MAX_ITER", 20, resume=True))
    assert "No iterations are left" in caplog.text


def test_evaluation_needs_no_training_set(job, copied, coco_files):
    args = job(copied, coco_files, "DATASETS.TRAIN", "('gone',)", eval_only=True, resume=True)
    before = (copied / "output" / "config.yaml").read_bytes()
    assert "AP" in main(args)["bbox"]
    assert (copied / "output" / "config.yaml").read_bytes() == before
