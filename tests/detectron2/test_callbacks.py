"""EMA, best checkpoint and early stopping in Detectron2's trainer."""

import copy
import json
import logging
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.engine import DefaultTrainer, hooks
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.env import seed_all_rng

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import CheckpointError, load_weights, read_weights
from projects_deformable_detr.detectron2_plugin import Trainer, main
from projects_deformable_detr.detectron2_plugin import hooks as callbacks
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.training import EarlyStoppingConfig
from projects_deformable_detr.training.callbacks import DetectorWriter

EMA = {"SOLVER__EMA__ENABLED": True, "SOLVER__EMA__DECAY": 0.8}
BEST = {"TEST__BEST_CHECKPOINT__ENABLED": True, "TEST__EVAL_PERIOD": 2, "SOLVER__CHECKPOINT_PERIOD": 2}
STOP = {"TEST__EARLY_STOPPING__ENABLED": True, "TEST__EARLY_STOPPING__PATIENCE": 2, "TEST__EVAL_PERIOD": 2}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def load(cfg, name):
    return torch.load(Path(cfg.OUTPUT_DIR, name), weights_only=True)


def last(cfg):
    return Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text()


def run(cfg, resume=False, watch=(), trainer=Trainer):
    """Trains and returns the trainer; ``watch`` are additional hooks."""
    Path(cfg.OUTPUT_DIR).mkdir(exist_ok=True)
    trainer = trainer(cfg)
    trainer.register_hooks(watch)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def check_averages(folder, iterations):
    """Recomputes the average from the trained weights of every iteration; returns the last of both."""
    expected = {}
    for iteration in range(iterations):
        content = torch.load(Path(folder, f"model_{iteration:07d}.pth"), weights_only=True)
        assert content["ema"]["n_averaged"] == iteration + 1
        for key, value in content["ema"]["model"].items():
            if value.is_floating_point():
                expected[key] = 0.8 * expected[key] + 0.2 * value if iteration else value.clone()
        assert all(torch.allclose(content["model"][key], value, atol=1e-5) for key, value in expected.items())
    return content["ema"]["model"], expected


@pytest.fixture
def scores(monkeypatch):
    """``scores([3.0, 5.0])`` sets the AP of the next evaluations; returns a list that collects the models' weights."""

    def set_scores(values):
        left, seen = iter(values), []

        def test(cls, cfg, model, evaluators=None):
            seen.append({key: value.clone() for key, value in model.state_dict().items()})
            return {"bbox": {"AP": next(left), "AP50": 7.0, "AP-red": 1.0}}

        monkeypatch.setattr(Trainer, "test", classmethod(test))
        return seen

    return set_scores


def test_average_is_evaluated_saved_and_resumed(make_cfg, scores):
    cfg = make_cfg(**EMA, MODEL__RESNETS__NORM="BN", SOLVER__MAX_ITER=4, SOLVER__CHECKPOINT_PERIOD=1)
    evaluated = scores([1.0, 2.0, 3.0])
    cfg.TEST.EVAL_PERIOD = 2
    run(cfg)
    assert any("running_var" in key for key in check_averages(cfg.OUTPUT_DIR, 4)[1])
    content = load(cfg, "model_0000003.pth")
    assert not same(content["model"], content["ema"]["model"])
    assert same(evaluated[0], load(cfg, "model_0000001.pth")["model"])
    assert same(evaluated[1], content["model"]) and same(evaluated[1], load(cfg, "model_final.pth")["model"])
    assert same(read_weights(Path(cfg.OUTPUT_DIR, "model_final.pth")).state, content["model"])

    cfg.SOLVER.MAX_ITER = 5
    run(cfg, resume=True)
    check_averages(cfg.OUTPUT_DIR, 5)
    cfg.SOLVER.EMA.ENABLED = False
    with pytest.raises(UserError, match="set SOLVER.EMA.ENABLED True to resume"):
        run(cfg, resume=True)


def test_entropy_of_attention_is_logged(make_cfg):
    run(cfg := make_cfg(**EMA, SOLVER__MAX_ITER=3, TEST__EVAL_PERIOD=2, TEST__ATTENTION_ENTROPY=3))
    lines = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    found = {line["iteration"]: line for line in lines if "attention/negative_entropy_0" in line}
    assert list(found) == [1, 3]  # Detectron2 counts the final evaluation as iteration MAX_ITER, as for AP
    # Three levels with four points each, whose weights are almost equal at the start.
    for line in found.values():
        assert -math.log(12) - 1e-5 <= line["attention/negative_entropy_1"] < -0.9 * math.log(12)


