"""Reads the output folder of a training run by this project's engines or by Detectron2."""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median

import yaml

from ..config.data import run_data_config
from ..config.loading import leaves
from ..data.catalog import DatasetSpec
from ..data.config import DataConfig
from ..errors import UserError

Values = dict[int, float]  # by iteration, in ascending order
_KINDS = "bbox|segm|panoptic_seg|sem_seg|keypoints"
_METRIC = re.compile(rf"(?:(?P<data>.+?)/)?(?P<kind>(?:{_KINDS})(?:_TTA)?)/(?P<name>.+)", re.DOTALL)
_LOSS = re.compile(r"(?P<loss>loss_\w+?)(?:_(?P<layer>\d+|enc))?")
_ENVIRONMENT = re.compile(r"Environment info:\n(-[- ]+)\n(.*?)\n\1", re.DOTALL)
_MEMORY = re.compile(r"max_mem: (\d+)M")


@dataclass(frozen=True)
class Metrics:
    """Metrics of the evaluations of a run on one data set.

    Attributes:
        data: name of the data set; "" if the run has one.
        kind: ``"bbox"``, ``"segm"``, ``"panoptic_seg"`` and others of Detectron2, with the suffix ``"_TTA"`` for
            test-time augmentation.
        values: values of each metric, in percent.
    """

    data: str
    kind: str
    values: Mapping[str, Values]


@dataclass
class Run:
    """Content of an output folder.

    Attributes:
        folder: the folder.
        name: name in the report.
        scalars: finite values of the training by name.
        metrics: metrics of the evaluations, including NaN.
        config_text: content of ``config.yaml``; "" without it.
        config: its values by dotted key.
        data: its data sets; None if they are unknown.
        specs: those that are registered, or have a location in the config, by name.
        log: content of ``log.txt``; "" without it.
        missing: parts that the report lacks, and the reasons.
    """

    folder: Path
    name: str
    scalars: dict[str, Values] = field(default_factory=dict)
    metrics: list[Metrics] = field(default_factory=list)
    config_text: str = ""
    config: dict[str, object] = field(default_factory=dict)
    data: DataConfig | None = None
    specs: dict[str, DatasetSpec] = field(default_factory=dict)
    log: str = ""
    missing: list[tuple[str, str]] = field(default_factory=list)

    @property
    def iterations(self) -> int:
        """Number of completed training iterations."""  # Detectron2 records final evaluations as one iteration later
        return 1 + max({**self.scalars.get("total_loss", {}), **self.scalars.get("lr", {})}, default=-1)

    @property
    def state(self) -> str:
        """Whether the run is complete."""
        total = self.config.get("SOLVER.MAX_ITER")
        of = f" of {total}" if total else ""
        if (self.folder / "finished").is_file() or self.iterations == total:
            return f"finished, {self.iterations}{of} iterations" if self.iterations else "finished"
        return f"not finished: {self.iterations}{of} iterations" if self.iterations else "no training"

    def completed(self, iteration: int) -> int:
        """Returns the number of completed iterations at an evaluation."""
        total = self.config.get("SOLVER.MAX_ITER")  # Detectron2 records the final evaluation as one iteration later
        return min(iteration + 1, total) if isinstance(total, int) and total > 0 else iteration + 1

    @cached_property
    def losses(self) -> dict[str, dict[str, Values]]:
        """Losses by name without layer, and by layer: ``"0"``, ``"1"``, …, ``""`` for the last one, ``"enc"``."""
        found: dict[str, dict[str, Values]] = {}
        for name, values in self.scalars.items():
            if match := _LOSS.fullmatch(name):
                found.setdefault(match["loss"], {})[match["layer"] or ""] = values
        return found

    @property
    def seconds_per_iteration(self) -> float | None:
        """Median over the training."""
        return median(self.scalars["time"].values()) if "time" in self.scalars else None

    @property
    def images_per_second(self) -> float | None:
        """Training images per second, without evaluations and checkpoints."""
        seconds = self.seconds_per_iteration
        return self.data.batch_size / seconds if seconds and self.data else None

    @property
    def memory(self) -> int | None:
        """Peak of the allocated GPU memory of the first process, in MiB."""
        return max(map(int, _MEMORY.findall(self.log)), default=None)

    @property
    def environment(self) -> list[tuple[str, str]]:
        """Versions and devices in Detectron2's log."""
        found = _ENVIRONMENT.findall(self.log)
        rows = (re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in found[-1][1].splitlines()) if found else ()
        return [(row[0], row[1]) for row in rows if len(row) == 2]


