"""Detectron2's config, builders and trainer: patched for the project's models, unchanged for others."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

import detectron2.data.build as data_build
import detectron2.engine.defaults as engine_defaults
import detectron2.solver as solver
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultTrainer
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNNWithTTA, build_model
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from projects_deformable_detr.detectron2_plugin import DeformableDETR, DetrDatasetMapper, config, patches
from projects_deformable_detr.errors import UserError

_UNTOUCHED = """
from detectron2.config import get_cfg
before = get_cfg()
from detectron2.solver import build_optimizer as early
import projects_deformable_detr
from detectron2.solver import build_optimizer as late
after = get_cfg()
def leaves(node, prefix=""):
    for key, value in node.items():
        yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
old, new = dict(leaves(before)), dict(leaves(after))
assert old == {key: new[key] for key in old}, "a default changed"
print(len(new) > len(old), early is late, late.__wrapped__ is early)
"""


def test_defaults_of_detectron2_do_not_change(python):
    result = python("-c", _UNTOUCHED)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["True", "False", "True"]


def test_installing_again_changes_nothing():
    cfg, function = get_cfg(), solver.build_optimizer
    config.extend_defaults()
    patches.install()
    assert get_cfg() == cfg
    assert solver.build_optimizer is function is engine_defaults.build_optimizer


@pytest.fixture
def originals():
    """Attributes before the patches, which are installed again afterwards."""
    patches.uninstall()
    yield lambda: {
        patch.name: [getattr(owner, attribute) for owner, attribute in patch.targets]
        for patch in patches.PATCHES
        if not patch.in_context
    }
    patches.uninstall()
    patches.install()


@pytest.mark.parametrize("disabled", ["mapper", "optimizer, tta", "all", ""])
def test_patches_can_be_disabled_and_undone(originals, monkeypatch, disabled):
    before = originals()
    monkeypatch.setenv(patches.DISABLE, disabled)
    patches.install()
    installed = {name for name, values in originals().items() if values != before[name]}
    names = set(before) if disabled == "all" else set(disabled.split(", "))
    assert installed == set(before) - names
    patches.uninstall()
    assert originals() == before


def test_patched_classes_are_constructed_after_uninstall(originals, make_cfg):
    patches.install()
    patches.uninstall()
    assert type(DetectionCheckpointer(nn.Linear(1, 1))) is DetectionCheckpointer
    with pytest.raises(AssertionError, match="GeneralizedRCNN"):  # raised by the original constructor
        GeneralizedRCNNWithTTA(make_cfg(), nn.Linear(1, 1))


def test_sizes_are_accepted_by_keyword():
    size = ResizeShortestEdge.get_output_shape(oldh=10_000, oldw=1, short_edge_length=8, max_size=16)
    assert size == (16, 1)


def test_an_unknown_patch_is_named(originals):
    with pytest.raises(UserError, match=r"must name optimizer, mapper, .* or all, got loader"):
        patches.install("loader,mapper")


class Wrapper(nn.Module):
    """Replaces a distributed or compiled model."""

    def __init__(self, inner):
        super().__init__()
        self.module = inner


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapper])
def test_models_of_the_project_use_the_optimizer_of_the_paper(make_cfg, wrap):
    model = wrap(build_model(make_cfg()))
    optimizer = DefaultTrainer.build_optimizer(make_cfg(), model)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["name"] for group in optimizer.param_groups} == {"backbone", "rest", "sampling"}


def test_optimizer_clips_the_whole_model_in_its_step(make_cfg):
    model = build_model(make_cfg())
    optimizer = solver.build_optimizer(make_cfg(), model)
    for value in model.parameters():
        value.grad = torch.ones_like(value)
    optimizer.step()
    norm = torch.stack([value.grad.norm() for value in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.1, rel=1e-3)


def test_other_models_use_the_optimizer_of_detectron2(make_cfg):
    model, cfg = nn.Linear(2, 2), make_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    optimizer = DefaultTrainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.SGD)
    assert (
        type(optimizer).__name__ == type(maybe_add_gradient_clipping(cfg, torch.optim.SGD(model.parameters()))).__name__
    )
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    with pytest.raises(ValueError, match="full_model"):  # as imported before the project
        solver.build_optimizer.__wrapped__(cfg, build_model(make_cfg()))


def test_default_mapper_of_loaders(make_cfg):
    cfg = make_cfg()
    own = data_build._train_loader_from_config(cfg)["mapper"]
    assert type(own) is DetrDatasetMapper and own.is_train
    assert not data_build._test_loader_from_config(cfg, cfg.DATASETS.TEST[0])["mapper"].is_train
    given = DatasetMapper(cfg, True)
    assert type(given) is DatasetMapper
    assert data_build._train_loader_from_config(cfg, mapper=given)["mapper"] is given
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    assert type(data_build._train_loader_from_config(cfg)["mapper"]) is DatasetMapper
    cfg.MODEL.META_ARCHITECTURE = "not registered"
    assert type(data_build._train_loader_from_config(cfg)["mapper"]) is DatasetMapper


def test_user_subclasses_of_the_mapper_are_unchanged(make_cfg):
    class Own(data_build.DatasetMapper):
        pass

    assert type(Own(make_cfg(), True)) is Own


def test_a_registered_subclass_is_a_model_of_the_project(make_cfg):
    cfg = make_cfg()
    if "OwnDeformableDETR" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(type("OwnDeformableDETR", (DeformableDETR,), {}))
    cfg.MODEL.META_ARCHITECTURE = "OwnDeformableDETR"
    assert patches.selects_project_model(cfg) and patches.contains_project_model(build_model(cfg))


def test_default_trainer_trains_resumes_and_predicts(make_cfg):
    """``DefaultTrainer`` itself is used, with the config of Detectron2's ``get_cfg``."""
    cfg = make_cfg(SOLVER__MAX_ITER=4, SOLVER__CHECKPOINT_PERIOD=2)
    assert set(get_cfg().MODEL.DETR) == set(cfg.MODEL.DETR) and isinstance(cfg, CfgNode)
    Path(cfg.OUTPUT_DIR).mkdir()
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    cfg.SOLVER.MAX_ITER = 6
    resumed = DefaultTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_iter == 4
    saved, loaded = trainer.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    states = resumed.optimizer.state_dict()["state"]
    assert {int(state["step"]) for state in states.values()} == {4}