def test_trained_weights_are_restored_after_an_evaluation(make_cfg, scores):
    """Otherwise the averaged weights would be trained."""
    cfgs = make_cfg(**EMA, SOLVER__MAX_ITER=4), make_cfg(**EMA, SOLVER__MAX_ITER=4, TEST__EVAL_PERIOD=1)
    ends = []
    for number, cfg in enumerate(cfgs):
        cfg.OUTPUT_DIR += str(number)
        scores([1.0] * 5)
        seed_all_rng(0)
        run(cfg)
        ends.append(load(cfg, "model_final.pth")["ema"]["model"])
    assert same(*ends)


def test_average_can_start_on_resuming(make_cfg, scores, caplog):
    cfg = make_cfg(SOLVER__MAX_ITER=2)
    scores([1.0] * 2)
    run(cfg)
    cfg.SOLVER.EMA.ENABLED, cfg.SOLVER.MAX_ITER = True, 3
    with caplog.at_level(logging.WARNING, "projects_deformable_detr"):
        run(cfg, resume=True)
    assert "the average starts with its weights" in caplog.text
    end = load(cfg, "model_final.pth")
    assert same(end["model"], end["ema"]["model"])


def test_best_checkpoint_and_its_resuming(make_cfg, scores):
    cfg = make_cfg(**BEST, SOLVER__MAX_ITER=8)
    scores([8.0, math.nan, 9.0])
    kill = hooks.CallbackHook(after_step=lambda trainer: 1 / (5 - trainer.iter))
    with pytest.raises(ZeroDivisionError):
        run(cfg, watch=[kill])
    assert last(cfg) == "model_0000005.pth"
    assert load(cfg, "model_best.pth")["iteration"] == 5
    scores([8.5])
    run(cfg, resume=True)
    best = load(cfg, "model_best.pth")
    assert last(cfg) == "model_final.pth"
    assert best["iteration"] == 5 and same(best["model"], load(cfg, "model_0000005.pth")["model"])


@pytest.mark.parametrize("options", [{}, EMA])
def test_final_evaluation_updates_the_best_metric(make_cfg, scores, options):
    cfg = make_cfg(**BEST, **options, SOLVER__MAX_ITER=4)
    evaluated = scores([5.0, 9.0])
    run(cfg)
    best, periodic, final = (load(cfg, f"model_{name}.pth") for name in ("best", "0000003", "final"))
    assert best["iteration"] == 3 and same(best["model"], evaluated[1]) and same(best["model"], final["model"])
    assert best.keys() == {"model", "iteration", "config", "format", "class_names"}  # the detector alone
    assert final["trainer"]["hooks"]["BestCheckpoint"] == {"best": 9.0, "iteration": 3}
    # It was saved again; the rest of it is unchanged.
    assert final["trainer"]["iteration"] == periodic["trainer"]["iteration"] == final["iteration"] == 3
    if options:
        assert same(final["ema"]["model"], periodic["ema"]["model"]) and not same(final["ema"]["model"], best["model"])

    cfg.SOLVER.MAX_ITER = 8
    scores([6.0, 7.0])  # between the metrics of the first run
    run(cfg, resume=True)
    assert load(cfg, "model_best.pth")["iteration"] == 3
    assert load(cfg, "model_final.pth")["iteration"] == 7


def test_resuming_writes_a_model_that_could_not_be_written(make_cfg, scores, monkeypatch):
    cfg = make_cfg(**BEST | {"TEST__EVAL_PERIOD": 9}, SOLVER__MAX_ITER=2)
    scores([5.0, 6.0])  # a third evaluation would be an error
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="disk is full"):
        patch.setattr(DetectorWriter, "write", Mock(side_effect=CheckpointError("the disk is full")))
        run(cfg)
    run(cfg, resume=True)
    assert [load(cfg, f"model_{name}.pth")["iteration"] for name in ("best", "final")] == [1, 1]
    run(cfg, resume=True)


