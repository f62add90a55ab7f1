"""What a table of options is made of: rows, their defaults, and how a value of theirs becomes one of ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError

MODELS = ("detr", "deformable_detr")
COCO_IMAGES = 118_287  # of train2017


class _NotThere:
    def __repr__(self) -> str:
        return "–"


NOT_THERE = _NotThere()  # the default of an option that a model does not have


@dataclass(frozen=True)
class Theirs:
    """Every value of theirs, defaults included, and what stands on no command line.

    Attributes:
        values: by the option's name.
        model: one of `MODELS`.
        gpus: processes that train, each with a batch of its own.
        images: in the training set.
        given: the options that were named, in contrast to defaults.
    """

    values: Mapping[str, Any]
    model: str
    gpus: int = 1
    images: int = COCO_IMAGES
    given: frozenset[str] = frozenset()

    def __getitem__(self, option: str) -> Any:
        return self.values[option]

    def get(self, option: str, default: Any = None) -> Any:
        """The value, or ``default`` where the model does not have the option."""
        value = self.values.get(option, NOT_THERE)
        return default if value is NOT_THERE else value

    def batch(self, option: str) -> int:
        """Images of all GPUs together, where ``option`` tells those of one.

        Raises:
            UserError: if it is no whole number above 0.
        """
        size = self[option]
        if type(size) is not int or size < 1:
            raise UserError(f"{option} {size!r}: a batch is a whole number of images, 1 or more")
        return size * self.gpus

    def iterations(self, epochs: float, batch: float) -> int:
        """So many epochs of so many images each."""
        return round(epochs * self.images / batch)


@dataclass(frozen=True)
class Change:
    """How a value becomes ours.

    Attributes:
        text: for the table; short.
        function: the value, and all of theirs, to values of ours by key.
    """

    text: str
    function: Callable[[Any, Theirs], Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """One option of theirs.

    Attributes:
        option: its name; ``x.*`` stands for ``x`` and all below it; "" for what their code does without an option.
        keys: of ours, or flags of ``train_net.py`` where they begin with ``--``; none where there is no counterpart.
        detr, deformable: their default in each model.
        change: None for the same value.
        note: for the table; where there is no key, the reason.
        fixed: another value than the default makes a model that is not here: an error.
        only_given: a default is not taken over: only what was named.
        quiet: without a counterpart, and it changes neither model nor training: not told of what a file has.
    """

    option: str
    keys: tuple[str, ...] = ()
    detr: Any = NOT_THERE
    deformable: Any = NOT_THERE
    change: Change | None = None
    note: str = ""
    fixed: bool = False
    only_given: bool = False
    quiet: bool = False

    def default(self, model: str) -> Any:
        """That of ``"detr"`` or ``"deformable_detr"``; `NOT_THERE` if it does not have the option."""
        return self.detr if model == "detr" else self.deformable

    def names(self, option: str) -> bool:
        """Whether the row is of this option."""
        return option == self.option or (self.option.endswith(".*") and f"{option}.".startswith(self.option[:-1]))

    def ours(self, theirs: Theirs) -> dict[str, Any]:
        """Our values by key; none where the option has no counterpart or is not translated."""
        default = self.default(theirs.model)
        if not self.keys or default is NOT_THERE or (self.only_given and self.option not in theirs.given):
            return {}
        value = theirs.values.get(self.option, default) if self.option else default
        if self.change is None:
            return dict.fromkeys(self.keys, value)
        return dict(self.change.function(value, theirs))


@dataclass(frozen=True)
class Preset:
    """A config that they publish: what it has in place of the defaults, and the GPUs that it is for."""

    model: str
    values: Mapping[str, Any] = field(default_factory=dict)
    gpus: int = 1


@dataclass(frozen=True)
class Flag:
    """A flag of a program that otherwise takes ``KEY=VALUE``.

    Attributes:
        option: that it sets; "" if it is of the launcher.
        value: of the option, where the flag takes none.
        takes: whether a value follows.
        may_take: an option that a value sets which may follow, besides ``option``.
        gpus: the value is a number of processes, or one to multiply them with.
    """

    option: str = ""
    value: Any = None
    takes: bool = False
    may_take: str = ""
    gpus: bool = False


@dataclass(frozen=True)
class Source:
    """One project.

    Attributes:
        name: on our command line.
        rows: of all its options, in the order of the table.
        presets: its published configs by name.
        parse: their command line to the values that it names, and the preset where it names one.
        read: a file of theirs to the preset and the values that it holds; see `Reading`.
        default: the preset of a command line that names none; "" if it must.
        display: the option as it is written, for the table.
        without_effect: names that their files have and that mean nothing for the model or its training.
        by_type: options with lists whose items are named by their ``type``, where others are numbered.
        flags: of its programs, by name; for those that take ``KEY=VALUE``.
    """

    name: str
    rows: tuple[Row, ...]
    presets: Mapping[str, Preset]
    parse: "Callable[[Source, list[str]], Reading]"
    read: "Callable[[Source, str], Reading] | None" = None
    default: str = ""
    display: Callable[[str], str] = str
    without_effect: frozenset[str] = frozenset()
    by_type: frozenset[str] = frozenset()
    flags: Mapping[str, Flag] = field(default_factory=dict)

    def row(self, option: str, model: str) -> Row | None:
        """The row of an option; an exact name goes before ``x.*``, and one of the model before one of the other."""
        found = [row for row in self.rows if option and row.names(option)]
        return max(
            found,
            key=lambda row: (row.default(model) is not NOT_THERE, row.option == option, len(row.option)),
            default=None,
        )


@dataclass(frozen=True)
class Reading:
    """What a command line or a file of theirs says: values by option, and preset and GPUs where it tells them.

    ``warnings`` are sentences on what was left out.
    """

    values: Mapping[str, Any]
    preset: str = ""
    gpus: int | None = None
    warnings: tuple[str, ...] = ()


def same(option: str, *keys: str, both: Any = NOT_THERE, note: str = "", **defaults: Any) -> Row:
    """The same value under another name; ``both`` is the default in both models."""
    return Row(option, keys, **({"detr": both, "deformable": both} | defaults), note=note)


def changed(
    option: str, keys: tuple[str, ...], change: Change, both: Any = NOT_THERE, note: str = "", **others: Any
) -> Row:
    """A value that is told otherwise here."""
    return Row(option, keys, **({"detr": both, "deformable": both} | others), change=change, note=note)


def none(option: str, note: str, both: Any = NOT_THERE, quiet: bool = False, **others: Any) -> Row:
    """No counterpart: naming it is warned of, and unless ``quiet`` so is what a file has in place of the default."""
    return Row(option, **({"detr": both, "deformable": both} | others), note=note, quiet=quiet)


def fixed(option: str, note: str, both: Any = NOT_THERE, **others: Any) -> Row:
    """What is here as their default is: another value is refused."""
    return Row(option, **({"detr": both, "deformable": both} | others), note=note, fixed=True)


def read_with(option: str, other: str, *keys: str, both: Any = NOT_THERE, **others: Any) -> Row:
    """Told together with another option, whose row gives the values."""
    change = Change(f"read with `{other}`", lambda _, __: {})
    return Row(option, keys, **({"detr": both, "deformable": both} | others), change=change)


def plain(value: Any) -> Any:
    """For comparing: tuples as lists, at every depth."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def ratio(part: float, whole: float) -> float:
    """Of two learning rates, without the noise of their last digits."""
    return float(f"{part / whole:.10g}")
