"""The default profile in a process that has no network at all: a network namespace of its own, without one device."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.publish import MERGED

ROOT = Path(__file__).parent.parent
ALONE = ["unshare", "--map-root-user", "--net"]


def _can_be_alone() -> bool:
    try:
        return subprocess.run([*ALONE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not _can_be_alone(), reason="this system does not let a process leave the network")


def test_data_encoder_training_and_prediction_need_no_network(tmp_path):
    rows = [f"{index} the film was {('awful', 'great')[index % 2]},{('bad', 'good')[index % 2]}" for index in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    code = """if True:
        import socket, sys
        try:
            socket.create_connection(("192.0.2.1", 80), timeout=5)
        except OSError as error:
            print(error.strerror)
        from helpers import train
        from helpers.data import load_splits
        from helpers.inference import SentimentClassifier
        from helpers.profiles import current_profile
        from helpers.recipes import RECIPES
        print({name: len(part) for name, part in load_splits(RECIPES["qlora_bert"], current_profile()).items()})
        arguments = "--data rows.csv --text-column text --label-column label --output model --merge --track".split()
        arguments += ["--set", "min_updates=20"]
        assert train.main(arguments) == 0
        print(SentimentClassifier.from_pretrained("model").predict("the film was great")[0].label)
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_", "DATA_DIR"))}
    environment = {**kept, "PROFILE": "quick", "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "empty"),
                   "DATA_DIR": str(tmp_path / "Data")}  # fmt: skip
    done = subprocess.run(
        [*ALONE, sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    said = done.stdout.splitlines()
    assert said[0] == "Network is unreachable"
    assert said[1] == "{'train': 1000, 'validation': 300, 'test': 1000}"
    assert said[-1] in ("bad", "good")
    assert any(line.startswith("W&B: off") for line in said)
    settings = json.loads((tmp_path / "model" / "inference.json").read_text())
    assert settings["base_model"] == "minilm-l6-bert"
    assert (tmp_path / "model" / MERGED / "model.safetensors").is_file()
