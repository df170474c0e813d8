"""What `make full` has done and what is left of it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from helpers.profiles import Execution
from helpers.results import StudyRecord
from helpers.studies.runs import FULL, Run, record_of
from helpers.studies.search import Plan, Rows

SECONDS_PER_TOKEN = 1.5e-4  # of a CPU with two cores; each sitting measures its own


class Ledger:
    """What is done: the rows of all studies by their run's name, read from `folder` (None: where they are written)."""

    def __init__(self, folder: Path | None = None):
        found = (folder or FULL.results / "studies").glob("*.json")
        self.records = {path.stem: StudyRecord.load(path) for path in found}
        self.rows: Rows = {row["run"]: row for record in self.records.values() for row in record.rows if "run" in row}
        self.paces: list[float] = []

    def has(self, run: Run) -> bool:
        """Whether `run` is done."""
        return record_of(run) is not None if run.at_scale else run.id in self.rows

    def rows_of(self, study: Plan, search: bool = False) -> list[dict]:
        """The rows of `study`, or of its `search`, as far as they are done, with its labels.

        The row of a run that two studies share may lie in the other's record.
        """
        name = f"{study.__name__}_search" if search else study.__name__
        runs = [run for run in study(self.rows) if run.study == name and run.id in self.rows]
        return [{**self.rows[run.id], **dict(run.labels)} for run in runs]

    def add(self, run: Run, row: dict, execution: Execution, current: Sequence[Run]) -> None:
        """Writes `row` to its study's record, in the order of the `current` runs; rows of others go."""
        kept = self.records[run.study].rows if run.study in self.records else []
        self.rows[run.id] = row
        study = {other.id: other for other in current if other.study == run.study}
        by_run = {other["run"]: other for other in (*kept, row)}
        rows = [by_run[name] for name in study if name in by_run]
        settings = {"precision": execution.precision}
        for name in ("base_model", "scored_on", "n_validation", "n_test"):
            settings[name] = _all_of(getattr(other, name) for other in study.values())
        for name in ("dataset", "max_length"):
            settings[name] = _all_of(getattr(other.recipe, name) for other in study.values())
        command = f"make full ONLY={run.study.removesuffix('_search')}"
        record = StudyRecord(run.study, command, "full", execution.device_name, settings, rows)
        record.save(FULL.results / "studies")
        self.records[run.study] = record

    def seconds(self, runs: Iterable[Run]) -> float:
        """How long `runs` should take, by the pace of those that this sitting did."""
        pace = float(np.median(self.paces[-30:])) if self.paces else SECONDS_PER_TOKEN
        return pace * sum(map(work, runs))


def work(run: Run) -> float:
    """Roughly, tokens that go through training, weighted by the work on each."""
    recipe, reviews = run.recipe, run.recipe.dataset != "rotten_tomatoes"
    length = min(recipe.max_length, 240) if reviews else 28
    n_train = recipe.n_train or (19_922 if reviews else 5_530)
    if recipe.method in ("bag_of_words", "frozen_encoder"):
        return 0.01 * n_train * length
    weight = {"head_only": 0.35, "full_finetune": 1.1}.get(recipe.method, 1.3 if recipe.quantization else 1.0)
    dropout = 1.0 if recipe.model_dropout == 0 else 1.3
    scored = run.n_test if run.scored_on == "test" else run.n_validation
    return length * (weight * dropout * n_train * recipe.epochs(n_train) + 0.3 * scored)


def _all_of(values: Iterable[object]) -> object:
    """The value, or "a and b" where the runs of a study differ in it."""
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else " and ".join(map(str, different))


def clock(seconds: float) -> str:
    """Hours and minutes, such as 1:05."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}"