def read_runs(folders: list[Path]) -> list[Run]:
    """Reads output folders. Their names in the report are those of the folders, or paths if these are equal.

    Raises:
        UserError: if a folder does not exist or has no files of a training run.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"the same folder is given twice: {', '.join(names)}")
    return [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """Reads one output folder; see `read_runs`."""
    if folder.is_file():
        raise UserError(f"{folder} is a file: name its folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such output folder")
    if not any((folder / file).exists() for file in ("metrics.json", "config.yaml", "inference")):
        raise UserError(f"{folder} has none of metrics.json, config.yaml and inference/: name an output folder")
    run = Run(folder, name)
    if (folder / "log.txt").is_file():
        run.log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    _read_scalars(run)
    _read_config(run)
    _note_missing(run)
    return run


def _read_scalars(run: Run) -> None:
    """Reads ``metrics.json``. Values of iterations that a resumed run repeats replace the earlier ones."""
    path = run.folder / "metrics.json"
    if not path.is_file():
        run.missing.append(("Curves", "metrics.json does not exist: the run ended before its first report"))
        return
    found: dict[str, Values] = {}
    corrupt = 0
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
            iteration = int(row.pop("iteration"))
        except (ValueError, TypeError, KeyError, AttributeError):
            corrupt += 1
            continue
        for name, value in row.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values = found.setdefault(name, {})
                while values and next(reversed(values)) >= iteration:
                    values.popitem()
                values[iteration] = float(value)
    if corrupt:
        run.missing.append((f"{corrupt} lines of metrics.json", "they are not JSON; a killed process may cut a line"))
    _sort_scalars(run, found)


def _sort_scalars(run: Run, found: dict[str, Values]) -> None:
    """Distinguishes metrics of evaluations from scalars of the training, and removes values that are not finite."""
    groups: dict[tuple[str, str], dict[str, Values]] = {}
    invalid: Counter[str] = Counter()
    for name, values in found.items():
        if match := _METRIC.fullmatch(name):
            groups.setdefault((match["data"] or "", match["kind"]), {})[match["name"]] = values
            continue
        finite = {iteration: value for iteration, value in values.items() if math.isfinite(value)}
        invalid[name] = len(values) - len(finite)
        if finite:
            run.scalars[name] = finite
    run.metrics = [Metrics(data, kind, values) for (data, kind), values in groups.items()]
    if names := [name for name, count in invalid.items() if count]:
        text = ", ".join(names[:5]) + ", …" * (len(names) > 5)
        run.missing.append((f"{sum(invalid.values())} values of curves", f"NaN or infinite values of {text}"))


def _read_config(run: Run) -> None:
    path = run.folder / "config.yaml"
    if not path.is_file():
        run.missing.append(("Config", "config.yaml does not exist"))
        return
    run.config_text = path.read_text(encoding="utf-8", errors="replace")
    try:
        content = yaml.safe_load(run.config_text)
        if not isinstance(content, dict):
            raise UserError("it has no sections, such as DATASETS")
        run.config = dict(leaves(content))
        run.data, run.specs = run_data_config(content)
    except (yaml.YAMLError, UserError) as error:  # for example a LazyConfig
        problem = " ".join(str(error).split())
        run.missing.append(("Data sets and batch size", f"config.yaml cannot be interpreted: {problem}"))


def _note_missing(run: Run) -> None:
    """Adds the scalars that the run did not record."""
    if run.scalars and not any(len(layers) > 1 for layers in run.losses.values()):
        run.missing.append(
            ("Losses by decoder layer", "metrics.json has no losses of several layers, such as loss_ce_0")
        )
    if run.scalars and "grad_norm" not in run.scalars:
        run.missing.append(
            (
                "Gradient norm",
                "metrics.json has no grad_norm: this project's trainers record it if the norm of the whole model is "
                "clipped, except with FSDP",
            )
        )
    if not run.metrics:
        run.missing.append(("Metrics over time", "metrics.json has no metrics, such as bbox/AP: no evaluation ended"))
    elif all(len(values) < 2 for metrics in run.metrics for values in metrics.values.values()):
        run.missing.append(("Metrics over time", "there was one evaluation only; TEST.EVAL_PERIOD adds others"))
    if run.memory is None:
        run.missing.append(("Memory", "log.txt has no max_mem, which is recorded on GPUs only"))
    if not run.environment:
        run.missing.append(("Environment of the training", "log.txt has no environment; only Detectron2 records it"))
