"""Optional Weights & Biases logging that never gets in the way of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from dotenv import find_dotenv, load_dotenv

PROJECT = "bert-peft-notebooks"
# Without a network a run waits no longer than this, at its start or, where the network went away, at its end.
INIT_TIMEOUT_SECONDS = 8
FINISH_TIMEOUT_SECONDS = 10  # what is not uploaded by then stays in wandb/, for `wandb sync`


@contextmanager
def wandb_run(name: str, config: dict) -> Iterator[object | None]:
    """A W&B run, or None (after one line that says why) when it is off or cannot be had.

    It is on when `WANDB_API_KEY` is set in the environment or `.env`, or `WANDB_MODE` is "offline". No network, a bad
    key or a missing package costs the line and nothing else.
    """
    run = _start(name, config)
    try:
        yield run
    finally:
        if run is not None:
            _quietly(run.finish)


def _start(name: str, config: dict):
    load_dotenv(find_dotenv(usecwd=True))
    offline = os.environ.get("WANDB_MODE") == "offline"
    if os.environ.get("WANDB_MODE") == "disabled" or not (offline or os.environ.get("WANDB_API_KEY", "").strip()):
        print("W&B: off (set WANDB_API_KEY in .env to log this run)")
        return None
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb

        settings = wandb.Settings(init_timeout=INIT_TIMEOUT_SECONDS)
        if hasattr(settings, "finish_timeout"):  # which older versions lack
            settings.finish_timeout = FINISH_TIMEOUT_SECONDS
        run = wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=name, config=config, settings=settings)
    except Exception as error:
        print(f"W&B: not available ({type(error).__name__}); the run goes on without it")
        return None
    print("W&B: logging offline, upload later with `wandb sync`" if offline else f"W&B: logging to {run.url}")
    return run


def log_results(run: object | None, metrics: dict[str, float], references, predictions, labels) -> None:
    """Logs test metrics and the confusion matrix; does nothing without a run."""
    if run is None:
        return

    def log():
        import wandb

        matrix = wandb.plot.confusion_matrix(
            y_true=[int(value) for value in references],
            preds=[int(value) for value in predictions],
            class_names=list(labels),
        )
        run.log({**{f"test/{name}": value for name, value in metrics.items()}, "test/confusion_matrix": matrix})

    _quietly(log)


def _quietly(action) -> None:
    try:
        action()
    except Exception as error:
        print(f"W&B: {type(error).__name__} while logging; the results are in Data/ all the same")