def test_the_best_checkpoint_is_read_by_both_engines(make_cfg, scores):
    cfg = make_cfg(**BEST, SOLVER__MAX_ITER=2)
    scores([5.0, 5.0])
    run(cfg)
    path = Path(cfg.OUTPUT_DIR, "model_best.pth")
    wanted = load(cfg, "model_final.pth")["model"]
    assert same(read_weights(path).state, wanted)
    for build in (Trainer, DefaultTrainer):
        other = make_cfg(MODEL__WEIGHTS=path, SEED=5)
        trainer = build(other)
        trainer.resume_or_load(resume=False)
        assert same(trainer.model.state_dict(), wanted)
    cfg.MODEL.DETR.NUM_CLASSES = 2
    detector = build_detector(cfg)  # the standalone engine's
    load_weights(detector, path)
    assert same({f"detector.{key}": value for key, value in detector.state_dict().items()}, wanted)


def test_early_stopping(make_cfg, scores, caplog):
    cfg = make_cfg(**STOP, **EMA, SOLVER__MAX_ITER=20, TEST__EARLY_STOPPING__MIN_DELTA=1.0)
    seen = []
    scores([4.0, 4.5, math.nan])  # a fourth evaluation would be an error
    with caplog.at_level(logging.INFO, "projects_deformable_detr"):
        trainer = run(cfg, watch=[hooks.CallbackHook(after_train=lambda t: seen.append(t.iter))])
    assert seen == [6]
    assert "Stopping early at iteration 5: bbox/AP has not risen above 4.0000 by more than 1 in 2" in caplog.text
    assert math.isnan(trainer._last_eval_results["bbox"]["AP"])
    final = load(cfg, "model_final.pth")
    assert final["iteration"] == 5 and not same(final["model"], final["ema"]["model"])
    lines = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    end = [line for line in lines if "bbox/AP" in line][-1]
    assert end["iteration"] == 5 and math.isnan(end["bbox/AP"])

    # A resumed run ends immediately; with a larger patience or without the key, it continues.
    scores([])
    run(cfg, resume=True)
    assert load(cfg, "model_final.pth")["iteration"] == 5
    other = shutil.copytree(cfg.OUTPUT_DIR, f"{cfg.OUTPUT_DIR}_other")
    for folder, key, value in ((cfg.OUTPUT_DIR, "PATIENCE", 3), (other, "ENABLED", False)):
        cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER, cfg.TEST.EARLY_STOPPING[key] = folder, 9, value
        scores([9.0, 9.0])
        run(cfg, resume=True)
        assert load(cfg, "model_final.pth")["iteration"] == 8


