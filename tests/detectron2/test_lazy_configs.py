"""LazyConfigs of all recipes: the same modules, optimizer, schedule and data as the YAML file."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier, build_lr_scheduler, build_optimizer

from projects_deformable_detr import model_zoo
from projects_deformable_detr.config.data import data_config
from projects_deformable_detr.config.training import optimizer_config
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.detectron2_plugin import DetrDatasetMapper, data
from projects_deformable_detr.detectron2_plugin.lazy import lazy_config
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.modeling.position_encoding import LearnedPositionEmbedding

# Attributes that are not settings: state of modules, and additions of Detectron2's registry to a backbone.
_NO_SETTING = {"training", "size_divisibility", "padding_constraints", "architecture"}
_PLAIN = (bool, int, float, str, tuple, list, dict, type(None))


def settings(module: torch.nn.Module) -> dict[str, Any]:
    """Returns the names of the types of all modules, and their attributes with plain values."""
    found = {}
    for path, part in module.named_modules():
        found[path] = type(part).__name__.removeprefix("Detectron2")  # the registry's subclasses of backbones
        for key, value in vars(part).items():
            if isinstance(value, _PLAIN) and not key.startswith("_") and key not in _NO_SETTING:
                found[f"{path}.{key}"] = plain(value)
    return found


def plain(value: Any) -> Any:
    """Converts sequences and mappings of any type to tuples."""
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
        criterion.classification,
        matcher.classification,
        (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou),
    )


def describe_augmentation(augmentation: Any) -> Any:
    """Returns the type and the constructor's arguments, recursively."""
    if isinstance(augmentation, (list, tuple)) or type(augmentation).__name__ == "ListConfig":
        return tuple(describe_augmentation(item) for item in augmentation)
    if not hasattr(augmentation, "get_transform"):
        return plain(augmentation)
    values = {key: describe_augmentation(value) for key, value in sorted(vars(augmentation).items())}
    return type(augmentation), values


@pytest.fixture(params=model_zoo.names())
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """(CfgNode, LazyConfig) of one recipe; the CfgNode as Detectron2's own scripts read it."""
    cfg, lazy = get_cfg(), model_zoo.get_config(request.param, lazy=True)
    cfg.merge_from_file(str(model_zoo.config_file(request.param)))
    num_classes = lazy.model.detector.config.num_classes
    assert cfg.MODEL.DETR.NUM_CLASSES in (0, num_classes)
    cfg.MODEL.DETR.NUM_CLASSES, cfg.MODEL.DEVICE = num_classes, "meta"
    return cfg, lazy


