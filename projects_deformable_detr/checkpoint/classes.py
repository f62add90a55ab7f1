"""Class heads: which of a file's classes are which of the model's, and what becomes of the others.

The rule, in its order (docs/checkpoints.md):
1. ``keep_logits``: the head is taken as it is, and must have the model's number of logits.
2. The classes of both are known by name: each of the model's classes that the file has takes over its logit; the others
   start anew.
3. Those of one of them are not known: the head is taken as it is where the numbers agree, and starts anew elsewhere.
Softmax and sigmoid heads do not replace each other. What starts anew is an error where a model is to be evaluated.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import coco_classes
from .names import State

_SHOWN = 10
_HEAD = re.compile(r"(decoder\.class_heads\.\d+|queries\.class_head)\.(weight|bias)")
_PROPOSALS = "queries.class_head."

Names = Sequence[str | None]


@dataclass(frozen=True)
class Heads:
    """The class heads of a file or of a model.

    Attributes:
        names: of the classes, None where a logit stands for none; or None where they are not known.
        no_object: whether the last logit means "no object".
    """

    names: Names | None
    no_object: bool


@dataclass(frozen=True)
class Outcome:
    """What became of the class heads.

    Attributes:
        action: ``"kept"``, ``"mapped"``, ``"new"``, or ``"none"`` where there were no class heads.
        sentence: for the log.
        new: classes without a counterpart in the file, by name or, where that is not known, by number.
    """

    action: str
    sentence: str = ""
    new: tuple[str, ...] = ()


def names_in_file(kind: str, classes: int, told: Sequence[str] | None) -> Names | None:
    """The classes of a file's logits, "no object" not counted; None where nothing tells.

    Args:
        kind: as `keys.recognise` tells it.
        classes: their number.
        told: names that the file, or a config beside it, has.
    """
    # LABEL_7 is what Hugging Face's configs say of a class that nobody has named.
    if told is not None and len(told) == classes and not any(re.fullmatch(r"LABEL_\d+", name) for name in told):
        return tuple(None if name in ("N/A", "") else name for name in told)
    if kind in ("official", "hugging-face", "detrex") and classes in coco_classes.BY_ID:
        return coco_classes.BY_ID[classes]
    return coco_classes.CONTIGUOUS.get(classes) if kind in ("detrex", "mmdetection") else None


def fit_class_heads(
    state: State, own: State, theirs: Heads, ours: Heads, *, keep_logits: bool = False
) -> tuple[State, Outcome]:
    """The state with class heads that fit the model ``own``; see the rule above.

    Args:
        state: a detector's, with our names.
        own: the model's state dict, whose values are those of classes that start anew.
        theirs, ours: what is known of the heads of both.
        keep_logits: take them as they are.
    """
    heads = [key for key in state if _HEAD.fullmatch(key) and key in own]
    main = [key for key in heads if not key.startswith(_PROPOSALS)] or heads
    if not main or keep_logits:
        return state, Outcome("kept" if main else "none")
    rows, outcome = _choose_rows(len(state[main[0]]), len(own[main[0]]), theirs, ours)
    fitted = dict(state)
    for key in heads:
        if key in main:
            fitted[key] = _take(state[key], own[key], rows)
        elif state[key].shape != own[key].shape:
            # The first logit of a proposal is its objectness; the others are trained to be low.
            count = min(len(state[key]), len(own[key]))
            fitted[key] = _take(state[key], own[key], {index: index for index in range(count)})
    return fitted, outcome


def _choose_rows(found: int, wanted: int, theirs: Heads, ours: Heads) -> tuple[dict[int, int], Outcome]:
    """Row of the model's head to row of the file's."""
    if theirs.no_object != ours.no_object:
        loss = "softmax with a logit for no object" if theirs.no_object else "sigmoid"
        return {}, _new(found, wanted, ours, f"the file's is {loss}, the model's is not (MODEL.DETR.CLASS_LOSS)")
    extra = int(ours.no_object)
    names = ours.names if ours.names and len(ours.names) == wanted - extra else None
    by_coco = names is None
    names = names or _assumed(theirs.names, wanted - extra)
    if theirs.names is None or names is None:
        if found == wanted:
            return _identity(found), Outcome("kept", f"The class head's {found} logits were taken as they are.")
        return {}, _new(found, wanted, ours, f"the file has {found} logits, of classes that are not known")
    rows = _rows_of_same_names(names, theirs.names)
    if not rows:
        known = [_plain(name) for name in theirs.names if name is not None]
        return {}, _new(found, wanted, ours, f"none of its classes is among the file's ({_listed(known)})")
    if extra:
        rows[wanted - 1] = found - 1
    missing = tuple(str(name) for index, name in enumerate(names) if index not in rows)
    if rows == _identity(found) and found == wanted:
        return rows, Outcome("kept", f"The class head's {found} logits are of the model's classes.")
    sentence = f"{len(names) - len(missing)} of {len(names)} classes took over their logits of the file's {found}"
    sentence += " by COCO's categories." if by_coco else " by name."
    if missing:
        sentence += f" The others start anew: {_listed(list(missing))}."
    return rows, Outcome("mapped", sentence, missing)


def _rows_of_same_names(ours: Names, theirs: Names) -> dict[int, int]:
    """Of each of our classes that is among theirs, its place and theirs.

    Detectron2's separated panoptic format calls COCO's "sky-other-merged" "sky": such names, too, are the same, where
    there is no doubt.
    """
    places = {_plain(name): index for index, name in enumerate(theirs) if name is not None}
    rows = {index: places[_plain(name)] for index, name in enumerate(ours) if _plain(name) in places}
    left: dict[str, list[int]] = {}
    for index, name in enumerate(theirs):
        if name is not None and index not in rows.values():
            left.setdefault(_short(name), []).append(index)
    for index, name in enumerate(ours):
        if index not in rows and len(left.get(_short(name), ())) == 1:
            rows[index] = left.pop(_short(name))[0]
    return dict(sorted(rows.items()))


def _assumed(theirs: Names | None, classes: int) -> Names | None:
    """COCO's own classes, for a model of as many, where the file is COCO's and no data set is known."""
    return coco_classes.CONTIGUOUS.get(classes) if theirs in coco_classes.BY_ID.values() else None


def _new(found: int, wanted: int, ours: Heads, reason: str) -> Outcome:
    count = wanted - int(ours.no_object)
    named = ours.names is not None and len(ours.names) == count
    names = tuple(map(str, ours.names if named and ours.names else range(count)))
    what = f" ({_listed(list(names))})" if named else ""
    return Outcome("new", f"The class head of {count} classes{what} starts anew: {reason}.", names)


def _identity(count: int) -> dict[int, int]:
    return {index: index for index in range(count)}


def _take(theirs: Tensor, own: Tensor, rows: dict[int, int]) -> Tensor:
    """``own`` (M, …) with some rows of ``theirs`` (F, …); untouched if nothing else fits either."""
    if theirs.shape[1:] != own.shape[1:]:
        return theirs
    if rows == _identity(len(own)) and len(theirs) == len(own):
        return theirs
    taken = own.detach().clone().to(theirs.device)
    if rows:
        taken[torch.tensor(list(rows))] = theirs[torch.tensor(list(rows.values()))].to(taken.dtype)
    return taken


def _plain(name: str | None) -> str:
    """Names are compared without regard to case, and to what stands between their words."""
    return re.sub(r"[\s_-]+", " ", name or "").strip().casefold()


def _short(name: str | None) -> str:
    return re.sub(r"(?<=.) (other|merged|other merged)$", "", _plain(name))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
