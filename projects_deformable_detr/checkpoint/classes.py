"""Maps the class heads of a file to the classes of the model.

The first applicable rule is used (see docs/checkpoints.md):

1. With ``keep_logits``, the head is loaded unchanged and must have the same number of logits as the model.
2. If the class names of the file and the model are available, classes are matched by name; classes that the file lacks
   keep their initial weights.
3. Otherwise, the head is loaded unchanged if the numbers of logits are equal, and keeps its initial weights if not.

Softmax heads are not loaded into sigmoid heads or vice versa.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..zoo import coco_classes
from .formats.base import Format, Names, State
from .formats.detector import CLASS_HEAD

_PROPOSALS = "queries.class_head."


@dataclass(frozen=True)
class ClassHead:
    """Describes the logits of a class head.

    Attributes:
        names: name of each class, None for unused logits; None if the names are unknown.
        no_object: whether the last logit is "no object".
    """

    names: Names | None
    no_object: bool


@dataclass(frozen=True)
class ClassReport:
    """Result of fitting class heads.

    Attributes:
        action: ``"kept"``, ``"mapped"``, ``"new"`` (initial weights), or ``"none"`` without class heads.
        message: description for the log.
        new: names of the classes that keep their initial weights; indices if the names are unknown.
    """

    action: str
    message: str = ""
    new: tuple[str, ...] = ()


def count_logits(state: State) -> int:
    """Returns the number of logits of a detector's class heads, or 0 without class heads."""
    return next((len(value) for key, value in state.items() if CLASS_HEAD.fullmatch(key)), 0)


def class_names_of(format: Format, count: int, stored: Sequence[str] | None) -> Names | None:
    """Returns the class names of a file, with None for unused logits; None if the names are unknown.

    Args:
        format: format of the file.
        count: number of classes, without "no object".
        stored: names in the file or in a config next to it.
    """
    # Hugging Face configs contain LABEL_7 for a class without a name.
    if stored is not None and len(stored) == count and not any(re.fullmatch(r"LABEL_\d+", name) for name in stored):
        return tuple(None if name in ("N/A", "") else name for name in stored)
    return format.classes.get(count)


def fit_class_heads(
    state: State, model: State, source: ClassHead, target: ClassHead, *, keep_logits: bool = False
) -> tuple[State, ClassReport]:
    """Fits the class heads of a file to the model, or removes them if no class matches.

    Args:
        state: state dict of the file, with the detector's keys.
        model: state dict of the model.
        source, target: class heads of the file and of the model.
        keep_logits: whether to keep class heads unchanged instead of mapping classes.

    Returns:
        The fitted state dict, and a report.
    """
    heads = [key for key in state if CLASS_HEAD.fullmatch(key) and key in model]
    main = [key for key in heads if not key.startswith(_PROPOSALS)] or heads
    if not main or keep_logits:
        return state, ClassReport("kept" if main else "none")
    rows, report = _choose_rows(len(state[main[0]]), len(model[main[0]]), source, target)
    fitted = {key: value for key, value in state.items() if rows or key not in main}
    for key in heads:
        if key in main and rows:
            fitted[key] = _take_rows(state[key], model[key], rows)
        elif key not in main and state[key].shape != model[key].shape:
            # The first logit of a proposal is its objectness; the others are trained to be low.
            fitted[key] = _take_rows(state[key], model[key], _identity(min(len(state[key]), len(model[key]))))
    return fitted, report


def _choose_rows(found: int, wanted: int, source: ClassHead, target: ClassHead) -> tuple[dict[int, int], ClassReport]:
    """Maps rows of the model's head (``wanted`` logits) to rows of the file's head (``found`` logits)."""
    count = wanted - target.no_object
    names = target.names if target.names and len(target.names) == count else None
    # If the file has COCO classes, a model without class names but with as many classes is assumed to have them, too.
    by_coco = names is None and source.names in coco_classes.BY_ID.values()
    known = coco_classes.CONTIGUOUS.get(count) if by_coco else names
    rows = match_names(known, source.names) if known and source.names else {}
    reason = ""
    if source.no_object != target.no_object:
        loss = "softmax with a logit for no object" if source.no_object else "sigmoid"
        reason = f"unlike the model, the file uses {loss}"
    elif source.names is None or known is None:
        if found == wanted:
            return _identity(found), ClassReport("kept", f"The {found} logits of the class head are loaded unchanged.")
        reason = f"the file has {found} logits of unknown classes"
    elif not rows:
        reason = f"the file has none of these classes, only {', '.join(shorten(list(filter(None, source.names))))}"
    if reason:
        listed = f" ({', '.join(shorten(names))})" if names else ""
        message = f"The class head of {count} classes{listed} keeps its initial weights: {reason}."
        return {}, ClassReport("new", message, tuple(map(str, names or range(count))))
    assert known is not None
    if target.no_object:
        rows[wanted - 1] = found - 1
    missing = tuple(str(name) for index, name in enumerate(known) if index not in rows)
    if rows == _identity(found) and found == wanted:
        return rows, ClassReport("kept", f"The {found} logits of the class head match the model's classes.")
    message = f"{count - len(missing)} of {count} classes are loaded from the {found} logits of the file, matched by "
    message += "COCO category." if by_coco else "name."
    if missing:
        message += f" The other classes keep their initial weights: {', '.join(shorten(missing))}."
    return rows, ClassReport("mapped", message, missing)


def match_names(target: Names, source: Names) -> dict[int, int]:
    """Maps the index in ``target`` to the index in ``source`` for each class that both contain.

    Case and separators are ignored. If the match is unique, suffixes of COCO stuff classes are also ignored, because
    Detectron2's separated panoptic format contains "sky" for "sky-other-merged".
    """
    indices = {_normalized(name): index for index, name in enumerate(source) if name is not None}
    rows = {index: indices[_normalized(name)] for index, name in enumerate(target) if _normalized(name) in indices}
    left: dict[str, list[int]] = {}
    for index, name in enumerate(source):
        if name is not None and index not in rows.values():
            left.setdefault(_without_suffix(name), []).append(index)
    for index, name in enumerate(target):
        if index not in rows and len(left.get(_without_suffix(name), ())) == 1:
            rows[index] = left.pop(_without_suffix(name))[0]
    return dict(sorted(rows.items()))


def _identity(count: int) -> dict[int, int]:
    return {index: index for index in range(count)}


def _take_rows(source: Tensor, model: Tensor, rows: dict[int, int]) -> Tensor:
    """Returns a copy of ``model`` (M, …) with rows from ``source`` (F, …), or ``source`` if shapes do not match."""
    if source.shape[1:] != model.shape[1:] or max(rows.values()) >= len(source) or max(rows) >= len(model):
        return source
    taken = model.detach().clone().to(source.device)
    taken[list(rows)] = source[list(rows.values())].to(taken.dtype)
    return taken


def _normalized(name: str | None) -> str:
    return re.sub(r"[\s_-]+", " ", name or "").strip().casefold()


def _without_suffix(name: str | None) -> str:
    return re.sub(r"(?<=.) (other|merged|other merged)$", "", _normalized(name))


def shorten(items: Sequence[str | None], limit: int = 8) -> list[str]:
    """Returns the first ``limit`` items as strings, followed by "and N more" if there are more."""
    return [*map(str, items[:limit]), *([f"and {len(items) - limit} more"] if len(items) > limit else [])]
