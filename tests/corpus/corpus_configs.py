"""Rows of the corpus: config files, keys and flags."""

from typing import Any

from corpus_annotations import plain
from corpus_inputs import CONFIG, Case, Inputs, accept, error, flags, options


def key(name: str, value: object, message: str, policy: str = "error", title: str = "") -> Case:
    """Returns the row of a value that is out of its range, with a message that names the key."""
    pattern = name.replace(".", r"\.") + message
    return Case(title or f"{name} {value}", policy, pattern, options(name, value), plain if policy != "error" else None)


def config(text: str | bytes, name: str = "config.yaml") -> Any:
    """Returns a function that replaces the config file."""

    def change(inputs: Inputs) -> None:
        inputs.config = text

    return change


CONFIGS = [
    key("SOLVER.BASE_LR", "fast", ""),
    key("SOLVER.BASE_LR", 0.0, " must be"),
    error("SOLVER.BASE_LR nan", r"SOLVER\.BASE_LR must be", config(CONFIG.replace("1.0e-4", ".nan"))),
    key("SOLVER.MAX_ITER", "ten", ""),
    key("SOLVER.MAX_ITER", 1.5, ""),
    key("SOLVER.STEPS", 3, ""),
    key("SOLVER.STEPS", "(5,3)", " must be"),
    key("SOLVER.WARMUP_ITERS", 200, ".*SOLVER.MAX_ITER|SOLVER.MAX_ITER.*SOLVER.WARMUP_ITERS", "warn"),
    key("SOLVER.OPTIMIZER", "LION", " must be"),
    accept("SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0", options("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0), plain),
    key("MODEL.DETR.CLASS_WEIGHT", -2.0, " must be"),
    key("MODEL.DETR.NHEADS", 7, "|HIDDEN_DIM.*NHEADS"),
    key("MODEL.DETR.CLASS_LOSS", "hinge", " must be"),
    key("MODEL.DETR.IN_FEATURES", "['res9']", " must be"),
    key("MODEL.DEVICE", "tpu", " must be"),
    key("MODEL.BACKBONE.NAME", "build_nothing", " must be one of build_deformable_detr_"),
    key("MODEL.RESNETS.DEPTH", 42, " must be"),
    key("DATALOADER.SAMPLER_TRAIN", "Sorted", " must be"),
    key("INPUT.MAX_SIZE_TEST", -1, " must be"),
    key("INPUT.FORMAT", "HSV", " must be"),
    key("DATASETS.INVALID_BOXES", "keep", " must be"),
    key("DATASETS.TRAIN", "()", " is empty"),
    key(
        "DATASETS.TRAIN",
        "('corpus','corpus')",
        " must list each data set once",
        title="data set named twice",
    ),
    error("unknown data set", "nowhere", options("DATASETS.TRAIN", "('nowhere',)")),
    accept("DATASETS.TRAIN as a bare name", options("DATASETS.TRAIN", "corpus"), plain),
    accept("SOLVER.MAX_ITER=1", options("SOLVER.MAX_ITER=1"), plain),
    error("key without a value", r"SOLVER\.MAX_ITER", options("SOLVER.MAX_ITER")),
    error("unknown key", r"SOLVER\.MAX_ITERS.*did you mean SOLVER\.MAX_ITER", options("SOLVER.MAX_ITERS", 3)),
    error("unknown flag", "--max-iter", flags("--max-iter", "3")),
    error("flag after the options", r"--num-gpus must come before", options("SOLVER.MAX_ITER", 1, "--num-gpus", 1)),
    error(
        "no config file", r"config\.yaml.*(No such file|does not exist)", lambda inputs: setattr(inputs, "config", None)
    ),
    error("config that is not YAML", r"config\.yaml", config("MODEL: [1, 2\n")),
    error("config that is a list", r"config\.yaml contains no config sections", config("- 1\n- 2\n")),
    error("config that is empty", r"config\.yaml contains no config sections", config("")),
    error("LazyConfig as config file", "LazyConfigs are not supported", flags("--config-file", "lazy.py")),
    error("config with a section as a number", r"SOLVER", config(CONFIG + "SOLVER: 3\n")),
    error(
        "config with an unknown key",
        r"config\.yaml.*SOLVER\.LR.*did you mean|config\.yaml.*SOLVER\.LR",
        config(CONFIG.replace("BASE_LR", "LR")),
    ),
    error("--register with two values", r"--register", flags("--register", "more", "data.json")),
]
