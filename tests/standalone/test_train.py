"""Complete runs: training, its files, resuming, evaluation, and invalid input."""

import json
import logging
import math
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from projects_deformable_detr.checkpoint import load_weights
from projects_deformable_detr.cli.arguments import argument_parser
from projects_deformable_detr.config import load_cfg
from projects_deformable_detr.config.data import load
from projects_deformable_detr.config.run import read_run
from projects_deformable_detr.data import catalog
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.standalone import data, main, run
from projects_deformable_detr.standalone.data import build_training_set, training_loader
from projects_deformable_detr.standalone.module import DetectionModule

Make = Callable[..., Namespace]


@pytest.fixture(scope="module")
def trained(make_args: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Folder and metrics of an uninterrupted run of 24 iterations."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    return folder, main(make_args(folder))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_training_lowers_the_loss_and_logs_it(trained: tuple[Path, dict[str, Any]]) -> None:
    rows = [row for row in lines(trained[0]) if "total_loss" in row]
    assert [row["iteration"] for row in rows] == [19, 23]
    names = {"total_loss", "loss_ce", "loss_bbox_0", "cardinality_error", "lr", "time", "data_time", "eta_seconds"}
    assert names <= rows[0].keys()
    assert rows[0]["total_loss"] == pytest.approx(sum(v for k, v in rows[0].items() if k.startswith("loss_")), rel=0.2)
    assert rows[-1]["lr"] == pytest.approx(2e-4)

    folder = trained[0]
    untrained, after = _loss(folder, None), _loss(folder, folder / "model_final.pth")
    assert after < 0.85 * untrained


def _loss(folder: Path, checkpoint: Path | None) -> float:
    """Returns the loss of eight training images."""
    args = argument_parser().parse_args(["--config-file", str(folder / "config.yaml"), "SOLVER.IMS_PER_BATCH", "8"])
    cfg = load_cfg("standalone", args)
    config = read_run(cfg, args)
    torch.manual_seed(cfg.SEED)
    module = DetectionModule(config, config.build_detector(), config.build_criterion(), None, []).eval()
    if checkpoint is not None:
        load_weights(module.detector, checkpoint)
    datasets = {name: load(catalog.get(name), config.data) for name in config.data.train}
    images = build_training_set(config.data, datasets, config.train_augmentation)
    batch = next(iter(training_loader(config.data, images, cfg.SEED)))
    with torch.no_grad():
        return float(sum(module.criterion(module(batch), batch.targets).values()))


def detections(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "inference" / "coco_instances_results.json").read_text())


