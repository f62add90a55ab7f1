"""What is refused before training starts, and several processes through main."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.modeling import build_model

from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.detectron2_plugin import main
from projects_deformable_detr.detectron2_plugin.launch import _device, setup
from projects_deformable_detr.errors import UserError

# Its finest feature, p2, has weights that the detector does not use.
FPN = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.DETR.IN_FEATURES", ["p3", "p4", "p5"])
FPN += ("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"])
FPN += ("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"])
FPN += ("MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64)


def refused(args, match):
    with pytest.raises(UserError, match=match):
        main(args)


def test_a_key_that_does_not_exist_is_named(job, tmp_path, coco_files):
    refused(job(tmp_path, coco_files, "MODEL.DETR.NHEAD", 4), r"MODEL\.DETR\.NHEAD; did you mean MODEL.DETR.NHEADS\?")


def test_a_whole_number_for_a_fraction_is_explained(job, tmp_path, coco_files):
    refused(job(tmp_path, coco_files, "SOLVER.EMA.DECAY", 1), "write the number with a point, as 2.0")


def test_a_config_file_that_does_not_exist_is_named(job, tmp_path, coco_files):
    refused(job(tmp_path, coco_files, config_file="configs/nothing.yaml"), r"configs/nothing\.yaml")


def test_a_missing_json_file_is_named(job, tmp_path, coco_files):
    refused(job(tmp_path, ("/nowhere/annotations.json", coco_files[1])), r"/nowhere/annotations\.json")


def test_a_missing_image_folder_is_named(job, tmp_path, coco_files):
    refused(job(tmp_path, (coco_files[0], "/nowhere/images")), "/nowhere/images")


def test_more_objects_than_queries_is_refused(job, tmp_path, coco_files):
    refused(job(tmp_path, coco_files, "MODEL.DETR.NUM_OBJECT_QUERIES", 1), "NUM_OBJECT_QUERIES")


def test_a_number_of_classes_that_disagrees_is_refused(job, tmp_path, coco_files):
    refused(job(tmp_path, coco_files, "MODEL.DETR.NUM_CLASSES", 91), r"(?s)91.*2")


@pytest.mark.parametrize(
    ("options", "eval_only", "said"),
    [
        (("DATASETS.TRAIN", "()"), False, "DATASETS.TRAIN is empty"),
        (("DATASETS.TEST", "()"), True, "--eval-only needs DATASETS.TEST"),
        (("SOLVER.AMP.ENABLED", True), False, "SOLVER.AMP.ENABLED is True"),
        ((), True, "evaluation needs MODEL.WEIGHTS"),
        (("DATALOADER.SAMPLER_TRAIN", "RepeatFactorSampler"), False, "RepeatFactorSampler' is not known: choose"),
        (("DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"), False, "RANDOM_SUBSET_RATIO"),
        (("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"), False, "REPEAT_THRESHOLD is 0.0"),
        (("TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", "()"), True, r"TEST.AUG.MIN_SIZES \(\)"),
    ],
)
def test_what_a_run_cannot_do_is_named(job, tmp_path, coco_files, options, eval_only, said):
    refused(job(tmp_path, coco_files, *options, eval_only=eval_only), said)


def test_several_machines_need_an_address(job, tmp_path, coco_files):
    args = job(tmp_path, coco_files)
    args.num_machines = 2
    refused(args, "--dist-url auto")


def test_processes_on_the_cpu_beside_a_gpu_are_refused(job, tmp_path, coco_files, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused(job(tmp_path, coco_files, num_gpus=2), "CUDA_VISIBLE_DEVICES=")


def test_a_config_file_runs_no_code(job, tmp_path, coco_files):
    file = tmp_path / "unsafe.yaml"
    file.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    refused(job(tmp_path, coco_files, config_file=str(file)), r"unsafe\.yaml.*python/object")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("change", [lambda c: c.pop("annotations"), lambda c: c["annotations"].clear()])
def test_a_set_without_objects_gives_results_without_metrics(job, tmp_path, coco_files, make_cfg, change):
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


def test_the_device_is_never_replaced_when_it_was_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="MODEL.DEVICE is cuda:1"):
        _device("cuda:1", None)
    with pytest.raises(UserError, match="--num-gpus 2.*CUDA_VISIBLE_DEVICES= .*MODEL.DEVICE cpu"):
        _device("auto", 2)
    assert capsys.readouterr().out == ""
    assert _device("auto", None) == "cpu"
    assert "running on the CPU" in capsys.readouterr().out
    assert _device("auto", 0) == _device("cpu", 2) == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _device("auto", None) == _device("auto", 2) == "cuda"
    assert _device("auto", 0) == "cpu"


def test_a_file_that_names_the_gpu_counts_as_the_users_word(job, tmp_path, coco_files, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    file = tmp_path / "gpu.yaml"
    file.write_text("MODEL:\n  DEVICE: cuda\nVERSION: 2\n")
    args = job(tmp_path, coco_files, config_file=str(file))
    at = args.opts.index("MODEL.DEVICE")
    del args.opts[at : at + 2]
    with pytest.raises(UserError, match="MODEL.DEVICE is cuda"):
        setup(args)


def test_a_refusal_in_one_of_several_processes_is_a_message(job, tmp_path, coco_files, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(UserError) as caught:
        main(job(tmp_path, coco_files, "MODEL.WEIGHTS", "/nowhere/weights.pth", num_gpus=2))
    assert "/nowhere/weights.pth" in str(caught.value) and "Traceback" not in str(caught.value)


def test_two_processes_train_on_the_cpu_and_report(job, tmp_path, coco_files, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    results = main(job(tmp_path, coco_files, *FPN, num_gpus=2))
    assert "AP" in results["bbox"]
    assert (tmp_path / "output" / "model_final.pth").is_file()
