"""Two processes on gloo: same gradients and evaluation as one process with the whole batch; errors."""

import json
import logging
import math
import shutil
import socket
from argparse import Namespace
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import distributed

from projects_deformable_detr.errors import ArgumentError, UserError
from projects_deformable_detr.modeling import Targets
from projects_deformable_detr.standalone import main
from projects_deformable_detr.standalone.batch import Item, collate
from projects_deformable_detr.standalone.callbacks import ResumeCheck

# With plain SGD, the change of the weights is proportional to the gradient. All images have one size, because the
# model's group norms depend on the padding, which differs between a batch and its parts.
EXACT = (
    "SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.BASE_LR", 0.02, "SOLVER.MAX_ITER", 2,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 10.0, "SOLVER.WARMUP_ITERS", 0, "MODEL.DETR.DROPOUT", 0.0,
    "MODEL.DETR.WITH_BOX_REFINE", True, "MODEL.DETR.TWO_STAGE", True, "INPUT.CROP.ENABLED", False,
    "INPUT.MIN_SIZE_TRAIN", "(48,)", "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, "DATASETS.TRAIN", "('sparse',)",
    "DATASETS.TEST", "('sparse',)", "TEST.EVAL_PERIOD", 0,
)  # fmt: skip
MODELS = {
    "deformable": (),
    "detr": (
        "MODEL.META_ARCHITECTURE", "DETR", "MODEL.DETR.WITH_BOX_REFINE", False, "MODEL.DETR.TWO_STAGE", False,
        "MODEL.DETR.IN_FEATURES", "['res5']", "MODEL.RESNETS.OUT_FEATURES", "['res5']",
        "MODEL.DETR.NUM_FEATURE_LEVELS", 1,
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def sparse(tmp_path_factory: pytest.TempPathFactory, write_tiny: Callable[..., Path]) -> tuple[object, ...]:
    """``--register`` of five images, one of them without objects, so that the last batch of two processes is uneven."""
    folder = tmp_path_factory.mktemp("sparse")
    return "--register", "sparse", write_tiny(folder, 5, 2, counts=(1, 0, 7, 2, 1)), folder


def weights_and_losses(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Returns the final weights, and the losses in ``metrics.json``."""
    rows = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    losses = next(row for row in rows if "total_loss" in row)
    weights = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    return weights, {name: value for name, value in losses.items() if "loss" in name or name == "cardinality_error"}


def assert_equal_runs(folder: Path, other: Path, *, compare_losses: bool = True) -> None:
    (one, losses), (two, others) = weights_and_losses(folder), weights_and_losses(other)
    assert one.keys() == two.keys()
    differing = {key: (one[key] - two[key]).abs().max() for key in one if one[key].is_floating_point()}
    assert max(differing.values()) < 1e-5, differing
    if compare_losses:
        assert others == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("model", list(MODELS))
def test_accumulated_parts_equal_the_batch(
    make_args: Callable[..., Namespace], sparse: tuple[object, ...], tmp_path: Path, model: str
) -> None:
    options = (*sparse, *EXACT, *MODELS[model], "DATASETS.TEST", "()")
    main(make_args(tmp_path / "whole", *options))
    main(make_args(tmp_path / "parts", *options, "SOLVER.ACCUMULATION_STEPS", 2))
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    # The number of parts may change when a run resumes, because iterations and random numbers do not depend on it.
    main(make_args(tmp_path / "changed", *options, "SOLVER.MAX_ITER", 1))
    main(make_args(tmp_path / "changed", "--resume", *options, "SOLVER.ACCUMULATION_STEPS", 4))
    assert_equal_runs(tmp_path / "whole", tmp_path / "changed", compare_losses=False)


def test_number_of_parts_must_divide_the_batch(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"multiple of 1 processes x SOLVER.ACCUMULATION_STEPS 3, got 4"):
        main(make_args(tmp_path, "SOLVER.ACCUMULATION_STEPS", 3))


def test_number_of_micro_batches_must_divide_the_images() -> None:
    item = Item(
        torch.zeros(3, 4, 4, dtype=torch.uint8), Targets(torch.zeros(0).long(), torch.zeros(0, 4)), 1, "", (4, 4)
    )
    batch = collate([item] * 6)
    assert [len(part.counts) for part in batch.micro_batches(3)] == [2, 2, 2]
    with pytest.raises(ArgumentError, match="must divide the number of images .*, 6, got 4"):
        batch.micro_batches(4)


def test_sharding_a_frozen_detector_is_an_error(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    options = ("MODEL.MASK_ON", True, "MODEL.DETR.MASKS.FREEZE_DETECTOR", True, "MODEL.DETR.HIDDEN_DIM", 128)
    with pytest.raises(UserError, match=r"STRATEGY must be ddp with MODEL.DETR.MASKS.FREEZE_DETECTOR True, got fsdp"):
        main(make_args(tmp_path, *options, "SOLVER.STRATEGY", "fsdp"))


@pytest.mark.usefixtures("forkserver")
@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_equal_one(
    make_args: Callable[..., Namespace], sparse: tuple[object, ...], tmp_path: Path, parts: int
) -> None:
    options = (*sparse, *EXACT)
    main(make_args(tmp_path / "one", *options, "DATASETS.TEST", "()"))
    metrics = main(make_args(tmp_path / "two", "--num-gpus", 2, *options, "SOLVER.ACCUMULATION_STEPS", parts))
    assert_equal_runs(tmp_path / "one", tmp_path / "two", compare_losses=False)  # those of rank 0 are logged
    main(make_args(tmp_path / "half", *options, "SOLVER.IMS_PER_BATCH", 2, "DATASETS.TEST", "()"))
    with pytest.raises(AssertionError):
        assert_equal_runs(tmp_path / "one", tmp_path / "half", compare_losses=False)

    weights = tmp_path / "two" / "model_final.pth"
    again = main(make_args(tmp_path / "eval", "--eval-only", *options, "MODEL.WEIGHTS", weights))
    assert metrics["bbox"] == pytest.approx(again["bbox"], abs=0.1, nan_ok=True)
    found, expected = (
        json.loads((tmp_path / name / "inference" / "coco_instances_results.json").read_text())
        for name in ("two", "eval")
    )
    assert [row["image_id"] for row in found] == [row["image_id"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-4)


SHARDED = (
    *EXACT, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0, "SOLVER.MOMENTUM", 0.9, "SOLVER.EMA.ENABLED", True,
    "SOLVER.EMA.DECAY", 0.5, "TEST.EVAL_PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.MAX_ITER", 4,
    "SOLVER.ACCUMULATION_STEPS", 2, "SOLVER.STRATEGY", "fsdp",
)  # fmt: skip


@pytest.mark.usefixtures("forkserver")
@pytest.mark.parametrize("resumed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sharded_training_equals_one_process_and_resumes_anywhere(
    make_args: Callable[..., Namespace],
    sparse: tuple[object, ...],
    tmp_path: Path,
    resumed: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With an active clip, an average, accumulation, and an uneven number of batches in the evaluations.

    A run of two processes resumes on one, or the other way round.
    """
    options = (*sparse, *SHARDED)
    with caplog.at_level(logging.INFO, "projects_deformable_detr"):
        expected = main(make_args(tmp_path / "one", *options))
    assert "SOLVER.STRATEGY fsdp has no effect with one process" in caplog.text
    if resumed == 1:
        found = main(make_args(tmp_path / "two", "--num-gpus", 2, *options))
        assert_equal_runs(tmp_path / "one", tmp_path / "two", compare_losses=False)
        assert found["bbox"] == pytest.approx(expected["bbox"], abs=0.1, nan_ok=True)
    source = "two" if resumed == 1 else "one"
    shutil.copytree(tmp_path / source, tmp_path / "resumed")
    (tmp_path / "resumed" / "model_final.pth").unlink()
    (tmp_path / "resumed" / "last_checkpoint").write_text("model_0000001.ckpt")
    main(make_args(tmp_path / "resumed", "--resume", "--num-gpus", resumed, *options))
    assert_equal_runs(tmp_path / "one", tmp_path / "resumed", compare_losses=False)


@pytest.mark.usefixtures("forkserver")
def test_evaluation_on_two_processes_equals_one(
    make_args: Callable[..., Namespace], write_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """With an odd number of images, fewer images than processes, and without annotations."""
    words: list[object] = ["DATASETS.TEST", "('odd', 'one', 'unlabeled')"]
    for name, count in (("odd", 21), ("one", 1), ("unlabeled", 3)):
        (tmp_path / name).mkdir()
        path = write_tiny(tmp_path / name, count, seed=2)
        if name == "unlabeled":
            content = json.loads(path.read_text())
            del content["annotations"]
            path.write_text(json.dumps(content))
        words = ["--register", name, path, path.parent, *words]
    main(make_args(tmp_path / "train", "SOLVER.MAX_ITER", 4, "DATASETS.TEST", "()"))
    words = ["--eval-only", *words, "MODEL.WEIGHTS", tmp_path / "train" / "model_final.pth"]
    expected = main(make_args(tmp_path / "one process", *words))
    found = main(make_args(tmp_path / "two", "--num-gpus", 2, *words))
    assert found.keys() == expected.keys() == {"odd", "one", "unlabeled"}
    for name, count in (("odd", 21), ("one", 1), ("unlabeled", 3)):
        assert found[name]["bbox"] == pytest.approx(expected[name]["bbox"], abs=0.05, nan_ok=True)
        rows, others = (
            json.loads((tmp_path / folder / "inference" / name / "coco_instances_results.json").read_text())
            for folder in ("one process", "two")
        )
        assert [row["image_id"] for row in rows] == [row["image_id"] for row in others]
        assert {row["image_id"] for row in rows} == set(range(1, count + 1))
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in others], abs=1e-5)
    assert math.isnan(found["unlabeled"]["bbox"]["AP"])


def test_unused_features(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    """The last stage has no gradient, so that DDP needs ``find_unused_parameters``. The processes are spawned."""
    options = ("MODEL.DETR.IN_FEATURES", "['res4']", "SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()")
    main(make_args(tmp_path, "--num-gpus", 2, *options))
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.usefixtures("forkserver")
def test_an_error_in_one_of_several_processes_is_a_message(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        main(make_args(tmp_path, "--num-gpus", 2, "--eval-only", "MODEL.WEIGHTS", "nowhere.pth"))
    assert str(error.value).startswith("nowhere.pth: checkpoint file does not exist")
    assert "Traceback" not in str(error.value)


def test_ranks_compare_their_last_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other rank is simulated, with the checkpoint of iteration 7."""

    def gather(names: list[str], own: str) -> None:
        names[:] = [own, "model_0000007.ckpt"]

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    ResumeCheck(Path("model_0000007.ckpt")).setup()
    with pytest.raises(UserError, match=r"different last checkpoints \(model_0000007.ckpt, none\)"):
        ResumeCheck(None).setup()


@pytest.mark.slow
def test_machines_with_different_last_checkpoints(make_args: Callable[..., Namespace], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    (tmp_path / "0" / "last_checkpoint").write_text("model_0000007.ckpt")
    (tmp_path / "0" / "model_0000007.ckpt").write_bytes(b"not read")

    def machine(rank: int) -> BaseException | None:
        flags = ("--num-machines", 2, "--machine-rank", rank, "--dist-url", url, "--resume")
        try:
            main(make_args(tmp_path / str(rank), *flags))
        except Exception as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        errors = list(pool.map(machine, range(2)))
    assert [type(error) for error in errors] == [UserError] * 2
    assert "different last checkpoints (model_0000007.ckpt, none)" in str(errors[0])