def assert_same_detections(a: Path, b: Path) -> None:
    """Compares scores and boxes up to rounding."""
    found, expected = detections(a), detections(b)
    assert len(found) == len(expected) > 0
    for row, other in zip(found, expected, strict=True):
        assert (row["image_id"], row["category_id"]) == (other["image_id"], other["category_id"])
        assert row["score"] == pytest.approx(other["score"], abs=1e-4)
        assert row["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


def test_files_of_a_run(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = trained
    assert (folder / "last_checkpoint").read_text() == "model_0000023.ckpt"
    assert {path.name for path in folder.glob("*.ckpt")} == {f"model_{i:07d}.ckpt" for i in (7, 15, 23)}
    final = torch.load(folder / "model_final.pth", weights_only=True)
    assert final["iteration"] == 23
    assert all(key.startswith("detector.") for key in final["model"])
    assert "eta" in (folder / "log.txt").read_text()
    results = json.loads((folder / "inference" / "coco_instances_results.json").read_text())
    assert {row["category_id"] for row in results} == {5, 9}
    assert {row["image_id"] for row in results} == set(range(1, 8))
    evaluated = [row for row in lines(folder) if "bbox/AP" in row]
    assert [row["iteration"] for row in evaluated] == [11, 23]
    assert evaluated[-1]["bbox/AP"] == metrics["bbox"]["AP"]
    assert {"AP-red", "AP-blue"} <= metrics["bbox"].keys()


def test_tensorboard_has_the_values_of_metrics_json(trained: tuple[Path, dict[str, Any]]) -> None:
    """TensorBoard counts iterations from 1."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    events = accumulator.EventAccumulator(str(trained[0])).Reload()
    found = {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    assert {"total_loss", "loss_ce_0", "lr", "bbox/AP", "bbox/AP-red", "bbox/AP-blue"} <= found.keys()
    for tag in ("total_loss", "lr", "bbox/AP", "bbox/AP-red"):
        logged = {row["iteration"] + 1: row[tag] for row in lines(trained[0]) if tag in row}
        assert logged and found[tag] == pytest.approx(logged, rel=1e-5, nan_ok=True)


def test_eval_only_repeats_the_metrics(trained: tuple[Path, dict[str, Any]], make_args: Make, tmp_path: Path) -> None:
    folder, metrics = trained
    from_final = main(make_args(tmp_path, "--eval-only", "MODEL.WEIGHTS", folder / "model_final.pth"))
    assert_same_detections(tmp_path, folder)
    for name in ("last_checkpoint", "model_0000023.ckpt"):
        shutil.copy(folder / name, tmp_path)
    from_last = main(make_args(tmp_path, "--eval-only", "--resume", "SOLVER.IMS_PER_BATCH", 1))
    assert_same_detections(tmp_path, folder)
    for found in (from_final, from_last):
        assert found["bbox"] == pytest.approx(metrics["bbox"], abs=0.1, nan_ok=True)


def test_a_killed_run_resumes_to_the_same_weights(
    trained: tuple[Path, dict[str, Any]], make_args: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = DetectionModule.training_step

    def killed(self: DetectionModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 11:
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionModule, "training_step", killed)
        with pytest.raises(RuntimeError, match="killed"):
            main(make_args(tmp_path))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000007.ckpt"
    torch.manual_seed(1234)
    metrics = main(make_args(tmp_path, "--resume"))
    assert same(weights(tmp_path), weights(trained[0]))
    assert_same_detections(tmp_path, trained[0])
    assert metrics["bbox"] == pytest.approx(trained[1]["bbox"], nan_ok=True)


def test_a_finished_run_resumes_to_its_evaluation(
    trained: tuple[Path, dict[str, Any]], make_args: Make, tmp_path: Path
) -> None:
    shutil.copy(trained[0] / "model_0000023.ckpt", tmp_path)
    shutil.copy(trained[0] / "last_checkpoint", tmp_path)
    metrics = main(make_args(tmp_path, "--resume"))
    assert metrics["bbox"] == pytest.approx(trained[1]["bbox"], nan_ok=True)


def test_a_new_run_in_the_folder_of_an_earlier_one(make_args: Make, tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("model_0000099.ckpt")
    (tmp_path / "model_0000099.ckpt").write_bytes(b"old")
    (tmp_path / "metrics.json").write_text("{}\n")
    options = ("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"files of an earlier run \(model_0000099.ckpt\): .*--resume"):
        main(make_args(tmp_path, *options))
    assert contents(tmp_path) == before
    main(make_args(tmp_path, "--overwrite", *options))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.ckpt"
    assert not (tmp_path / "model_0000099.ckpt").exists()
    assert [line["iteration"] for line in lines(tmp_path)] == [0]


@pytest.fixture(scope="module")
def other_classes(data_sets: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Registers ``three`` with the classes a, b and c, and ``swapped`` with the names of both classes exchanged."""
    _, file, images = data_sets[0]
    content = json.loads(Path(file).read_text())
    for item in content["annotations"]:
        item["category_id"] = 5
    for name, classes in (("three", "abc"), ("swapped", ("blue", "red"))):
        content["categories"] = [{"id": number, "name": name} for number, name in enumerate(classes, 5)]
        path = tmp_path_factory.mktemp(name) / "instances.json"
        path.write_text(json.dumps(content))
        catalog.register(name, path, images)


@pytest.mark.usefixtures("other_classes")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("DATASETS.TRAIN", "('three',)", "DATASETS.TEST", "('three',)"),
            r"has 2 classes \(red, blue\).*have 3 \(a, b, c\)",
        ),
        (("DATASETS.TRAIN", "('swapped',)", "DATASETS.TEST", "('swapped',)"), r"\(red, blue\).* \(blue, red\)"),
        (("MODEL.BACKBONE.FREEZE_AT", 2), "in group 'backbone'.*same MODEL.BACKBONE.FREEZE_AT"),
        (("SOLVER.OPTIMIZER", "SGD"), "another optimizer: resume with the same SOLVER.OPTIMIZER"),
        (("MODEL.DETR.HIDDEN_DIM", 64), r"a different model: .*another OUTPUT_DIR:(.|\n)*\(32.*\(64"),
        (("OUTPUT_DIR", "misspelt"), "no checkpoint to resume from in misspelt: check OUTPUT_DIR"),
    ],
)
def test_resuming_with_another_config_or_data_changes_nothing(
    trained: tuple[Path, dict[str, Any]], make_args: Make, tmp_path: Path, options: tuple[object, ...], message: str
) -> None:
    for name in ("config.yaml", "last_checkpoint", "log.txt", "metrics.json", "model_0000023.ckpt"):
        shutil.copy(trained[0] / name, tmp_path)
    before = contents(tmp_path)
    args = make_args(tmp_path, "--resume")
    args.opts += [str(option) for option in options]
    with pytest.raises(UserError, match=message):
        main(args)
    after = contents(tmp_path)
    if "SOLVER" in options[0] or "MODEL" in options[0]:  # compared by the processes, which log
        assert after.pop("log.txt").startswith(before.pop("log.txt"))
    assert after == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_resumed_run_uses_the_learning_rate_of_its_config(
    trained: tuple[Path, dict[str, Any]], make_args: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("last_checkpoint", "model_0000015.ckpt"):
        shutil.copy(trained[0] / name, tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000015.ckpt")
    with caplog.at_level(logging.INFO, "projects_deformable_detr"):
        main(make_args(tmp_path, "--resume", "SOLVER.BASE_LR", 1e-3, "SOLVER.WEIGHT_DECAY", 0.0, "DATASETS.TEST", "()"))
    assert [line["lr"] for line in lines(tmp_path)] == pytest.approx([1e-3, 1e-4])
    assert "config's learning rate 0.001, not the checkpoint's 0.002, in parameter group 'rest'" in caplog.text
    assert "config's weight_decay 0.0, not" in caplog.text


def test_the_last_checkpoints_are_kept(make_args: Make, tmp_path: Path) -> None:
    options = ("DATASETS.TEST", "()", "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINT_KEEP", 2)
    main(make_args(tmp_path, *options, "SOLVER.MAX_ITER", 4))
    (tmp_path / ".model_0000003.ckpt.abcdefgh").write_bytes(b"half")  # left by a killed process
    main(make_args(tmp_path, "--resume", *options, "SOLVER.MAX_ITER", 5))
    names = {path.name for path in tmp_path.glob("*model_*")} | {path.name for path in tmp_path.glob(".model*")}
    kept = {f"model_{iteration:07d}.ckpt" for iteration in (2, 3, 4)}  # two of the first process
    assert names == {*kept, "model_final.pth"}


def test_a_pair_of_registered_data_sets_is_used(make_args: Make, tmp_path: Path) -> None:
    """config.yaml contains them, and an evaluation needs no training set."""
    args = make_args(tmp_path, "SOLVER.MAX_ITER", 1)
    text = Path(args.config_file).read_text().replace("[tiny_", "[coco_2017_")
    args.config_file = str(tmp_path.parent / f"{tmp_path.name}.yaml")
    Path(args.config_file).write_text(text)
    assert "AP-red" in main(args)["bbox"]
    again = ["--config-file", str(tmp_path / "config.yaml"), "--eval-only", "DATASETS.TRAIN", "('gone',)"]
    again += ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
    assert "AP-red" in main(argument_parser().parse_args(again))["bbox"]
    assert "tiny_train" in (tmp_path / "config.yaml").read_text()
    args.register = args.register[:1]
    with pytest.raises(UserError, match=r"\(tiny_train\) are not in DATASETS.TRAIN \('coco_2017_train',\)"):
        main(args)


def test_last_checkpoint_is_found_before_the_launch(
    make_args: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[Any] = []
    monkeypatch.setattr(run, "launch", lambda *arguments: launched.append(arguments[-1]))
    (tmp_path / "last_checkpoint").write_text("model_0000007.ckpt")
    torch.save({}, tmp_path / "model_0000007.ckpt")
    main(make_args(tmp_path, "--overwrite"))
    main(make_args(tmp_path, "--resume"))
    assert launched == [None, tmp_path / "model_0000007.ckpt"]


def test_workers_and_mixed_precision(make_args: Make, tmp_path: Path, trained: tuple[Path, dict[str, Any]]) -> None:
    options = ("SOLVER.MAX_ITER", 3, "DATASETS.TEST", "()")
    main(make_args(tmp_path / "plain", *options))
    main(make_args(tmp_path / "workers", *options, "DATALOADER.NUM_WORKERS", 2))
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "workers"))
    main(make_args(tmp_path / "mixed", *options, "SOLVER.AMP.ENABLED", True))
    mixed = weights(tmp_path / "mixed")
    assert not same(weights(tmp_path / "plain"), mixed)
    assert all(torch.isfinite(value).all() for value in mixed.values())


@pytest.mark.parametrize("steps", [1, 2])
def test_losses_that_are_not_finite_end_the_training(
    make_args: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    class Diverging(torch.nn.Module):
        calls = 0

        def forward(self, predictions: Any, targets: Any, *_: Any) -> dict[str, torch.Tensor]:
            self.calls += 1
            finite = predictions.boxes.sum()
            return {"loss_ce": finite * (math.nan if self.calls == 3 * steps else 1.0), "loss_bbox": finite}

    monkeypatch.setattr("projects_deformable_detr.config.run.Run.build_criterion", lambda run: Diverging())
    with pytest.raises(FloatingPointError, match="iteration 2: .*loss_ce") as error:
        main(make_args(tmp_path, "SOLVER.ACCUMULATION_STEPS", steps))
    assert "loss_bbox" not in str(error.value)
    (path,) = tmp_path.glob("failed_step_0000002_rank0.pth")
    step = torch.load(path, weights_only=True)
    assert step["accumulation_steps"] == steps
    assert len(step["images"]) == 4 and all(name in str(error.value) for name in step["names"])
    assert all(".png (image id " in name for name in step["names"])


def test_invalid_targets_name_the_image(make_args: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exchange_corners(*arguments: Any, **options: Any) -> Any:
        targets = make_targets(*arguments, **options)
        return replace(targets, boxes=targets.boxes * torch.tensor([1.0, 1.0, -1.0, 1.0]))

    make_targets = data._make_targets
    monkeypatch.setattr("projects_deformable_detr.standalone.data._make_targets", exchange_corners)
    with pytest.raises(UserError, match=r"box .* of .*\.png \(image id \d+\) has exchanged corners"):
        main(make_args(tmp_path))


def test_metrics_of_several_test_sets(trained: tuple[Path, dict[str, Any]], make_args: Make, tmp_path: Path) -> None:
    metrics = main(
        make_args(
            tmp_path, "--eval-only", "MODEL.WEIGHTS", trained[0] / "model_final.pth",
            "DATASETS.TEST", "('tiny_val', 'tiny_train')",
        )
    )  # fmt: skip
    assert metrics.keys() == {"tiny_val", "tiny_train"}
    assert metrics["tiny_val"]["bbox"] == pytest.approx(trained[1]["bbox"], abs=1e-3, nan_ok=True)
    assert (tmp_path / "inference" / "tiny_train" / "coco_instances_results.json").is_file()


@pytest.mark.parametrize(
    ("weights", "message"), [("", "MODEL.WEIGHTS"), ("torchvision://resnet18", "weights of a backbone")]
)
def test_evaluation_needs_a_detector(make_args: Make, tmp_path: Path, weights: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(make_args(tmp_path, "--eval-only", "MODEL.WEIGHTS", weights))
