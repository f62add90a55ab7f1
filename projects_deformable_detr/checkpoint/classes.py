"""Maps the class heads of a file to the classes of the model.

The first applicable rule is used (see docs/checkpoints.md):

1. ``keep_logits``: the head is loaded unchanged and must have the model's number of logits.
2. The class names of file and model are known: each class of the model takes the logit of the file's class of the same
   name; classes that the file lacks keep their initial weights.
3. Class names are unknown: the head is loaded unchanged if the numbers of logits agree, and keeps its initial weights
   otherwise.

Softmax heads are not loaded into sigmoid heads or vice versa.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from . import coco_classes
from .formats.base import Format, Names, State
from .formats.detector import CLASS_HEAD

_PROPOSALS = "queries.class_head."


@dataclass(frozen=True)
class ClassHead:
    """Meaning of a class head's logits.

    Attributes:
        names: names of the classes, None for unused logits; None if the names are unknown.
        no_object: whether the last logit is "no object".
    """

    names: Names | None
    no_object: bool


@dataclass(frozen=True)
class ClassReport:
    """Result of fitting class heads.

    Attributes:
        action: ``"kept"``, ``"mapped"``, ``"new"``, or ``"none"`` without class heads.
        message: description for the log.
        new: names of the classes that keep their initial weights; indices if the names are unknown.
    """

    action: str
    message: str = ""
    new: tuple[str, ...] = ()


def count_logits(state: State) -> int:
    """Returns the number of logits of a detector's class heads, 0 if it has none."""
    return next((len(value) for key, value in state.items() if CLASS_HEAD.fullmatch(key)), 0)


def class_names_of(format: Format, count: int, stored: Sequence[str] | None) -> Names | None:
    """Returns the names of a file's classes, None for unused logits; None if the names are unknown.

    Args:
        format: format of the file.
        count: number of classes, without "no object".
        stored: names in the file or in a config next to it.
    """
    # Hugging Face's configs use LABEL_7 for a class without a name.
    if stored is not None and len(stored) == count and not any(re.fullmatch(r"LABEL_\d+", name) for name in stored):
        return tuple(None if name in ("N/A", "") else name for name in stored)
    return format.classes.get(count)


def fit_class_heads(
    state: State, own: State, theirs: ClassHead, ours: ClassHead, *, keep_logits: bool = False
) -> tuple[State, ClassReport]:
    """Returns the state with class heads that fit the model, without them if no class matches, and a report.

    Args:
        state: the file's weights with our keys.
        own: the model's state dict.
        theirs, ours: class heads of the file and of the model.
        keep_logits: load class heads without mapping classes.
    """
    heads = [key for key in state if CLASS_HEAD.fullmatch(key) and key in own]
    main = [key for key in heads if not key.startswith(_PROPOSALS)] or heads
    if not main or keep_logits:
        return state, ClassReport("kept" if main else "none")
    rows, report = _choose_rows(len(state[main[0]]), len(own[main[0]]), theirs, ours)
    fitted = {key: value for key, value in state.items() if rows or key not in main}
    for key in heads:
        if key in main and rows:
            fitted[key] = _take_rows(state[key], own[key], rows)
        elif key not in main and state[key].shape != own[key].shape:
            # The first logit of a proposal is its objectness; the others are trained to be low.
            fitted[key] = _take_rows(state[key], own[key], _identity(min(len(state[key]), len(own[key]))))
    return fitted, report


def _choose_rows(found: int, wanted: int, theirs: ClassHead, ours: ClassHead) -> tuple[dict[int, int], ClassReport]:
    """Maps rows of the model's head (``wanted`` logits) to rows of the file's head (``found`` logits)."""
    count = wanted - ours.no_object
    names = ours.names if ours.names and len(ours.names) == count else None
    # A model without class names but with COCO's number of classes is assumed to be COCO's if the file is.
    by_coco = names is None and theirs.names in coco_classes.BY_ID.values()
    known = coco_classes.CONTIGUOUS.get(count) if by_coco else names
    rows = match_names(known, theirs.names) if known and theirs.names else {}
    reason = ""
    if theirs.no_object != ours.no_object:
        loss = "softmax with a logit for no object" if theirs.no_object else "sigmoid"
        reason = f"the file's is {loss}, the model's is not"
    elif theirs.names is None or known is None:
        if found == wanted:
            return _identity(found), ClassReport("kept", f"The class head's {found} logits are loaded unchanged.")
        reason = f"the file has {found} logits of unknown classes"
    elif not rows:
        reason = f"none of its classes is among the file's ({', '.join(shorten(list(filter(None, theirs.names))))})"
    if reason:
        listed = f" ({', '.join(shorten(names))})" if names else ""
        message = f"The class head of {count} classes{listed} keeps its initial weights: {reason}."
        return {}, ClassReport("new", message, tuple(map(str, names or range(count))))
    assert known is not None
    if ours.no_object:
        rows[wanted - 1] = found - 1
    missing = tuple(str(name) for index, name in enumerate(known) if index not in rows)
    if rows == _identity(found) and found == wanted:
        return rows, ClassReport("kept", f"The class head's {found} logits are those of the model's classes.")
    message = f"{count - len(missing)} of {count} classes take their logits from the file's {found} by "
    message += "COCO's categories." if by_coco else "name."
    if missing:
        message += f" The others keep their initial weights: {', '.join(shorten(missing))}."
    return rows, ClassReport("mapped", message, missing)


def match_names(ours: Names, theirs: Names) -> dict[int, int]:
    """Maps the index of each class in ``ours`` to the index of the same class in ``theirs``, if it is there.

    Case and separators are ignored. So are the suffixes of COCO's stuff classes where the match is unique, as
    Detectron2's separated panoptic format has "sky" for "sky-other-merged".
    """
    places = {_normalized(name): index for index, name in enumerate(theirs) if name is not None}
    rows = {index: places[_normalized(name)] for index, name in enumerate(ours) if _normalized(name) in places}
    left: dict[str, list[int]] = {}
    for index, name in enumerate(theirs):
        if name is not None and index not in rows.values():
            left.setdefault(_without_suffix(name), []).append(index)
    for index, name in enumerate(ours):
        if index not in rows and len(left.get(_without_suffix(name), ())) == 1:
            rows[index] = left.pop(_without_suffix(name))[0]
    return dict(sorted(rows.items()))


def _identity(count: int) -> dict[int, int]:
    return {index: index for index in range(count)}


def _take_rows(theirs: Tensor, own: Tensor, rows: dict[int, int]) -> Tensor:
    """Returns a copy of ``own`` (M, …) with rows of ``theirs`` (F, …), or ``theirs`` if the shapes do not fit."""
    if theirs.shape[1:] != own.shape[1:] or max(rows.values()) >= len(theirs) or max(rows) >= len(own):
        return theirs
    taken = own.detach().clone().to(theirs.device)
    taken[list(rows)] = theirs[list(rows.values())].to(taken.dtype)
    return taken


def _normalized(name: str | None) -> str:
    return re.sub(r"[\s_-]+", " ", name or "").strip().casefold()


def _without_suffix(name: str | None) -> str:
    return re.sub(r"(?<=.) (other|merged|other merged)$", "", _normalized(name))


def shorten(items: Sequence[str | None], limit: int = 8) -> list[str]:
    """Returns the first ``limit`` items of a list for a message, followed by "and N more"."""
    return [*map(str, items[:limit]), *([f"and {len(items) - limit} more"] if len(items) > limit else [])]
