"""`python tests/install.py [FOLDER]`: from `git clone` to the first figure, in seconds, with every cache empty.

Beside it, in the same record, the commands that two other examples ask for until they have a first result, as their own
READMEs give them; these load data and checkpoints from a hub, and are not run here. The clone goes to FOLDER.
"""

import argparse
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter, sleep

from helpers.base.paths import ROOT
from helpers.benchmarks.records import device_folder, device_label
from helpers.profiles import fastest_execution
from helpers.results import StudyRecord

OURS = ("git clone ADDRESS series", "cd series", "make run")
BESIDE = "https://github.com/"
OTHERS = {
    "rasbt/LLMs-from-scratch/tree/main/ch06/03_bonus_imdb-classification": (
        "git clone ADDRESS",
        "cd LLMs-from-scratch/ch06/03_bonus_imdb-classification",
        "pip install -r ../../requirements.txt",
        "pip install -r requirements-extra.txt",
        "python download_prepare_dataset.py",
        "python train_bert_hf.py --trainable_layers all --num_epochs 1 --bert_model distilbert",
    ),
    "huggingface/peft/tree/main/examples/sequence_classification": (
        "git clone ADDRESS",
        "cd peft/examples/sequence_classification",
        "sh setup.sh",
        "sh p_tuning_peft.sh",
    ),
}


def measure(folder: Path) -> dict[str, float]:
    """Seconds until the clone is there, the packages are installed, and the first figure is, from the first command."""
    caches = {name: str(folder / "cache") for name in ("XDG_CACHE_HOME", "HF_HOME", "PIP_CACHE_DIR")}
    environment = {key: value for key, value in os.environ.items() if key not in ("DATA_DIR", "VIRTUAL_ENV")}
    environment |= {**caches, "PIP_NO_CACHE_DIR": "1", "PROFILE": "quick"}
    series, start = folder / "series", perf_counter()
    subprocess.run(["git", "clone", "-q", str(ROOT), str(series)], check=True)
    seconds = {"clone": perf_counter() - start}
    run = subprocess.Popen(["make", "run"], cwd=series, env=environment, start_new_session=True)
    try:
        for name, pattern in (("installed", ".venv/.installed"), ("first figure", "Data/quick/*.png")):
            while not any(series.glob(pattern)):
                if run.poll() is not None:
                    raise SystemExit(f"make run ended with {run.returncode}, before {pattern} was there")
                sleep(0.1)
            seconds[name] = perf_counter() - start
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGTERM)
        run.wait()
    return {name: round(value) for name, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="for the clone; default: one that goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        seconds = measure((options.folder or Path(scratch)).resolve())
    rows = [{"example": "this series", "commands": list(OURS), "seconds": seconds}]
    rows += [{"example": BESIDE + name, "commands": list(commands)} for name, commands in OTHERS.items()]
    for row in rows:
        print(f"{row['example']}: {len(row['commands'])} commands", row.get("seconds", ""))
    execution = fastest_execution()
    record = StudyRecord("install", "python tests/install.py", None, device_label(execution), {}, rows)
    record.save(device_folder(execution))


if __name__ == "__main__":
    main()
