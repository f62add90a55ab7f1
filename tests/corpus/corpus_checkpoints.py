"""Rows of the corpus: weights, checkpoints to resume from, and output folders."""

import functools
import io
import json
import os
import pickle
from collections.abc import Callable
from typing import Any

import torch
from corpus_annotations import add, plain
from corpus_inputs import CONFIG, Inputs, accept, encode, entries, error, flags, lists, options, picture, together, warn


@functools.cache
def weights(num_classes: int = 2, changes: tuple[object, ...] = ()) -> dict[str, Any]:
    """Returns the content of model_final.pth."""
    import yaml
    from fvcore.common.config import CfgNode

    from projects_deformable_detr import build_detector, get_cfg

    cfg = get_cfg("standalone")
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(CONFIG)))
    cfg.merge_from_list(["MODEL.DETR.NUM_CLASSES", num_classes, *changes])
    state = {f"detector.{key}": value for key, value in build_detector(cfg).state_dict().items()}
    return {"model": state, "class_names": ["red", "blue", "green"][:num_classes], "iteration": 0}


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def file(content: Callable[[], bytes], *more: object, name: str = "weights.pth", eval_only: bool = False) -> Any:
    """Returns a function that writes a file and sets MODEL.WEIGHTS to it."""

    def change(inputs: Inputs) -> None:
        (inputs.folder / name).write_bytes(content())
        inputs.options += ["MODEL.WEIGHTS", inputs.folder / name, *more]
        inputs.flags += ["--eval-only"] * eval_only

    return change


def changed(function: Callable[[str, torch.Tensor], tuple[str, Any]], **arguments: Any) -> Any:
    """Returns a function like that of `file` for a file whose keys and tensors are changed."""

    def content() -> bytes:
        found = weights()
        return saved({**found, "model": dict(function(*item) for item in found["model"].items())})

    return file(content, **arguments)


def nan(key: str, value: torch.Tensor) -> tuple[str, Any]:
    return key, torch.full_like(value, float("nan")) if value.is_floating_point() else value


class _Command:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return os.system, ("touch executed",)


def not_executed(result: Any) -> None:
    assert not (result.folder.parent / "executed").exists()


def resume(damage: Callable[[Any], object], *more: object, later: Any = None) -> Any:
    """Returns a function that trains for two iterations, changes the output folder and the inputs, and resumes."""

    def change(inputs: Inputs) -> None:
        period = ("SOLVER.CHECKPOINT_PERIOD", "1")
        inputs.first_run = ("SOLVER.MAX_ITER", "2", *period)

        def between() -> None:
            damage(inputs.folder / "output")
            inputs.flags.append("--resume")
            inputs.options += ["SOLVER.MAX_ITER", "3", *period, *more]
            if later is not None:
                later(inputs)

        inputs.between = between

    return change


def keep(output: Any) -> None:
    """Changes nothing."""


def has_rate(expected: float) -> Callable[[Any], None]:
    """Returns a check of the learning rate of the last iteration."""

    def check(result: Any) -> None:
        lines = map(json.loads, (result.folder / "metrics.json").read_text().splitlines())
        rates = [line["lr"] for line in lines if "lr" in line]
        assert rates[-1] == expected, rates

    return check


def truncate(output: Any) -> None:
    last = output / (output / "last_checkpoint").read_text().strip()
    last.write_bytes(last.read_bytes()[:1000])


def truncate_all(output: Any) -> None:
    for path in [*output.glob("*.pth"), *output.glob("*.ckpt")]:
        path.write_bytes(path.read_bytes()[:1000])


