"""The configs of ``configs/`` by name, wherever the project is installed, and their models.

A name is that of the file without its ending, such as ``deformable_detr_r50_two_stage_50ep`` or
``ablations/backbone_dcn``. The schedule at its end may be left out where that leaves one config.
"""

import re
from pathlib import Path
from typing import Any

from torch import nn

from .config import get_cfg
from .engine import choose_engine, is_installed
from .errors import UserError
from .modeling import build_detector
from .shapes.scene import CATEGORIES, CLASS_NAMES

_PACKAGED = Path(__file__).with_name("configs")  # in an installed package; a checkout has them beside it
_CHECKOUT = Path(__file__).resolve().parents[1] / "configs"
# Of the configs' data sets, whose files need not be there.
_NUM_CLASSES = {
    "coco_2017_train": 80,
    "coco_2017_train_panoptic": 133,
    "lvis_v1_train": 1203,
    "shapes_train": len(CLASS_NAMES),
    "shapes_train_panoptic": len(CATEGORIES),
}
_SCHEDULE = re.compile(r"_\d+ep$")


def config_folder() -> Path:
    """Where the configs are.

    Raises:
        UserError: if the installation has none.
    """
    for folder in (_PACKAGED, _CHECKOUT):
        if (folder / "Base-DeformableDETR.yaml").is_file():
            return folder
    raise UserError(f"no configs in {_PACKAGED}, nor in {_CHECKOUT}: install the project again")


def names() -> list[str]:
    """Names of all configs, sorted."""
    folder = config_folder()
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("Base-"))


def config_file(name: str, *, lazy: bool = False) -> Path:
    """The YAML file of a config, or with ``lazy`` its LazyConfig file.

    Raises:
        UserError: for a name that is not known, or stands for several; it lists those that are.
    """
    known = names()
    fitting = [name] if name in known else [each for each in known if _SCHEDULE.sub("", each) == name]
    if len(fitting) != 1:
        problem = "stands for several configs" if fitting else "is not known"
        raise UserError(f"config {name!r} {problem}: choose one of {', '.join(fitting or known)}")
    folder = config_folder()
    return folder / "lazy" / f"{fitting[0]}.py" if lazy else folder / f"{fitting[0]}.yaml"


def get_config_file(name: str) -> str:
    """The path of a config, under the name that Detectron2's model zoo has for the function; ``.yaml`` may follow."""
    return str(config_file(name.removesuffix(".yaml")))


def get_config(name: str, *, lazy: bool = False, engine: str = "auto") -> Any:
    """A config: a ``CfgNode`` of the engine, or with ``lazy`` a LazyConfig, which needs Detectron2.

    Raises:
        UserError: as `config_file`; for a LazyConfig where Detectron2 is not installed.
    """
    path = config_file(name, lazy=lazy)
    if not lazy:
        cfg = get_cfg(engine)
        cfg.merge_from_file(str(path))
        return cfg
    if not is_installed("detectron2"):
        raise UserError("a LazyConfig needs Detectron2, which is not installed: leave lazy out")
    from .detectron2_plugin.zoo import load

    return load(path)


def get(name: str, *, num_classes: int | None = None, device: str = "cpu", engine: str = "auto") -> nn.Module:
    """A config's model with its initial weights; ``MODEL.WEIGHTS`` is not loaded.

    Args:
        name: of the config.
        num_classes: of the data set that it is for; by default those of the config's own data set.
        device: where to put it.
        engine: ``"detectron2"``, ``"standalone"``, or ``"auto"`` for Detectron2 where it is importable.

    Returns:
        With Detectron2 its meta-architecture, as ``build_model`` gives it; else the `Detector` alone.

    Raises:
        UserError: as `config_file`.
    """
    cfg = get_config(name, engine=engine)
    cfg.MODEL.DETR.NUM_CLASSES = num_classes or _NUM_CLASSES[cfg.DATASETS.TRAIN[0]]
    if choose_engine(engine).name == "standalone":
        return build_detector(cfg).to(device)
    from .detectron2_plugin.zoo import build

    cfg.MODEL.DEVICE = device
    return build(cfg)
