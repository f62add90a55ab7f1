"""Invalid input before training starts, and several processes through main."""

import json
from pathlib import Path

import pytest

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from conftest import write_coco
from detectron2.modeling import build_model

from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.detectron2_plugin import main
from projects_deformable_detr.errors import UserError

# The detector does not use p2, the finest feature, so that its weights have no gradient.
FPN = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.DETR.IN_FEATURES", ["p3", "p4", "p5"])
FPN += ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"])
FPN += ("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"])
FPN += ("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)


@pytest.mark.parametrize(
    ("options", "eval_only", "message"),
    [
        (("SOLVER.AMP.ENABLED", True), False, "SOLVER.AMP.ENABLED must be False"),
        (("SOLVER.STRATEGY", "fsdp"), False, "SOLVER.STRATEGY fsdp is supported by the standalone engine only"),
        (("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"), False, "RANDOM_SUBSET_RATIO"),
        (("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"), False, "REPEAT_THRESHOLD must be in .* got 0.0"),
        (("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "()"), True, r"TEST.AUG.MIN_SIZES must be .* got \(\)"),
    ],
)
def test_invalid_values(job, tmp_path, coco_files, options, eval_only, message):
    with pytest.raises(UserError, match=message):
        main(job(tmp_path, coco_files, *options, eval_only=eval_only))


@pytest.mark.parametrize("change", [lambda c: c.pop("annotations"), lambda c: c["annotations"].clear()])
def test_data_set_without_objects_gives_results_without_metrics(job, tmp_path, coco_files, make_cfg, change):
    content = json.loads(Path(coco_files[0]).read_text())
    change(content)
    (tmp_path / "test_dev.json").write_text(json.dumps(content))
    model = build_model(make_cfg())
    save_detector(tmp_path / "model.pth", model.detector, iteration=0, cfg_text="")
    files = str(tmp_path / "test_dev.json"), coco_files[1]
    results = main(job(tmp_path, files, "MODEL.WEIGHTS", tmp_path / "model.pth", eval_only=True))
    assert not any(value >= 0 for value in results.get("bbox", {}).values())
    written = json.loads((tmp_path / "output/inference/coco_instances_results.json").read_text())
    assert {result["image_id"] for result in written} == set(range(1, 9))


@pytest.mark.usefixtures("forkserver")
def test_an_error_in_one_of_several_processes_is_a_message(job, tmp_path, coco_files):
    with pytest.raises(UserError) as caught:
        main(job(tmp_path, coco_files, "MODEL.WEIGHTS", "/nowhere/weights.pth", num_gpus=2))
    assert "/nowhere/weights.pth" in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.usefixtures("forkserver")
def test_two_processes_train_and_evaluate_on_the_cpu(job, tmp_path, coco_files):
    results = main(job(tmp_path, coco_files, *FPN, num_gpus=2))
    assert "AP" in results["bbox"]
    assert (tmp_path / "output" / "model_final.pth").is_file()


@pytest.mark.usefixtures("forkserver")
def test_evaluation_on_two_processes_equals_one(job, tmp_path, make_cfg):
    files = write_coco(tmp_path / "odd", images=21)
    save_detector(tmp_path / "model.pth", build_model(make_cfg()).detector, iteration=0, cfg_text="")
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        options = ("MODEL.WEIGHTS", tmp_path / "model.pth")
        metrics = main(job(folder, files, *options, eval_only=True, num_gpus=processes))["bbox"]
        rows = json.loads((folder / "output/inference/coco_instances_results.json").read_text())
        found.append((metrics, [row["image_id"] for row in rows], [row["score"] for row in rows]))
    assert set(found[0][1]) == set(range(1, 22)) and found[0][1] == found[1][1]
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-3, nan_ok=True)
    assert found[0][2] == pytest.approx(found[1][2], abs=1e-5)
