"""mmdetection's whole configs, which are Python: those it writes beside its checkpoints, and into them.

They are read as data. Values, lists and ``dict(…)`` are understood; whatever would have to run is refused.
"""

import ast
from pathlib import Path
from typing import Any

from ..checkpoint.files import read_content
from ..errors import UserError
from .key_value import flatten
from .rows import NOT_THERE, Reading, Source


def read(source: Source, path: str) -> Reading:
    """A ``.py`` file with a whole config, or a checkpoint that has one; as far as it differs from the published ones.

    Raises:
        UserError: for a file with neither, and for a config that refers to others or runs code.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{path}: there is no such file")
    text = _text_of(file) if file.suffix == ".py" else _text_in(file)
    config = parse_config(text, path)
    if "_base_" in config:
        raise UserError(
            f"{path}: it refers to other files (_base_); name the whole one that mmdetection writes beside its "
            "checkpoints, or a published config with KEY=VALUE"
        )
    model = config.get("model")
    architecture = model.get("type") if isinstance(model, dict) else None
    presets = {"DETR": "detr_r50_8xb2-150e_coco", "DeformableDETR": "deformable-detr_r50_16xb2-50e_coco"}
    if not isinstance(architecture, str) or architecture not in presets:
        raise UserError(f"{path}: model.type {architecture!r} is neither DETR nor DeformableDETR")
    preset = presets[architecture]
    kind = source.presets[preset].model
    config.pop("work_dir", None)  # every run of theirs writes the one that it had
    options = flatten(source, config)
    return Reading({name: value for name, value in options if _differs(source, kind, name, value)}, preset)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no text that can be read ({error})") from error


def _text_in(path: Path) -> str:
    content = read_content(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    text = meta.get("cfg") if isinstance(meta, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{path}: no checkpoint with mmdetection's config (meta, cfg) in it")
    return text


def _differs(source: Source, model: str, name: str, value: Any) -> bool:
    """Whether a value is another than the published one, and so to be translated, warned of or refused."""
    row = source.row(name, model)
    if row is None:
        return True
    if not row.keys and not row.fixed and row.quiet:
        return False
    default = row.default(model)
    return default is NOT_THERE or _essence(value) != _essence(default)


def _essence(value: Any) -> Any:
    """Without the means by which files are read, which change nothing of what is in them."""
    if isinstance(value, dict):
        return {key: _essence(item) for key, item in value.items() if key != "backend_args"}
    return [_essence(item) for item in value] if isinstance(value, list | tuple) else value


def parse_config(text: str, name: str) -> dict[str, Any]:
    """The assignments of a Python config.

    Raises:
        UserError: naming the line that is more than a value.
    """
    try:
        return dict(_assigned(item) for item in ast.parse(text).body)
    except SyntaxError as error:
        raise UserError(
            f"{name}: line {error.lineno} is not a value: mmdetection's own dump of the config is"
        ) from error
    except (ValueError, RecursionError) as error:  # zero bytes; values within values
        raise UserError(f"{name}: no config that can be read ({error})") from error


def _assigned(item: ast.stmt) -> tuple[str, Any]:
    if not isinstance(item, ast.Assign) or len(item.targets) != 1 or not isinstance(item.targets[0], ast.Name):
        raise SyntaxError("no assignment", ("", item.lineno, 0, ""))
    return item.targets[0].id, _value(item.value)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {str(word.arg): _value(word.value) for word in node.keywords}
    if isinstance(node, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.keys):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        raise SyntaxError("no value", ("", node.lineno, 0, "")) from None
