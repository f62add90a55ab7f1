"""Every LazyConfig says what the YAML file of its name says: the same modules, recipe and data."""

from typing import Any

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer

from projects_deformable_detr import add_deformable_detr_config, model_zoo
from projects_deformable_detr.detectron2_plugin import DetrDatasetMapper
from projects_deformable_detr.training.optimizer import GradientClip

# What Detectron2's registry adds to a backbone, and what modules keep without its being a setting.
_NO_SETTING = {"training", "size_divisibility", "padding_constraints", "architecture"}
_PLAIN = (bool, int, float, str, tuple, list, dict, type(None))


def read_yaml(name: str) -> Any:
    """The config as Detectron2's own scripts read it."""
    cfg = get_cfg()
    cfg.merge_from_file(str(model_zoo.config_file(name)))
    return cfg


def settings(module: torch.nn.Module) -> dict[str, Any]:
    """Types of all modules, with their attributes that are plain values."""
    found = {}
    for path, part in module.named_modules():
        found[path] = type(part)
        for key, value in vars(part).items():
            if isinstance(value, _PLAIN) and not key.startswith("_") and key not in _NO_SETTING:
                found[f"{path}.{key}"] = plain(value)
    return found


def plain(value: Any) -> Any:
    """Sequences and mappings of any kind as tuples."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return tuple((key, plain(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)) or type(value).__name__ == "ListConfig":
        return tuple(map(plain, value))
    return value


def describe_criterion(criterion: Any) -> Any:
    matcher = criterion.matcher
    return (
        plain(criterion.weights),
        criterion.deep_supervision,
        criterion.masks,
        matcher.classification,
        (matcher.class_weight, matcher.l1_weight, matcher.giou_weight),
    )


def describe_augmentation(augmentation: Any) -> Any:
    """Its constructor's arguments, those of the ones within included."""
    if isinstance(augmentation, (list, tuple)) or type(augmentation).__name__ == "ListConfig":
        return tuple(describe_augmentation(item) for item in augmentation)
    if not hasattr(augmentation, "get_transform"):
        return plain(augmentation)
    values = {key: describe_augmentation(value) for key, value in sorted(vars(augmentation).items())}
    return type(augmentation), values


@pytest.fixture(params=model_zoo.names())
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(CfgNode, LazyConfig) of one name; the number of classes is the lazy one's, which it has to say."""
    cfg, lazy = read_yaml(request.param), model_zoo.get_config(request.param, lazy=True)
    decoder = lazy.model.detector.decoder
    head = decoder if decoder is not None else lazy.model.detector.queries.class_head
    expected = cfg.MODEL.DETR.NUM_CLASSES or model_zoo._NUM_CLASSES[cfg.DATASETS.TRAIN[0]]
    assert head.num_classes == expected
    cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DEVICE = expected, "meta"
    return cfg, lazy


def test_lazy_and_yaml_build_one_model_and_recipe(pair):
    cfg, lazy = pair
    with torch.device("meta"):  # shapes without memory, and no time spent on initial weights
        expected, found = build_model(cfg), instantiate(lazy.model)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (found, expected)]
    assert shapes[0] == shapes[1]
    theirs, ours = settings(expected), settings(found)
    for model, values in ((expected, theirs), (found, ours)):
        values[".things"] = list(values[".things"]) or list(range(cfg.MODEL.DETR.NUM_CLASSES))  # (): all are things
        assert model.pixel_mean.shape == (3, 1, 1)
    assert ours == theirs
    assert describe_criterion(found.criterion) == describe_criterion(expected.criterion)
    assert found.load_options == expected.load_options
    for key in ("pixel_mean", "pixel_std"):
        assert list(lazy.model[key]) == list(cfg.MODEL[key.upper()])

    lazy.optimizer.params.model = found
    cfg.SOLVER.AMP.ENABLED = True  # the fused step does not work without memory
    optimizers = instantiate(lazy.optimizer), build_optimizer(cfg, expected)
    assert len({type(optimizer) for optimizer in optimizers}) == 1
    groups = []
    for model, optimizer in zip((found, expected), optimizers, strict=True):
        names = {id(value): name for name, value in model.named_parameters()}
        groups.append(
            [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
        )
    for ours, theirs in zip(*groups, strict=True):
        assert ours.pop("lr") == pytest.approx(theirs.pop("lr"))
        theirs.pop("initial_lr", None)
        assert ours == theirs
    assert instantiate(lazy.optimizer.clip) == GradientClip.of(cfg)

    schedule, reference = instantiate(lazy.lr_multiplier), build_lr_scheduler(cfg, optimizers[1])._multiplier
    last = cfg.SOLVER.MAX_ITER
    for step in {
        0,
        1,
        5,
        11,
        100,
        199,
        201,
        last // 2,
        last - 2,
        *cfg.SOLVER.STEPS,
        *(s - 1 for s in cfg.SOLVER.STEPS),
    }:
        assert schedule(step / last) == pytest.approx(reference(step / last)), step


def test_lazy_and_yaml_read_one_data_set_in_one_way(pair):
    cfg, lazy = pair
    loaders = lazy.dataloader
    assert (loaders.train.dataset.names,) == tuple(cfg.DATASETS.TRAIN)
    assert (loaders.test.dataset.names,) == tuple(cfg.DATASETS.TEST)
    assert loaders.train.dataset.filter_empty == cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert loaders.train.total_batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert loaders.train.num_workers == loaders.test.num_workers == cfg.DATALOADER.NUM_WORKERS
    for is_train, part in ((True, loaders.train), (False, loaders.test)):
        mappers = instantiate(part.mapper), DetrDatasetMapper(cfg, is_train)
        values = [{key: value for key, value in vars(mapper).items() if key != "augmentations"} for mapper in mappers]
        assert values[0] == values[1]
        ours, theirs = ([describe_augmentation(item) for item in mapper.augmentations.augs] for mapper in mappers)
        assert ours == theirs
    train = lazy.train
    assert (train.max_iter, train.eval_period) == (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD)
    assert train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    assert (train.init_checkpoint, train.output_dir) == (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR)
    assert train.amp.enabled == cfg.SOLVER.AMP.ENABLED


@pytest.mark.parametrize("name", model_zoo.names())
def test_detectron2s_get_cfg_reads_the_yaml_as_ours_does(name):
    cfg = get_cfg()
    add_deformable_detr_config(cfg)
    cfg.merge_from_file(str(model_zoo.config_file(name)))
    assert read_yaml(name) == cfg


def test_every_lazy_file_has_a_yaml_file():
    folder = model_zoo.config_folder() / "lazy"
    files = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py")}
    assert {name for name in files if name.partition("/")[0] not in ("common", "models")} == set(model_zoo.names())


def test_command_line_overrides_reach_every_part():
    lazy = model_zoo.get_config("quickstart", lazy=True)
    options = ["model.detector.decoder.num_classes=3", "model.detector.tokenizer.channels=64", "optimizer.lr=0.5"]
    lazy = LazyConfig.apply_overrides(lazy, options)
    model = instantiate(lazy.model)
    assert model.detector.queries.class_head.out_features == 3
    assert {head.out_features for head in model.detector.decoder.class_heads} == {3}
    assert model.detector.encoder.layers[0].norm.normalized_shape == (64,)
    lazy.optimizer.params.model = model
    rates = {group["name"]: group["lr"] for group in instantiate(lazy.optimizer).param_groups}
    assert rates["rest"] == 0.5
