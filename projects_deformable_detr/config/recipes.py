"""Finds the config files in ``configs/`` by name, in a checkout or an installed package."""

import re
from pathlib import Path

from fvcore.common.config import CfgNode

from ..errors import UserError, did_you_mean

_PACKAGED = Path(__file__).resolve().parents[1] / "configs"  # in an installed package
_CHECKOUT = Path(__file__).resolve().parents[2] / "configs"
_SCHEDULE = re.compile(r"_\d+ep$")


def config_folder() -> Path:
    """Returns the folder of the recipes; raises `UserError` if the installation has none."""
    for folder in (_PACKAGED, _CHECKOUT):
        if (folder / "Base-DeformableDETR.yaml").is_file():
            return folder
    raise UserError(f"no configs in {_PACKAGED} or {_CHECKOUT}: reinstall the project")


def names() -> list[str]:
    """Returns the sorted names of all recipes."""
    folder = config_folder()
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(name for name in found if not name.rpartition("/")[2].startswith("Base-"))


def config_file(name: str) -> Path:
    """Returns the YAML file of a recipe.

    Raises:
        UserError: if the name does not match exactly one recipe; the message lists the candidates.
    """
    known = names()
    matches = [name] if name in known else [recipe for recipe in known if _SCHEDULE.sub("", recipe) == name]
    if len(matches) != 1:
        problem = "matches several recipes" if matches else "is unknown"
        hint = "" if matches else did_you_mean(name, known, 3)
        raise UserError(f"config {name!r} {problem}{hint or ': choose one of ' + ', '.join(matches or known)}")
    return config_folder() / f"{matches[0]}.yaml"


def find_config(text: str) -> str:
    """Returns the path of a config file.

    Args:
        text: path of a file, or, if there is no such file, the name of a recipe with or without ``.yaml``.

    Raises:
        UserError: for a name that is not a path and does not match exactly one recipe.
    """
    name = text.removesuffix(".yaml")
    if not text or Path(text).is_file() or (name not in names() and text.endswith((".yaml", ".yml", ".py"))):
        return text
    return str(config_file(name))


def set_num_classes(cfg: CfgNode, num_classes: int | None = None) -> None:
    """Sets ``MODEL.DETR.NUM_CLASSES``; the default is that of the recipe's data set, which need not exist."""
    from ..shapes.scene import CATEGORIES, CLASS_NAMES  # imports OpenCV

    known = {
        "coco_2017_train": 80,
        "coco_2017_train_panoptic": 133,
        "lvis_v1_train": 1203,
        "shapes_train": len(CLASS_NAMES),
        "shapes_train_panoptic": len(CATEGORIES),
    }
    cfg.MODEL.DETR.NUM_CLASSES = num_classes or known[cfg.DATASETS.TRAIN[0]]
