"""Replaces the deformable attention in the models of Hugging Face transformers.

    import ms_deform_attn.integrations.transformers as integration

    integration.enable()   # all models, including existing ones
    integration.disable()

The kernel mapping of transformers is not used, because it supports neither the CPU nor the functions of Mask2Former,
OneFormer, RT-DETRv2, D-FINE and DEIMv2.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..functional import ms_deform_attn
from ..levels import Sizes, level_sizes

_CLASS, _FUNCTION, _FUNCTION_V2 = (
    "MultiScaleDeformableAttention",
    "multi_scale_deformable_attention",
    "multi_scale_deformable_attention_v2",
)
_DEFINITION = re.compile(rf"^(?:class {_CLASS}\b|def {_FUNCTION}(?:_v2)?\()", re.MULTILINE)
_FUNCTION_PARAMETERS = ("value", "value_spatial_shapes", "sampling_locations", "attention_weights")
# Parameters of the known interfaces.
_PARAMETERS = {
    _CLASS: (
        *("self", "value", "value_spatial_shapes", "value_spatial_shapes_list", "level_start_index"),
        *("sampling_locations", "attention_weights", "im2col_step"),
    ),
    _FUNCTION: _FUNCTION_PARAMETERS,
    _FUNCTION_V2: (*_FUNCTION_PARAMETERS, "num_points_list", "method"),
}
# D-FINE and DEIMv2 store the function in each module under this name.
_STORED = "ms_deformable_attn_core"
_MISSING = object()
_originals: dict[tuple[Any, str], Any] = {}


def find_models() -> list[str]:
    """Returns the sorted names of the models in the installed transformers that have this attention.

    Raises:
        ImportError: If transformers is not installed.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise ImportError("ms_deform_attn.integrations.transformers: transformers is not installed")
    files = Path(spec.origin).with_name("models").glob("*/modeling_*.py")
    return sorted({path.parent.name for path in files if _DEFINITION.search(path.read_text(encoding="utf-8"))})


def enable(*models: str) -> list[str]:
    """Replaces the attention with the operator, also in existing models. Idempotent.

    Args:
        models: names such as ``"deformable_detr"``; by default all of `find_models`.

    Returns:
        The names of the models.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: For the name of a model without this attention.
        RuntimeError: If this version of transformers has another interface; nothing is replaced then.
    """
    found = find_models()
    if unknown := set(models) - set(found):
        raise ValueError(f"models must be among {', '.join(found)}, got {', '.join(sorted(unknown))}")
    names = sorted(models) or found
    replacements = [item for name in names for item in _replacements(name)]
    for owner, attribute, replacement in replacements:
        if (owner, attribute) not in _originals:
            _originals[owner, attribute] = vars(owner).get(attribute, _MISSING)
            setattr(owner, attribute, replacement)
    return names


def disable() -> None:
    """Restores the attention of transformers in all models. Idempotent."""
    for (owner, attribute), original in _originals.items():
        if original is _MISSING:
            delattr(owner, attribute)
        else:
            setattr(owner, attribute, original)
    _originals.clear()


def _replacements(model: str) -> Iterator[tuple[Any, str, Any]]:
    """Yields the object, attribute and new value of each replacement in a model's module."""
    module = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    for name, parameters in _PARAMETERS.items():
        original = _original(module, name)
        if original is None:
            continue
        given = tuple(inspect.signature(original).parameters)
        if given != parameters:
            version = importlib.metadata.version("transformers")
            raise RuntimeError(
                f"ms_deform_attn: transformers {version} is not supported: {module.__name__}.{name} must have the "
                f"parameters {parameters}, got {given}"
            )
        if name == _CLASS:
            yield getattr(module, name), "forward", _forward
        elif name == _FUNCTION:
            yield module, name, _function
        else:
            replacement = _make_function_v2(original)
            yield module, name, replacement
            for value in list(vars(module).values()):
                if (
                    inspect.isclass(value)
                    and _STORED in getattr(value.__init__, "__code__", _forward.__code__).co_names
                ):
                    yield value, _STORED, _stored(original, replacement)


def _original(module: ModuleType, name: str) -> Callable[..., Any] | None:
    """Returns a function of the module, or the forward of a class, without replacement; None if there is none."""
    owner, attribute = (getattr(module, name, None), "forward") if name == _CLASS else (module, name)
    original: Callable[..., Any] | None = _originals.get((owner, attribute), getattr(owner, attribute, None))
    return original


def _forward(
    self: Any,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sizes,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    return _function(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _function(
    value: Tensor, value_spatial_shapes: Tensor | Sizes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    weights = attention_weights.reshape(sampling_locations.shape[:-1])
    return ms_deform_attn(value, value_spatial_shapes, None, sampling_locations, weights)


def _make_function_v2(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def function_v2(
        value: Tensor,
        value_spatial_shapes: Tensor | Sizes,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        num_points_list: Sequence[int],
        method: str = "default",
    ) -> Tensor:
        if method != "default":  # "discrete" samples the nearest pixel
            return original(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
        if len(set(num_points_list)) == 1:
            split = (len(num_points_list), num_points_list[0])
            points = sampling_locations.unflatten(3, split)
            return ms_deform_attn(value, value_spatial_shapes, None, points, attention_weights.unflatten(3, split))
        # The operator has the same number of points on all levels; results of single levels are added.
        sizes = level_sizes(value_spatial_shapes)
        rows = value.split([height * width for height, width in sizes], dim=1)
        points = sampling_locations.split(num_points_list, dim=3)
        weights = attention_weights.split(num_points_list, dim=3)
        levels = zip(rows, sizes, points, weights, strict=True)
        outputs = [ms_deform_attn(v, [size], None, p[:, :, :, None], w[:, :, :, None]) for v, size, p, w in levels]
        return torch.stack(outputs).sum(0)

    return function_v2


def _stored(original: Callable[..., Tensor], replacement: Callable[..., Tensor]) -> property:
    """Property that takes precedence over the function stored in a module, and keeps the original for `disable`."""

    def store(module: Any, function: Callable[..., Tensor]) -> None:
        module.__dict__[_STORED] = original if function is replacement else function

    return property(lambda module: replacement, store)
