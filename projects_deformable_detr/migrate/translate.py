"""Their options to a config of ours: the nearest of ``configs/``, and what differs from it."""

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .. import model_zoo
from ..config import get_cfg
from ..errors import UserError
from .rows import COCO_IMAGES, MODELS, NOT_THERE, Preset, Row, Source, Theirs, plain

_ARCHITECTURES = dict(zip(MODELS, ("DETR", "DeformableDETR"), strict=True))
_SHOWN = 3


@dataclass(frozen=True)
class Translation:
    """A config of ours.

    Attributes:
        base: the name of the nearest of our configs, as `model_zoo` has it.
        settings: keys whose values differ from it.
        flags: of ``train_net.py``.
        warnings: one sentence for each option that has no counterpart.
        notes: what was assumed.
    """

    base: str
    settings: Mapping[str, Any]
    flags: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def translate(
    source: Source,
    preset: str,
    given: Mapping[str, Any],
    *,
    gpus: int | None = None,
    images: int = COCO_IMAGES,
    ignored: tuple[str, ...] = (),
) -> Translation:
    """Translates their config ``preset`` with the options ``given``.

    Args:
        source: whose options they are.
        preset: the name of one of its published configs.
        given: values by option.
        gpus: how many processes trained, where the batch is told for each; default: as many as the preset is for.
        images: in the training set, for epochs.
        ignored: options to leave out, with all below them, whatever they say.

    Raises:
        UserError: for an option that is not theirs, with the nearest ones, and for a value that makes a model that is
            not here.
    """
    chosen = _preset(source, preset)
    count = gpus or chosen.gpus
    given = {option: value for option, value in given.items() if not _is_ignored(option, ignored)}
    defaults = ((row.option, row.default(chosen.model)) for row in source.rows if row.option)
    values = {option: value for option, value in defaults if value is not NOT_THERE} | dict(chosen.values)
    _check_options(source, given, chosen.model)
    values |= given
    theirs = Theirs(values, chosen.model, count, images, frozenset({*given, *chosen.values}))
    flags, wanted, options = _ours(source, theirs)
    warnings = tuple(_warnings(source, given, theirs))
    base, settings = _nearest(wanted | {"MODEL.META_ARCHITECTURE": _ARCHITECTURES[chosen.model]}, options)
    notes = tuple(_notes(wanted, theirs, preset))
    return Translation(base, settings, flags, warnings, notes)


def _preset(source: Source, name: str) -> Preset:
    if name not in source.presets:
        near = f"{name!r} is none of {source.name}'s configs" if name else f"name one of {source.name}'s configs"
        raise UserError(f"{near} (--config): {', '.join(source.presets)}")
    return source.presets[name]


def _is_ignored(option: str, ignored: tuple[str, ...]) -> bool:
    return any(f"{option}.".startswith(f"{name.lstrip('-').removesuffix('.*')}.") for name in ignored)


def _check_options(source: Source, given: Mapping[str, Any], model: str) -> None:
    wrong = []
    for option in given:
        row = source.row(option, model)
        if row is None:
            known = [source.display(row.option) for row in source.rows if row.option]
            near = difflib.get_close_matches(source.display(option), known, n=_SHOWN)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            wrong.append(f"{source.display(option)} is no option of {source.name}{hint}")
        elif row.default(model) is NOT_THERE:
            other = "Deformable DETR" if model == "detr" else "DETR"
            wrong.append(f"{source.display(option)} is an option of {other} in {source.name}, not of this model")
    if wrong:
        raise UserError("; ".join(wrong) + " (--ignore OPTION, its name without dashes, leaves one out)")


def _ours(source: Source, theirs: Theirs) -> tuple[tuple[str, ...], dict[str, Any], dict[str, str]]:
    """Flags, values by key, and the options that these come from.

    Two options that want different values for one key are an error.
    """
    found: dict[str, tuple[Any, str]] = {}
    for row in source.rows:
        for key, value in _ours_of(source, row, theirs).items():
            before, option = found.get(key, (value, ""))
            if before != value:
                raise UserError(
                    f"{source.display(option)} and {source.display(row.option)} disagree: both are {key} here, which "
                    f"would be {before!r} and {value!r}"
                )
            found[key] = (value, row.option)
    flags = tuple(key for key, (value, _) in found.items() if key.startswith("--") and value)
    values = {key: value for key, (value, _) in found.items() if not key.startswith("--")}
    return flags, values, {key: source.display(option) for key, (_, option) in found.items() if option}