def test_model_and_training_equal_the_yaml(pair):
    cfg, lazy = pair
    with torch.device("meta"):  # no memory, no initialization
        expected, found = build_model(cfg), instantiate(lazy.model)
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (found, expected)]
    assert shapes[0] == shapes[1]
    assert settings(found) == settings(expected)
    assert describe_criterion(found.criterion) == describe_criterion(expected.criterion)
    assert found.load_options == expected.load_options
    for key in ("pixel_mean", "pixel_std"):
        assert list(lazy.model[key]) == list(cfg.MODEL[key.upper()])

    lazy.optimizer.params.model = found
    cfg.SOLVER.AMP.ENABLED = True  # disables the fused step, as in LazyConfigs
    optimizers = instantiate(lazy.optimizer), build_optimizer(cfg, expected)
    assert len({type(optimizer) for optimizer in optimizers}) == 1
    groups = []
    for model, optimizer in zip((found, expected), optimizers, strict=True):
        names = {id(value): name for name, value in model.named_parameters()}
        groups.append(
            [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
        )
    for left, right in zip(*groups, strict=True):
        assert left.pop("lr") == pytest.approx(right.pop("lr"))
        right.pop("initial_lr", None)
        assert left == right
    assert instantiate(lazy.optimizer.config) == optimizer_config(cfg)

    schedule, reference = instantiate(lazy.lr_multiplier), build_lr_scheduler(cfg, optimizers[1])._multiplier
    last = cfg.SOLVER.MAX_ITER
    drops = [step + offset for step in cfg.SOLVER.STEPS for offset in (-1, 0)]
    for step in (0, 1, 5, 11, 100, 199, 201, last // 2, last - 2, *drops):
        assert schedule(step / last) == pytest.approx(reference(step / last)), step


def test_data_equals_the_yaml(pair):
    cfg, lazy = pair
    loaders = lazy.dataloader
    found, expected = (replace(config, pin_memory=False) for config in (instantiate(loaders.config), data_config(cfg)))
    assert plain(asdict(found)) == plain(asdict(expected))
    for is_train, part in ((True, loaders.train), (False, loaders.test)):
        mappers = instantiate(part.mapper), DetrDatasetMapper(cfg, is_train)
        values = [{key: value for key, value in vars(mapper).items() if key != "augmentations"} for mapper in mappers]
        assert values[0] == values[1]
        left, right = ([describe_augmentation(item) for item in mapper.augmentations.augs] for mapper in mappers)
        assert left == right
    evaluator, train = loaders.evaluator, lazy.train
    assert (evaluator.dataset_name,) == tuple(cfg.DATASETS.TEST)
    assert train.seed == cfg.SEED
    assert (evaluator.has_masks, evaluator.is_panoptic) == (cfg.MODEL.MASK_ON, cfg.MODEL.DETR.PANOPTIC.ENABLED)
    assert evaluator.max_detections == cfg.TEST.DETECTIONS_PER_IMAGE
    assert (train.max_iter, train.eval_period) == (cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD)
    assert train.checkpointer.period == cfg.SOLVER.CHECKPOINT_PERIOD
    assert (train.init_checkpoint, train.output_dir) == (cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR)
    assert train.amp.enabled == cfg.SOLVER.AMP.ENABLED


@pytest.mark.parametrize("name", model_zoo.names())
def test_detectron2_get_cfg_reads_the_yaml(name):
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(name))
    assert cfg == model_zoo.get_config(name, engine="detectron2")


@pytest.mark.parametrize("path", sorted((model_zoo.config_folder() / "lazy").glob("*.py")), ids=lambda path: path.stem)
def test_lazy_files_load_and_can_be_saved(path, tmp_path):
    lazy = LazyConfig.load(str(path))
    assert set(lazy) == {"model", "dataloader", "optimizer", "lr_multiplier", "train"}
    with torch.device("meta"):
        instantiate(lazy.model)
    LazyConfig.save(lazy, str(tmp_path / "config.yaml"))
    assert LazyConfig.load(str(tmp_path / "config.yaml")).train == lazy.train


def test_documented_code_runs():
    text = (model_zoo.config_folder().parent / "docs" / "detectron2.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(block, {})


def test_a_lazy_file_equals_its_recipe():
    lazy = LazyConfig.load(str(model_zoo.config_folder() / "lazy" / "quickstart.py"))
    assert lazy == model_zoo.get_config("quickstart", lazy=True)


def test_overrides_reach_every_part():
    lazy = model_zoo.get_config("quickstart", lazy=True)
    lazy.model.detector.config.decoder_layers = 3
    options = ["model.detector.config.num_classes=3", "model.detector.config.d_model=64"]
    options += ["model.detector.config.two_stage=False", "model.detector.config.class_loss=softmax"]
    options += ["model.detector.config.num_queries=7"]
    options += ["optimizer.config.base_lr=0.5", "optimizer.config.backbone_multiplier=0.2"]
    options += ["dataloader.config.train=[coco_2017_train]", "dataloader.config.test=[coco_2017_val]"]
    lazy = LazyConfig.apply_overrides(lazy, options)
    model = instantiate(lazy.model)
    detector = model.detector
    assert len(detector.decoder.layers) == 3
    assert {head.out_features for head in detector.decoder.class_heads} == {4}
    assert detector.encoder.layers[0].norm.normalized_shape == (64,)
    assert model.criterion.classification.no_object
    assert len(model.load_options.class_names) == 80
    data = instantiate(lazy.dataloader.config)
    assert (data.max_objects, data.masks) == (7, False)
    assert lazy.dataloader.evaluator.dataset_name == "coco_2017_val"
    lazy.optimizer.params.model = model
    rates = {group["name"]: group["lr"] for group in instantiate(lazy.optimizer).param_groups}
    assert rates == {"rest": 0.5, "backbone": 0.1, "sampling": 0.15}


def test_the_schedule_is_relative_to_the_length_of_the_training():
    lazy = model_zoo.get_config("deformable_detr_r50", lazy=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = LRMultiplier(optimizer, instantiate(lazy.lr_multiplier), max_iter=50)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:40] + rates[41:] == pytest.approx([1.0] * 40 + [0.1] * 9)


@pytest.mark.parametrize("is_file", [True, False])
def test_loaders_use_the_records_of_the_project(coco_files, is_file, tmp_path):
    name, path = f"lazy_{is_file}", tmp_path / "invalid_box.json"
    content = json.loads(Path(coco_files[0]).read_text())
    content["annotations"][0]["bbox"][2] = 0.0
    path.write_text(json.dumps(content))
    data.register(name, str(path), coco_files[1])
    if not is_file:  # a function of the user
        records = DatasetCatalog.get(name)
        DatasetCatalog.remove(name)
        DatasetCatalog.register(name, lambda: records)
    lazy = model_zoo.get_config("quickstart", lazy=True)
    options = [f"dataloader.config.{part}=[{name}]" for part in ("train", "test")]
    options += ["dataloader.config.batch_size=2", "dataloader.config.num_workers=0"]
    lazy = LazyConfig.apply_overrides(lazy, options).dataloader
    if is_file:
        with pytest.raises(DatasetError, match="box"):
            instantiate(lazy.train)
    lazy.config.invalid_boxes = "drop"
    lazy.config.sampler.name, lazy.config.sampler.repeat_threshold = "RepeatFactorTrainingSampler", 1.0
    batch = next(iter(instantiate(lazy.train)))
    assert len(batch) == 2 and all("instances" in record for record in batch)
    loader = instantiate(lazy.test)
    assert [record["image_id"] for records in loader for record in records] == list(range(1, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SOLVER.EMA.ENABLED", True], "SOLVER.EMA.ENABLED"),
        (["TEST.AUG.ENABLED", True], "TEST.AUG.ENABLED"),
        (["DATASETS.TEST", ("shapes_val", "coco_2017_val")], "DATASETS.TEST"),
        (["DATALOADER.SAMPLER_TRAIN", "RandomSubsetTrainingSampler"], "DATALOADER.SAMPLER_TRAIN .* set it to one of"),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR"], "SOLVER.LR_SCHEDULER_NAME must be"),
        (["MODEL.BACKBONE.NAME", "build_resnet_backbone"], "set model.detector.backbone"),
    ],
)
def test_keys_without_a_lazy_form_are_rejected(options, message):
    cfg = model_zoo.get_config("deformable_detr_r50", engine="detectron2")
    cfg.merge_from_list(["MODEL.DETR.NUM_CLASSES", 80, *options])
    with pytest.raises(UserError, match=message):
        lazy_config(cfg)


def test_other_keys_have_a_lazy_form():
    cfg = model_zoo.get_config("detr_r50_500ep", engine="detectron2")
    cfg.MODEL.DETR.POSITION_EMBEDDING, cfg.SOLVER.CLIP_GRADIENTS.ENABLED = "learned", False
    cfg.DATASETS.TRAIN = ("coco_2017_train", "coco_2017_val")
    cfg.MODEL.DETR.NUM_CLASSES = 80
    lazy = lazy_config(cfg)
    assert lazy.optimizer.config.clip is None
    assert list(lazy.dataloader.config.train) == list(cfg.DATASETS.TRAIN)
    with torch.device("meta"):
        model = instantiate(lazy.model)
    assert type(model.detector.tokenizer.position_embedding) is LearnedPositionEmbedding
    assert len(model.load_options.class_names) == 80