@pytest.mark.usefixtures("forkserver")
def test_two_processes_stop_together_and_average(job, tmp_path, coco_files, monkeypatch):
    """AP does not rise by 90 within four iterations. Resumed without the key, the run continues."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = EMA | BEST | STOP | {
        "MODEL__RESNETS__NORM": "BN", "SOLVER__CHECKPOINT_PERIOD": 1, "TEST__EARLY_STOPPING__PATIENCE": 1,
        "TEST__EARLY_STOPPING__MIN_DELTA": 90.0,
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (key.replace("__", "."), value)]
    output = tmp_path / "output"
    results = main(job(tmp_path, coco_files, *words, "SOLVER.MAX_ITER", 30, num_gpus=2))
    assert "AP" in results["bbox"]
    stopped = torch.load(output / "model_final.pth", weights_only=True)["iteration"]
    assert stopped in (1, 3) and (output / "last_checkpoint").read_text() == "model_final.pth"

    more = ("SOLVER.MAX_ITER", 5, "TEST.EARLY_STOPPING.ENABLED", False)
    main(job(tmp_path, coco_files, *words, *more, num_gpus=2, resume=True))
    trained, averaged = check_averages(output, 5)
    assert max(float((trained[key] - averaged[key]).abs().max()) for key in averaged) > 1e-3  # it has trained


def test_an_unknown_metric_is_an_error_on_all_processes(monkeypatch):
    """Otherwise the others, which have no results, would wait for the main process."""
    monkeypatch.setattr(callbacks.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(callbacks.comm, "all_gather", lambda own: [{"bbox/AP": 1.0}, own])
    hook = callbacks.EarlyStopping(EarlyStoppingConfig(metric="AP"), period=1, evaluations=[])
    hook.trainer = SimpleNamespace(iter=0, max_iter=9)
    with pytest.raises(UserError, match="EARLY_STOPPING.METRIC must be one of bbox/AP, got 'AP'"):
        hook.after_step()


def test_evaluations_of_a_base_class_use_the_average(make_cfg, scores):
    """They keep function and period. A hook registered later has the average after training only."""
    seen, later = [], []

    class Base(DefaultTrainer):
        def build_hooks(self):
            other = hooks.EvalHook(3, lambda: seen.append((self.iter, copy.deepcopy(self.model.state_dict()))))
            return [*super().build_hooks(), other]

    class Both(Trainer, Base):
        pass

    cfg = make_cfg(**EMA, SOLVER__MAX_ITER=4, SOLVER__CHECKPOINT_PERIOD=1, TEST__EVAL_PERIOD=2)
    plain = scores([1.0, 2.0])
    states = hooks.EvalHook(2, lambda: later.append(copy.deepcopy(trainer.model.state_dict())))
    trainer = Both(cfg)
    run(cfg, trainer=lambda _: trainer, watch=[states])
    assert [iteration for iteration, _ in seen] == [2, 4] and len(plain) == 2
    assert same(seen[0][1], load(cfg, "model_0000002.pth")["model"])
    assert same(seen[1][1], load(cfg, "model_final.pth")["model"])
    assert same(later[0], load(cfg, "model_0000001.pth")["ema"]["model"])
    assert same(later[1], load(cfg, "model_final.pth")["model"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {**EMA, "TEST__PRECISE_BN__ENABLED": True, "MODEL__RESNETS__NORM": "BN"},
            "TEST.PRECISE_BN.ENABLED cannot both be True",
        ),
        ({**BEST, "TEST__BEST_CHECKPOINT__METRIC": "AP"}, "BEST_CHECKPOINT.METRIC must be one of .* got 'AP'"),
        ({**STOP, "TEST__EARLY_STOPPING__METRIC": "AP"}, "EARLY_STOPPING.METRIC must be one of .* got 'AP'"),
    ],
)
def test_invalid_values_name_their_key(make_cfg, scores, options, message):
    scores([1.0, 2.0, 3.0])
    with pytest.raises(UserError, match=message):
        run(make_cfg(**options))


class OwnOptimizer(DefaultTrainer):
    @classmethod
    def build_optimizer(cls, cfg, model):
        return torch.optim.SGD(model.parameters(), cfg.SOLVER.BASE_LR)


@pytest.mark.parametrize("build", [DefaultTrainer, OwnOptimizer, lambda cfg: build_optimizer(cfg, build_model(cfg))])
@pytest.mark.parametrize(
    ("options", "key"),
    [
        (EMA, "SOLVER.EMA.ENABLED True"),
        (BEST, "TEST.BEST_CHECKPOINT.ENABLED True"),
        ({"SOLVER__ACCUMULATION_STEPS": 2}, "SOLVER.ACCUMULATION_STEPS 2"),
        ({"SOLVER__STRATEGY": "fsdp"}, "SOLVER.STRATEGY fsdp"),
    ],
)
def test_detectron2_trainers_reject_unsupported_keys(make_cfg, build, options, key):
    """``plain_train_net.py`` uses the last one."""
    with pytest.raises(UserError, match=rf"{key} is not supported by Detectron2's own trainers"):
        build(make_cfg(**options))


def test_keys_are_not_checked_for_other_models(make_cfg, monkeypatch):
    cfg = make_cfg(**EMA, MODEL__META_ARCHITECTURE="RetinaNet")
    monkeypatch.setattr(DefaultTrainer, "build_model", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        DefaultTrainer(cfg)


def test_subclass_with_another_optimizer(make_cfg):
    class Own(OwnOptimizer, Trainer):
        pass

    assert isinstance(Own(make_cfg(SOLVER__OPTIMIZER="OWN"))._trainer.optimizer, torch.optim.SGD)


def test_subclass_with_build_optimizer_of_detectron2(make_cfg, scores):
    class Own(Trainer):
        @classmethod
        def build_optimizer(cls, cfg, model):
            return build_optimizer(cfg, model)

    cfg = make_cfg(**EMA, SOLVER__MAX_ITER=2)
    scores([1.0])
    run(cfg, trainer=Own)
    assert load(cfg, "model_final.pth")["ema"]["n_averaged"] == 2
    with pytest.raises(UserError, match="SOLVER.EMA"):  # rejected outside the trainer
        build_optimizer(cfg, build_model(cfg))


def test_default_trainer_does_not_resume_from_an_average(make_cfg, scores):
    cfg = make_cfg(**EMA, SOLVER__MAX_ITER=2)
    scores([1.0])
    run(cfg)
    trainer = DefaultTrainer(make_cfg(SOLVER__MAX_ITER=3))
    with pytest.raises(CheckpointError, match="contains averaged weights.*start from them with MODEL.WEIGHTS"):
        trainer.resume_or_load(resume=True)