WEIGHTS = [
    accept("weights", file(lambda: saved(weights())), plain),
    accept("weights, evaluated", file(lambda: saved(weights()), eval_only=True), message=r"\b100\.00", ap=None),
    warn(
        "weights evaluated without objects",
        r"data set without objects \(1\)",
        together(lists(annotations=[]), file(lambda: saved(weights()), eval_only=True)),
        ap=None,
    ),
    accept(
        "weights of a compiled model", changed(lambda k, v: (k.replace("detector.", "detector._orig_mod."), v)), plain
    ),
    accept("weights in half precision", changed(lambda k, v: (k, v.half())), plain),
    error("no weights to evaluate", "MODEL.WEIGHTS: set it to a checkpoint", flags("--eval-only")),
    error("missing weights", r"nowhere\.pth: checkpoint file does not exist", options("MODEL.WEIGHTS", "nowhere.pth")),
    error("folder as weights", r"folder contains no checkpoint", options("MODEL.WEIGHTS", "images")),
    error("truncated weights", r"weights\.pth: corrupt", file(lambda: saved(weights())[:5000])),
    error("zero-byte weights", r"weights\.pth: (corrupt|empty)", file(lambda: b"")),
    error("text as weights", r"weights\.pth: corrupt", file(lambda: b"version https://git-lfs.github.com/spec/v1\n")),
    error("JPEG as weights", r"weights\.pth: .*(image|corrupt)", file(lambda: encode(picture(), "JPEG"))),
    error(
        "weights that run code",
        r"weights\.pth: .*without running code",
        file(lambda: pickle.dumps({"model": _Command()})),
        not_executed,
    ),
    error(
        "archive of weights that run code",
        r"weights\.pth: .*without running code",
        file(lambda: saved({"model": _Command()})),
        not_executed,
    ),
    error("weights without tensors", r"weights\.pth: no weights found", file(lambda: saved({"model": {}, "epoch": 3}))),
    error(
        "weights of another model",
        r"weights\.pth: the keys .* do not match any supported detector",
        file(lambda: saved({"embedding.weight": torch.zeros(3)})),
    ),
    error(
        "weights of another architecture",
        r"weights\.pth.* does not match the architecture(.|\n)*MODEL\.DETR\.ALLOW_PARTIAL_WEIGHTS",
        file(lambda: saved(weights(2, ("MODEL.DETR.HIDDEN_DIM", 64)))),
    ),
    error("weights with NaN, evaluated", r"weights\.pth.*(NaN|not finite)", changed(nan, eval_only=True)),
    error("weights with NaN, trained", r"weights\.pth.*(NaN|not finite)", changed(nan)),
    accept(
        "weights of another number of classes",
        file(lambda: saved(weights(3))),
        plain,
        message="2 of 2 classes are loaded from the 3 logits of the file, matched by name",
    ),
    accept(
        "weights of another number of classes, evaluated",
        file(lambda: saved(weights(3)), eval_only=True),
        message=r"\b100\.00",
        ap=None,
    ),
    error(
        "weights without one of the classes, evaluated",
        r"weights\.pth.* lacks some of the model's classes",
        file(lambda: saved({**weights(), "class_names": ["red", "green"]}), eval_only=True),
    ),
]

RUNS = [
    accept("resumed run", resume(keep)),
    warn("truncated last checkpoint", r"(?i)corrupt.*model_000000[01]", resume(truncate)),
    error("truncated checkpoints", "has no earlier checkpoint", resume(truncate_all)),
    error(
        "empty pointer to the last checkpoint",
        "last_checkpoint is empty",
        resume(lambda output: (output / "last_checkpoint").write_text("")),
    ),
    error(
        "pointer to a missing checkpoint",
        "last_checkpoint names gone.pth|last_checkpoint names gone.ckpt",
        resume(lambda output: (output / "last_checkpoint").write_text("gone" + next(output.glob("model_0*")).suffix)),
    ),
    error(
        "resumed run with more classes",
        r"2 classes \(red, blue\).*3",
        resume(keep, later=add("categories", {"id": 9, "name": "green"})),
    ),
    error(
        "resumed run with exchanged class names",
        r"(?s)red, blue.*blue, red",
        resume(keep, later=entries("categories", name=lambda item: {"red": "blue", "blue": "red"}[item["name"]])),
    ),
    accept("resumed run with another learning rate", resume(keep, "SOLVER.BASE_LR", "5e-4"), has_rate(5e-4)),
    error(
        "resumed run with another optimizer", r"SOLVER\.OPTIMIZER|optimizer", resume(keep, "SOLVER.OPTIMIZER", "SGD")
    ),
    warn("resumed run that is finished", "No iterations are left", resume(keep, "SOLVER.MAX_ITER", "2")),
    error(
        "file as output folder",
        r"(?i)OUTPUT_DIR|not a (folder|directory)|file exists",
        lambda inputs: (inputs.folder / "output").write_text(""),
    ),
]
