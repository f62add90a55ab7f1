"""Detectron2's hooks, schedules and seeds in its ``DefaultTrainer``, with a tiny model of this project."""

import json
import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.engine import DefaultTrainer, default_setup, hooks
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage, get_event_storage

from projects_deformable_detr.detectron2_plugin import visualization
from projects_deformable_detr.errors import UserError


class Trainer(DefaultTrainer):
    """A user's trainer, which overrides only the evaluator."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        return COCOEvaluator(dataset_name, output_dir=str(Path(cfg.OUTPUT_DIR, "inference")))


def train(cfg):
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer = Trainer(cfg)
    trainer.train()
    return trainer


def test_hooks_of_a_run_work_together(make_cfg):
    cfg = make_cfg(
        SOLVER__MAX_ITER=6,
        SOLVER__STEPS="(4,)",
        SOLVER__WARMUP_ITERS=2,
        SOLVER__WARMUP_FACTOR=0.5,
        SOLVER__CHECKPOINT_PERIOD=3,
        TEST__EVAL_PERIOD=3,
        MODEL__RESNETS__NORM="BN",
        TEST__PRECISE_BN__ENABLED=True,
        TEST__PRECISE_BN__NUM_ITER=2,
        VIS_PERIOD=2,
    )
    rates, statistics = [], []

    class Watch(hooks.HookBase):
        def after_step(self):
            rates.append(get_event_storage().latest()["lr"][0])
            norms = [module for module in self.trainer.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            statistics.append(norms[0].running_mean.clone())

    seen = {}
    profiler = hooks.TorchProfiler(lambda trainer: trainer.iter == 1, cfg.OUTPUT_DIR, activities=None)
    trainer = Trainer(cfg)
    # Registered before the writers, which write its metrics.
    best = hooks.BestCheckpointer(cfg.TEST.EVAL_PERIOD, trainer.checkpointer, "bbox/AP50")
    evaluation = hooks.CallbackHook(after_train=lambda _: seen.update(trainer._last_eval_results["bbox"]))
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer.register_hooks([Watch(), best, profiler, evaluation])
    assert any(isinstance(hook, hooks.PreciseBN) for hook in trainer._hooks)
    trainer.train()

    assert rates == pytest.approx([5e-4, 7.5e-4, 1e-3, 1e-3, 1e-4, 1e-4], rel=0.01)
    folder = Path(cfg.OUTPUT_DIR)
    assert {path.name for path in folder.glob("*.pth")} >= {"model_0000002.pth", "model_final.pth", "model_best.pth"}
    assert {"AP", "AP50", "AP-red"} <= seen.keys()
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    assert any("bbox/AP" in line for line in lines) and any("total_loss" in line for line in lines)
    assert list(folder.glob("events.out.tfevents.*"))
    assert list(folder.glob("log/profiler-tensorboard-iter1/*.pt.trace.json"))
    assert not torch.equal(statistics[0], statistics[-1])


def test_precise_bn_of_frozen_norms_is_an_error(make_cfg):
    cfg = make_cfg(MODEL__RESNETS__NORM="FrozenBN", TEST__PRECISE_BN__ENABLED=True)
    with pytest.raises(UserError, match=r"TEST.PRECISE_BN.ENABLED True needs batch norms .* FrozenBN"):
        Trainer(cfg)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"SOLVER__LR_SCHEDULER_NAME": "WarmupCosineLR"}, [1.0, 0.8535, 0.5, 0.1465]),
        ({"SOLVER__STEPS": "(1, 3)", "SOLVER__GAMMA": 0.5}, [1.0, 0.5, 0.5, 0.25]),
        ({"SOLVER__LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR", "SOLVER__GAMMA": 0.5}, [1.0, 1.0, 0.5, 0.5]),
        ({"SOLVER__WARMUP_ITERS": 4, "SOLVER__WARMUP_FACTOR": 0.2}, [0.2, 0.4, 0.6, 0.8]),
        (
            {"SOLVER__WARMUP_ITERS": 2, "SOLVER__WARMUP_METHOD": "constant", "SOLVER__WARMUP_FACTOR": 0.1},
            [0.1, 0.1, 1, 1],
        ),
    ],
)
def test_schedules_scale_all_groups_equally(make_cfg, options, expected):
    cfg = make_cfg(SOLVER__NUM_DECAYS=1, SOLVER__BACKBONE_MULTIPLIER=0.1, **options)
    optimizer = DefaultTrainer.build_optimizer(cfg, build_model(cfg))
    first = {group["name"]: group["lr"] for group in optimizer.param_groups}
    schedule = DefaultTrainer.build_lr_scheduler(cfg, optimizer)
    found = []
    for step in range(4):
        factors = {group["lr"] / first[group["name"]] for group in optimizer.param_groups}
        assert max(factors) == pytest.approx(min(factors))
        found.append(max(factors))
        optimizer.step()
        if step < 3:  # at the very end Detectron2's fixed-gamma schedule raises an IndexError, for any model
            schedule.step()
    assert found == pytest.approx(expected, rel=1e-3)


def test_seed_repeats_a_run(make_cfg):
    losses = []
    for _ in range(2):
        cfg = make_cfg(SEED=3, SOLVER__MAX_ITER=2)
        default_setup(cfg, None)
        losses.append(train(cfg).storage.history("total_loss").latest())
    assert losses[0] == losses[1]


def record():
    instances = Instances((64, 80), gt_boxes=Boxes(torch.tensor([[8.0, 16.0, 40.0, 48.0], [4.0, 4.0, 30.0, 30.0]])))
    instances.gt_classes = torch.tensor([1, 0])
    return {"image": torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8), "instances": instances}


def test_scores_below_the_threshold_are_dropped(make_cfg):
    model = build_model(make_cfg()).eval()
    batch = [record()]
    scores = model(batch)[0]["instances"].scores
    model.score_threshold = make_cfg(MODEL__DETR__SCORE_THRESH_TEST=scores[4].item()).MODEL.DETR.SCORE_THRESH_TEST
    assert model(batch)[0]["instances"].scores.tolist() == scores[:5].tolist()
    assert build_model(make_cfg(MODEL__DETR__SCORE_THRESH_TEST=0.9)).score_threshold == 0.9


def test_pictures_show_each_object_with_its_matched_prediction(make_cfg, monkeypatch):
    drawn = []

    class Recording(visualization.Visualizer):
        def overlay_instances(self, *, boxes, labels, **kwargs):
            drawn.append((torch.as_tensor(boxes), labels))
            return super().overlay_instances(boxes=boxes, labels=labels, **kwargs)

    monkeypatch.setattr(visualization, "Visualizer", Recording)
    model, batch, kept = build_model(make_cfg(VIS_PERIOD=1)), [record(), record()], []
    model.detector.register_forward_hook(lambda *event: kept.append(event[-1]))
    with EventStorage() as storage:
        model(batch)
    (truth, names), (found, labels) = drawn
    order = [int(torch.cdist(box[None], batch[0]["instances"].gt_boxes.tensor).argmin()) for box in truth]
    assert sorted(order) == [0, 1]
    torch.testing.assert_close(truth, batch[0]["instances"].gt_boxes.tensor[order])
    classes = [batch[0]["instances"].gt_classes[index].item() for index in order]
    class_names = ("red", "blue") if names[0] in ("red", "blue") else ("0", "1")
    assert names == [class_names[label] for label in classes]
    assert all(re.fullmatch(rf"{name} \d+%", label) for name, label in zip(names, labels, strict=True))
    boxes = kept[0].boxes[-1, 0]
    centers = (found[:, :2] + found[:, 2:]) / 2 / torch.tensor([80, 64])
    assert torch.cdist(centers, boxes[:, :2]).min(1).values.max() < 1e-4
    name, picture, *_ = storage._vis_data[0]
    assert name == visualization.TITLE and picture.shape == (3, 64, 160)
