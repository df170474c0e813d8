"""What devices measured (`helpers.benchmarks`): where the records lie, which one to read, which rows compare."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from helpers import profiles
from helpers.profiles import Execution
from helpers.results import StudyRecord

COMMAND = "python -m helpers.benchmarks"


def device_label(execution: Execution) -> str:
    """The device's name, with what the environment withholds from it: `PRECISION`, and caps on a CPU's instructions."""
    parts = [execution.device_name]
    if os.environ.get("PRECISION", "").strip():
        parts.append(f"{execution.precision} alone")
    caps = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    return ", ".join(parts + [f"{name}={os.environ[name]}" for name in caps if os.environ.get(name)])


def device_folder(execution: Execution) -> Path:
    """`cpu/<device>` or `gpu/<device>` below the data folder: where this device's records are written."""
    name = re.sub(r"[^a-z0-9]+", "-", device_label(execution).lower()).strip("-")
    return profiles.DATA_DIR / ("gpu" if execution.device == "cuda" else "cpu") / name


def find_benchmarks(name: str, roots: Sequence[Path] | None = None) -> list[tuple[Path, StudyRecord]]:
    """The record `name` of every device that has one, with its path: GPUs first, each kind by name.

    They are looked for below `roots`, where a later one wins: the repository's own and the data folder. Records of an
    older form, which do not name their execution, are passed over.
    """
    found = {}
    for root in roots or (profiles.COMMITTED, profiles.DATA_DIR):
        for path in root.glob(f"[cg]pu/*/{name}.json"):
            record = StudyRecord.load(path)
            if "execution" in record.settings:
                found[path.parent.parent.name != "gpu", path.parent.name] = path, record
    return [found[key] for key in sorted(found)]


def own_benchmark(name: str, execution: Execution) -> StudyRecord | None:
    """This device's record `name`; None where it has none."""
    own = device_folder(execution)
    return next((record for path, record in find_benchmarks(name) if path.parts[-3:-1] == own.parts[-2:]), None)


def benchmark_to_show(name: str, execution: Execution) -> StudyRecord:
    """This device's record `name`, else that of the first device which has one. Raises FileNotFoundError."""
    record = own_benchmark(name, execution) or next((record for _, record in find_benchmarks(name)), None)
    if record is None:
        raise FileNotFoundError(f"No device has a record {name!r} yet. Run: {COMMAND} {name}")
    return record


def main_rows(record: StudyRecord, **wanted: object) -> list[dict]:
    """The `steps` rows in the device's own execution and with AdamW, whose fields are as `wanted`."""
    own = {name: record.settings["execution"][name] for name in ("precision", "attention")}
    wanted = own | {"optimizer": "adamw_torch"} | wanted
    return [row for row in record.rows if all(row[name] == value for name, value in wanted.items())]


def device_record(name: str, execution: Execution, settings: dict, rows: list[dict]) -> StudyRecord:
    """A record of this device whose settings name its own execution."""
    own = {key: getattr(execution, key) for key in ("device", "precision", "attention")}
    shared = {"execution": own, **settings}
    return StudyRecord(name, f"{COMMAND} {name}", None, device_label(execution), shared, rows)
