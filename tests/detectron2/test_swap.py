"""Runs the script of docs/swap.md before and after the diffs, and checks the statements of the page."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from projects_deformable_detr.checkpoint import CheckpointError
from projects_deformable_detr.config.keys import SECTIONS_WITHOUT_EFFECT
from projects_deformable_detr.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "swap.md").read_text()
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)

# Faster R-CNN, as small as the fixture tiny_model.
_TINY_RCNN = {
    "MODEL.WEIGHTS": "",
    "MODEL.DEVICE": "cpu",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.FPN.OUT_CHANNELS": 32,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 40,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 40,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
}
_SHORT = {"SOLVER.MAX_ITER": 3, "SOLVER.STEPS": "()", "SOLVER.IMS_PER_BATCH": 2, "TEST.EVAL_PERIOD": 0}
_SHORT |= {"INPUT.MIN_SIZE_TRAIN": "(64,)", "INPUT.MIN_SIZE_TEST": 64, "DATALOADER.NUM_WORKERS": 0, "SEED": 1}


def blocks(language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(GUIDE) if kind == language]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, coco_files):
    """The guide's files before the swap, and the data that they use."""
    folder = tmp_path_factory.mktemp("swap")
    (folder / "finetune.py").write_text(blocks("python")[0])
    (folder / "cells.yaml").write_text(blocks("yaml")[0])
    shutil.copytree(coco_files[1], folder / "cells" / "images")
    content = json.loads(Path(coco_files[0]).read_text())
    for item in content["annotations"]:
        x, y, w, h = item["bbox"]
        item["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    for name in ("train", "val"):
        (folder / "cells" / f"{name}.json").write_text(json.dumps(content))
    return folder


def finetune(
    python: Callable[..., subprocess.CompletedProcess[str]], folder: Path, options: dict[str, object]
) -> tuple[str, Path]:
    """Runs the script; returns its output and the folder of its results."""
    shutil.rmtree(folder / "output", ignore_errors=True)
    words = [str(word) for pair in {**_SHORT, **options}.items() for word in pair]
    result = python("finetune.py", *words, cwd=folder)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout, folder / "output" / "cells"


def summary(printed: str, results: Path) -> dict[str, set[str]]:
    """Returns the names of the instances' fields, the metrics and the files."""
    assert printed.count("Instances(num_instances=") == 4
    metrics = json.loads((results / "metrics.json").read_text().splitlines()[-1])
    written = {path.relative_to(results).as_posix() for path in results.rglob("*") if path.is_file()}
    return {
        "fields": set(re.findall(r"(\w+): (?:Boxes\()?tensor\(", printed)),
        "metrics": {name for name in metrics if name.startswith(("bbox/", "segm/"))},
        "files": {name for name in written if "events.out" not in name},
    }


def swap(folder: Path) -> None:
    """Applies the guide's diffs."""
    diffs = blocks("diff")
    assert len(diffs) == 2
    for diff in diffs:
        environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
        subprocess.run(["git", "apply"], input=diff, cwd=folder, text=True, check=True, env=environment)


def test_fields_metrics_and_files_do_not_change(python, folder, tiny_model):
    """The summaries of Faster R-CNN and Mask R-CNN are those of the detectors."""
    rcnn = {masks: {**_TINY_RCNN, "MODEL.MASK_ON": masks} for masks in (False, True)}
    before = {masks: summary(*finetune(python, folder, options)) for masks, options in rcnn.items()}
    swap(folder)
    script, config = ((folder / name).read_text() for name in ("finetune.py", "cells.yaml"))
    assert "faster_rcnn" not in script and "ROI_HEADS" not in script + config
    for masks in (False, True):
        options = {"MODEL.MASK_ON": masks, "MODEL.DETR.HIDDEN_DIM": 128, "MODEL.DETR.NHEADS": 8}
        options["MODEL.RESNETS.OUT_FEATURES"] = ["res2", "res3", "res4", "res5"] if masks else ["res3", "res4", "res5"]
        assert summary(*finetune(python, folder, {**tiny_model, **options})) == before[masks]
    assert before[False]["fields"] == {"pred_boxes", "scores", "pred_classes"}
    assert before[True]["fields"] == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    assert {"bbox/AP", "bbox/AP50", "bbox/AP-red", "bbox/AP-blue"} <= before[False]["metrics"]
    assert {"segm/AP", "bbox/AP"} <= before[True]["metrics"]
    assert {"coco_instances_results.json", "model_final.pth", "0.png"} <= before[False]["files"]


@pytest.fixture
def record(make_cfg):
    """One training record of the tiny data set."""
    return next(iter(build_detection_train_loader(make_cfg())))[0]


def outputs(cfg, record) -> Instances:
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        return model([record])[0]["instances"]


def other(value: object) -> object:
    """Returns a value that differs from the default."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else "other" if isinstance(value, str) else ("other",)


def leaves(node):
    for key, value in node.items():
        yield from leaves(value) if isinstance(value, dict) else [(node, key)]


def test_listed_keys_have_no_effect_and_log_a_warning(make_cfg, record, caplog):
    listed = re.search(r"Keys without effect: (.*?)\.\n", GUIDE, re.S)[1]
    assert set(re.findall(r"`(MODEL\.\w+)`", listed)) == set(SECTIONS_WITHOUT_EFFECT)
    cfg = make_cfg()
    plain = outputs(cfg, record)
    assert "without effect" not in caplog.text
    for name in SECTIONS_WITHOUT_EFFECT:
        for node, key in leaves(cfg.MODEL[name.removeprefix("MODEL.")]):
            node[key] = other(node[key])
    changed = outputs(cfg, record)
    assert torch.equal(plain.pred_boxes.tensor, changed.pred_boxes.tensor) and torch.equal(plain.scores, changed.scores)
    assert "MODEL.ROI_HEADS.SCORE_THRESH_TEST (here: MODEL.DETR.SCORE_THRESH_TEST)" in caplog.text
    assert "MODEL.RPN.NMS_THRESH" in caplog.text


@pytest.mark.parametrize("key", ["LOAD_PROPOSALS", "KEYPOINT_ON"])
def test_unsupported_keys_are_errors(make_cfg, key):
    with pytest.raises(UserError, match=f"MODEL.{key} must be False"):
        build_model(make_cfg(**{f"MODEL__{key}": True}))


def test_proposals_are_neither_inputs_nor_outputs(make_cfg, record):
    cfg = make_cfg(MODEL__DETR__WITH_BOX_REFINE=True, MODEL__DETR__TWO_STAGE=True)
    model = build_model(cfg).eval()
    with torch.no_grad():
        plain = model([record])[0]
        given = model([{**record, "proposals": Instances((1, 1), proposal_boxes=Boxes(torch.zeros(1, 4)))}])[0]
    assert set(plain) == {"instances"}
    assert torch.equal(plain["instances"].scores, given["instances"].scores)
    model.train()
    assert "loss_ce_enc" in model([record])  # the loss of the model's own proposals


@pytest.mark.parametrize("kind", [DatasetMapper, "the guide's"])
def test_a_custom_mapper_trains(make_cfg, kind):
    cfg = make_cfg()
    mapper = kind(cfg, True) if kind is DatasetMapper else run_block("def mapper(record)", cfg=cfg)["mapper"]
    losses = build_model(cfg)(next(iter(build_detection_train_loader(cfg, mapper=mapper))))
    assert all(torch.isfinite(loss) for loss in losses.values())


def run_block(part: str, **names):
    """Runs the Python block of the guide that contains ``part``."""
    (block,) = (text for text in blocks("python") if part in text)
    exec(compile(block, "docs/swap.md", "exec"), names)
    return names


def test_duplicates_can_be_removed():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9], [50, 50, 60, 60]])
    instances = Instances((64, 64), pred_boxes=Boxes(boxes), scores=torch.tensor([0.9, 0.8, 0.7, 0.6]))
    instances.pred_classes = torch.tensor([0, 0, 1, 0])
    kept = run_block("batched_nms", instances=instances)["instances"]
    assert kept.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])


def test_the_predictor_takes_bgr_images_as_before(make_cfg, tmp_path):
    cfg = make_cfg(INPUT__MIN_SIZE_TEST=64, INPUT__MAX_SIZE_TEST=64)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    predictor, seen = DefaultPredictor(cfg), []
    predictor.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]["image"]))
    bgr = np.zeros((64, 64, 3), np.uint8)
    bgr[..., 0] = 200
    predictor(bgr)
    assert seen[0][:, 0, 0].tolist() == [0, 0, 200]  # red, green, blue


def test_faster_rcnn_weights_are_an_error(make_cfg, tmp_path):
    state = {"backbone.fpn_lateral2.weight": torch.zeros(1), "roi_heads.box_head.fc1.weight": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "rcnn.pth")
    for use in (DefaultTrainer, DefaultPredictor):
        cfg = make_cfg(MODEL__WEIGHTS=tmp_path / "rcnn.pth")
        Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=r"rcnn\.pth: the keys .*roi_heads\.box_head.* do not match"):
            trainer = use(cfg)
            trainer.resume_or_load(resume=False)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_model_works_for_one_image_size(make_cfg):
    model = build_model(make_cfg()).eval()
    image = torch.rand(3, 64, 80) * 255
    adapter = TracingAdapter(model, [{"image": image}], lambda model, inputs: model(inputs))
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    for found, expected in zip(traced(image), adapter(image), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="must have size|shape"):
        traced(torch.rand(3, 96, 96) * 255)