def _ours_of(source: Source, row: Row, theirs: Theirs) -> dict[str, Any]:
    try:
        return row.ours(theirs)
    except UserError:
        raise
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        value = theirs.get(row.option, row.default(theirs.model))
        raise UserError(
            f"{source.display(row.option)} {value!r}: no value that it can have here ({type(error).__name__}: {error})"
        ) from error


def _warnings(source: Source, given: Mapping[str, Any], theirs: Theirs) -> Iterator[str]:
    for option, value in given.items():
        row = source.row(option, theirs.model)
        if row is None or row.keys:
            continue
        default = row.default(theirs.model)
        if not row.fixed:
            yield f"{source.display(option)} has no counterpart: {row.note}"
        elif not _is_same(value, default):
            raise UserError(
                f"{source.display(option)} {value!r}: here it is always {default!r}. {_sentence(row)} Leave it out "
                f"with --ignore {option}"
            )


def _sentence(row: Row) -> str:
    return row.note[:1].upper() + row.note[1:] + "." if row.note else ""


def _is_same(one: Any, other: Any) -> bool:
    return plain(one) == plain(other)


def _notes(wanted: Mapping[str, Any], theirs: Theirs, preset: str) -> Iterator[str]:
    yield f"their config: {preset}"
    if "SOLVER.IMS_PER_BATCH" in wanted:
        batch = wanted["SOLVER.IMS_PER_BATCH"]
        yield (
            f"{batch} images in a batch over {theirs.gpus} GPUs (--gpus), {theirs.images} images in an epoch (--images)"
        )


def _nearest(wanted: Mapping[str, Any], options: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Our config with the fewest keys to change, and these keys with the values wanted."""
    start = _read("Base-DETR" if wanted["MODEL.META_ARCHITECTURE"] == "DETR" else "Base-DeformableDETR")
    if "OUTPUT_DIR" not in wanted:
        del start["OUTPUT_DIR"]
    whole = start | {key: _coerce(key, value, start, options.get(key, "")) for key, value in wanted.items()}
    found = {name: _read(name) for name in model_zoo.names()}
    fitting = [name for name in found if _is_like(name, found[name], wanted["MODEL.META_ARCHITECTURE"])]
    # Where several are as near, the plainest: it differs least from the one that all others start from.
    base = min(fitting, key=lambda name: (len(_differing(whole, found[name])), len(_differing(start, found[name]))))
    return base, _differing(whole, found[base])


def _differing(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in wanted.items() if not _is_same(found[key], value)}


def _is_like(name: str, found: Mapping[str, Any], architecture: str) -> bool:
    """Of the architecture, for COCO, and none of the ablations."""
    is_coco = all(dataset.startswith("coco_") for dataset in found["DATASETS.TRAIN"])
    return "/" not in name and is_coco and found["MODEL.META_ARCHITECTURE"] == architecture


def _read(name: str) -> dict[str, Any]:
    cfg = get_cfg("standalone")
    cfg.merge_from_file(str(model_zoo.config_folder() / f"{name}.yaml"))
    return dict(_leaves(cfg))


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _coerce(key: str, value: Any, known: Mapping[str, Any], option: str) -> Any:
    """Our key's type: theirs may have 2 where ours has 2.0, or a list for a tuple."""
    kind = type(known.get(key, value))
    if kind is float and type(value) is int:
        return float(value)
    if kind is int and type(value) is float and value == int(value):
        return int(value)
    if kind in (list, tuple) and isinstance(value, list | tuple):
        return kind(value)
    if kind is not type(value):
        raise UserError(f"{option} {value!r} does not fit {key}, which is of type {kind.__name__}")
    return value
