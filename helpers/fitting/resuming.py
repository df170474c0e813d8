"""Trainings that outlive their process: what they save on the way, and how one that was stopped goes on."""

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce
from datasets import Dataset
from filelock import FileLock, Timeout
from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from helpers.base.paths import shown
from helpers.base.writing import write_json

RUN_FILE = "run.json"  # in a folder of checkpoints: which run they belong to
COMPLETE = "complete"  # in a checkpoint that is whole; transformers would take a half-written one for the newest
SECONDS_BETWEEN_SAVES = 60
STEPS_BETWEEN_QUESTIONS = 10  # of several processes


class Occupied(ValueError):
    """A folder of checkpoints cannot take a run: a process trains there, or it holds another run, or a damaged one."""


@contextmanager
def alone(folder: Path, state: PartialState) -> Iterator[None]:
    """Keeps other runs out of `folder` for as long as the block lasts; among several processes the first does it.

    Raises Occupied, in each of them, where another run is there. The lock, beside the folder, is the system's: it ends
    with the process that holds it, however that ends.
    """
    lock, taken = FileLock(folder.with_name(f"{folder.name}.lock"), timeout=0), False
    if state.is_main_process:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            taken = True
    if broadcast_object_list([taken])[0]:
        raise Occupied(
            f"Another process is training now, with its checkpoints in {shown(folder)}. Wait until it has ended, or "
            "stop it and run this again: it goes on from there."
        )
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):  # Windows removes no file that is open, but removes this one with the lock
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def identity(settings: dict, train: Dataset, validation: Dataset | None, **loaded: object) -> dict[str, object]:
    """What must be the same for a run to go on: its settings, its tokenized rows, and what else decides its result."""
    rows = {name: _digest(part) for name, part in (("train", train), ("validation", validation)) if part is not None}
    return json.loads(json.dumps({**settings, **loaded, "rows": rows}))  # lists for tuples, as they come back


def _digest(rows: Dataset) -> str:
    """A name for tokenized rows: their number, and a sha256 over ids and labels."""
    ids = rows.with_format("arrow")[:]["input_ids"]  # as "numpy", datasets asks torchvision for what new ones lack
    digest = sha256(pc.list_flatten(ids).to_numpy().astype(np.int64).tobytes())
    digest.update(pc.list_value_length(ids).to_numpy().tobytes() + np.array(rows["label"][:]).tobytes())
    return f"{len(rows):,} rows, {digest.hexdigest()[:12]}"


def unfinished(folder: Path, run: dict[str, object]) -> tuple[Path | None, dict[str, int]]:
    """The newest whole checkpoint in `folder` of an earlier, unfinished `run`, and the batches it trained with.

    (None, {}) where there is nothing to go on with. Raises Occupied, naming what differs, where the folder holds
    another run than `run` (see `identity`).
    """
    path = folder / RUN_FILE
    if not path.is_file():
        return None, {}
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        earlier, batches = before["run"], before["batches"]
    except (ValueError, KeyError, TypeError) as error:
        raise Occupied(f"{shown(path)} is damaged: {error}. {_AFRESH}") from error
    if differing := [name for name in {**earlier, **run} if earlier.get(name) != run.get(name)]:
        said = "; ".join(f"{name} {earlier.get(name)!r} there, {run.get(name)!r} now" for name in differing[:4])
        raise Occupied(f"{shown(folder)} holds an unfinished run that is another one: {said}. {_AFRESH}")
    whole = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None), batches


_AFRESH = "Run that one to its end, or begin anew: --restart, fine_tune(..., restart=True), or delete the folder."


def begin(folder: Path, run: dict[str, object], batches: dict[str, int]) -> None:
    """Empties `folder` of checkpoints and writes down which run begins there, and with which batches."""
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / RUN_FILE, {"run": run, "batches": batches})


def ended_after(checkpoint: Path) -> int | None:
    """The epochs after which training had ended with `checkpoint`, and only its result was not written; else None.

    Left to itself, Trainer would go on where early stopping had ended it.
    """
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    return round(state.epoch) if state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"] else None


def clear_halves(folder: Path) -> None:
    """Removes checkpoints that are not whole: by its number, one of them may pass for the newest."""
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).is_file():
            shutil.rmtree(path)


class Stopped(KeyboardInterrupt):
    """A training was asked to end, by Ctrl-C or SIGTERM, and has saved what it had. `status` is the exit status."""

    def __init__(self, number: int, updates: int, of: int):
        super().__init__(
            f"Stopped after {updates:,} of {of:,} updates, and all is saved. The same command goes on from there; "
            "with --restart, or restart=True, it begins anew."
        )
        self.status = 128 + number


class Clock(TrainerCallback, ExportableState):
    """Seconds of training without validation, over all the processes that a run took."""

    def __init__(self):
        self.seconds, self.since = 0.0, None

    def state(self) -> dict:
        """What a checkpoint holds of it."""
        return {"args": {}, "attributes": {"seconds": self.so_far()}}

    def so_far(self) -> float:
        """Seconds until now."""
        return self.seconds + (perf_counter() - self.since if self.since else 0.0)

    def on_train_begin(self, *_, **__) -> None:
        self.since = perf_counter()

    def on_evaluate(self, *_, metrics=None, **__) -> None:
        self.seconds -= (metrics or {}).get("eval_runtime", 0.0)

    def on_train_end(self, *_, **__) -> None:
        self.seconds, self.since = self.so_far(), None


class Saver(TrainerCallback):
    """Has a checkpoint saved every minute, marks those that are whole, and ends a training that was asked to end."""

    def __init__(self):
        self.saved, self.asked = perf_counter(), None

    def on_train_begin(self, *_, **__) -> None:
        self.saved = perf_counter()

    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step % (state.max_steps // state.num_train_epochs) == 0:
            return  # the end of an epoch, which saves by itself
        due = float(bool(self.asked) or perf_counter() - self.saved > SECONDS_BETWEEN_SAVES)
        if args.world_size > 1:  # all processes have to save at the same step, so they ask one another now and then
            if state.global_step % STEPS_BETWEEN_QUESTIONS:
                return
            due = reduce(torch.tensor(due, device=args.device), "sum").item()
        control.should_save |= due > 0

    def on_save(self, args, state, control, **_) -> None:
        stop = float(bool(self.asked))
        if args.world_size > 1:  # which waits, too, until all have written their part
            stop = reduce(torch.tensor(stop, device=args.device), "sum").item()
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()
        self.saved = perf_counter()
        if stop:  # control.should_training_stop would validate and save once more, in the middle of an epoch
            raise Stopped(self.asked or signal.SIGTERM, state.global_step, state.max_steps)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the training by Stopped, after the checkpoint that they ask for; a second one, now.

        Does nothing outside of the main thread, where Python takes no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame) -> None:
            if self.asked:
                signal.signal(number, before[number])
                raise KeyboardInterrupt
            self.asked = signal.Signals(number)

        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
