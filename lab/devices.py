"""What devices measured: where their records lie, which one to read, and which of its rows compare.

Records go to `cpu/<device>` or `gpu/<device>` below the data folder: they depend on the machine, not on the profile.
"""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

from helpers.profiles import COMMITTED, current_precision, data_dir, device, device_name, setting
from helpers.results import StudyRecord
from helpers.start import prepare_process

COMMAND = "python -m lab.benchmarks"


def device_label() -> str:
    """The device's name. A CPU that multiplies no bf16 says so, as another of the same name may; and what `PRECISION`
    keeps a device to is part of it."""
    limited = setting("PRECISION") or (device() == "cpu" and current_precision() == "fp32")
    return device_name() + (f", {current_precision()} alone" if limited else "")


def device_folder() -> Path:
    """`cpu/<device>` or `gpu/<device>` below the data folder: where this device's records are written."""
    name = re.sub(r"[^a-z0-9]+", "-", device_label().lower()).strip("-")
    return data_dir() / ("gpu" if device() == "cuda" else "cpu") / name


def find_records(name: str, roots: Sequence[Path] | None = None) -> list[tuple[Path, StudyRecord]]:
    """The record `name` of every device that has one, with its path: GPUs first, each kind by name.

    They are looked for below `roots`, where a later one wins: the repository's own and the data folder.
    """
    found = {}
    for root in roots or (COMMITTED, data_dir()):
        for path in root.glob(f"[cg]pu/*/{name}.json"):
            found[path.parent.parent.name != "gpu", path.parent.name] = path, StudyRecord.load(path)
    return [found[key] for key in sorted(found)]


def record_to_show(name: str) -> StudyRecord:
    """This device's record `name`, else that of the first device which has one. Raises FileNotFoundError."""
    found = find_records(name)
    if not found:
        raise FileNotFoundError(f"No device has a record {name!r} yet. Run: {COMMAND} {name}")
    own = [record for path, record in found if path.parent.name == device_folder().name]
    return (own or [record for _, record in found])[0]


def main_rows(record: StudyRecord, **wanted: object) -> list[dict]:
    """The `steps` rows in the device's own number format (and attention, in older records), whose fields are as
    `wanted`: with AdamW in fp32, but for bert-qlora's own recipe."""
    wanted |= {name: value for name, value in record.settings["execution"].items() if name != "device"}
    rows = [row for row in record.rows if all(row[name] == value for name, value in wanted.items())]
    return [row for row in rows if row["optimizer"].startswith("adamw") or row["method"] == "qlora_as_written"]


def device_record(name: str, settings: dict[str, object], rows: list[dict]) -> StudyRecord:
    """A record of this device, whose settings name the device's own number format."""
    own = {"device": device(), "precision": current_precision()}
    return StudyRecord(name, f"{COMMAND} {name}", None, device_label(), {"execution": own, **settings}, rows)


def in_fresh_process(function: Callable, **arguments) -> object:
    """`function(**arguments)` in a new Python process. Raises what it raises, RuntimeError where the process dies."""
    # A process that has imported all; with CUDA none that is forked can use it.
    kind = "forkserver" if device() == "cpu" and "forkserver" in get_all_start_methods() else "spawn"
    context = get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload([function.__module__])
    with ProcessPoolExecutor(1, mp_context=context, initializer=prepare_process) as pool:
        return pool.submit(function, **arguments).result()
