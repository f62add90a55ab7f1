"""Finds the config files in ``configs/`` by name, in a checkout or an installed package."""

import difflib
import re
from pathlib import Path

from ..errors import UserError

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
        near = matches or difflib.get_close_matches(name, known, n=3)
        raise UserError(f"config {name!r} {problem}: choose one of {', '.join(near or known)}")
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
