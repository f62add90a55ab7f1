"""Access to the recipes in ``configs/``, their models, and published weights by name.

The name of a recipe is the path of a YAML file in ``configs/`` without suffix, such as
``deformable_detr_r50_two_stage_50ep`` or ``ablations/backbone_dcn``. The schedule at the end (``_50ep``) may be omitted
if the rest of the name is unique.

`published_weights` returns all published weights. ``zoo://NAME`` is accepted wherever a weights file is, and
`download` returns the path of the file.
"""

from typing import Any

from torch import nn

from .checkpoint import load_weights
from .config import build_detector, get_cfg
from .config.model import detector_config
from .config.recipes import config_file, config_folder, names, set_num_classes
from .engine import choose_engine, is_installed
from .errors import UserError
from .zoo import ENTRIES, Entry, download

__all__ = [
    "config_file",
    "config_folder",
    "download",
    "get",
    "get_config",
    "get_config_file",
    "names",
    "published_weights",
]


def published_weights() -> dict[str, Entry]:
    """Returns the published weights by name: config, source, license, class names and results."""
    return dict(ENTRIES)


def get_config_file(name: str) -> str:
    """Returns the path of a recipe; a drop-in replacement for Detectron2's ``model_zoo.get_config_file``."""
    return str(config_file(name.removesuffix(".yaml")))


def get_config(name: str, *, lazy: bool = False, engine: str = "auto") -> Any:
    """Returns the config of a recipe.

    Args:
        name: name of the recipe.
        lazy: whether to return a LazyConfig instead of a ``CfgNode``; requires Detectron2.
        engine: ``"detectron2"``, ``"standalone"``, or ``"auto"`` (Detectron2 if installed); ignored if ``lazy``.

    Raises:
        UserError: as in `config_file`; or if ``lazy`` is set and Detectron2 is not installed.
    """
    if lazy and not is_installed("detectron2"):
        raise UserError("lazy must be False: a LazyConfig requires Detectron2, which is not installed")
    cfg = get_cfg("detectron2" if lazy else engine)
    cfg.merge_from_file(str(config_file(name)))
    if not lazy:
        return cfg
    from .detectron2_plugin.lazy import lazy_config

    set_num_classes(cfg)
    return lazy_config(cfg)


def get(
    name: str, *, num_classes: int | None = None, device: str = "cpu", engine: str = "auto", weights: str = ""
) -> nn.Module:
    """Builds the model of a recipe; ``MODEL.WEIGHTS`` is not loaded.

    Args:
        name: name of the recipe.
        num_classes: number of classes. Default: that of the recipe's data set.
        device: device of the model.
        engine: ``"detectron2"``, ``"standalone"``, or ``"auto"`` (Detectron2 if installed).
        weights: file, ``zoo://NAME`` or ``torchvision://NAME`` to load, see `load_weights`; empty: random weights.

    Returns:
        The meta-architecture for Detectron2, or the `modeling.Detector` for the standalone engine.
    """
    cfg = get_config(name, engine=engine)
    set_num_classes(cfg, num_classes)
    if choose_engine(engine).name == "standalone":
        return build_detector(cfg, weights=weights).to(device)
    from . import detectron2_plugin

    model: Any = getattr(detectron2_plugin, detector_config(cfg).architecture)(cfg)
    if weights:
        load_weights(model.detector, weights, model.load_options)
    moved: nn.Module = model.to(device)
    return moved
