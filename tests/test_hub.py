"""Without a network: the hub profile on the cache that tests/hub.py makes and on none, and the default profile."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hub import NOWHERE, VOCABULARY, make_hub

from helpers.checkpoints import REVISIONS
from helpers.inference import MERGED
from helpers.profiles import ROOT
from helpers.recipes import RECIPES
from helpers.results import RunRecord, StudyRecord

pytestmark = pytest.mark.slow
EACH_RECIPE = """
import sys
from helpers import train
from helpers.recipes import RECIPES
for recipe in RECIPES:
    assert train.main([recipe, *(f"--set={setting}" for setting in sys.argv[1:])]) == 0
from lab import studies
studies.NAMES, studies.LISTS = ["toy"], studies.PROFILES["hub"].figures
shared, run = {"recipe": "lora_bert_sst2", "n_validation": 16, "n_test": 16}, {"changes": {"n_train": 16}, "seeds": [0]}
(studies.LISTS / "toy.json").write_text(studies.json.dumps({**shared, "runs": [run]}))
assert studies.main([]) == 0
"""
SHORT = ["n_train=48", "n_validation=16", "num_train_epochs=1"]
ONE_ERROR = """
from time import perf_counter
from helpers.data import load_reviews
from helpers.models import load_classifier
from helpers.profiles import PROFILES
for load, arguments in ((load_reviews, ("imdb", PROFILES["hub"])), (load_classifier, ("bert-base-uncased",))):
    start = perf_counter()
    try:
        load(*arguments)
    except ConnectionError as error:
        print(perf_counter() - start, error, sep=" s: ")
"""
ALONE = ["unshare", "--map-root-user", "--net"]
NO_NETWORK = """
import socket
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print(error.strerror)
from helpers import train
from helpers.data import load_splits
from helpers.inference import SentimentClassifier
from helpers.profiles import current_profile
from helpers.recipes import RECIPES
assert len(load_splits(RECIPES["qlora_bert"], current_profile())) == 3
assert train.main(["--data", "rows.csv", "--output", "model", "--merge", "--set", "min_updates=20"]) == 0
print(SentimentClassifier.from_pretrained("model").predict("the film was great")[0].label)
"""


def _python(code: str, *arguments: str, **environment: str) -> str:
    command, own = [sys.executable, "-c", code, *arguments], {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env={**os.environ, **environment, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    return done.stdout


def test_each_recipe_trains_on_its_own_checkpoint_and_data(tmp_path):
    _python(EACH_RECIPE, *SHORT, **make_hub(tmp_path / "home") | {"DATA_DIR": str(tmp_path)})
    for recipe in RECIPES.values():
        name = f"{recipe.with_settings(SHORT).name}-as_written-seed42"
        record = RunRecord.load(tmp_path / "hub" / "results" / f"{name}.json")
        assert (record.profile, record.base_model) == ("hub", recipe.base_model)
        assert record.revisions[recipe.base_model] == REVISIONS[recipe.base_model]
        assert record.revisions[record.dataset] == REVISIONS.get(record.dataset, "d" * 40)
        assert record.total_params > 64 * VOCABULARY[recipe.base_model]
        assert all(np.isfinite(row["loss"]) for row in record.history["train"])
        settings = json.loads((tmp_path / "hub" / "checkpoints" / record.name / "inference.json").read_text())
        assert (settings["base_model"], settings["labels"]) == (recipe.base_model, ["NEGATIVE", "POSITIVE"])
        assert settings["base_revision"] == REVISIONS[recipe.base_model]
    study = StudyRecord.load(tmp_path / "hub" / "results" / "studies" / "toy.json")
    assert (study.settings["base_model"], len(study.rows[0]["correct"])) == ("bert-base-uncased", 16)


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_hub_and_a_cache_there_is_one_error_soon(tmp_path, offline):
    reviews, classifier = _python(ONE_ERROR, **NOWHERE, HF_HOME=str(tmp_path), HF_HUB_OFFLINE=offline).splitlines()
    assert "'stanfordnlp/imdb'" in reviews and "'bert-base-uncased'" in classifier
    assert all(float(line.split(" s: ")[0]) < 10 and "PROFILE=quick" in line for line in (reviews, classifier))


def test_data_encoder_training_and_prediction_need_no_network(tmp_path):
    try:
        subprocess.run([*ALONE, "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system does not let a process leave the network")
    rows = [f"{index} the film was {('awful', 'great')[index % 2]},{('bad', 'good')[index % 2]}" for index in range(60)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "HF_"))}
    own = {"PROFILE": "quick", "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "empty"), "DATA_DIR": "Data"}
    command = [*ALONE, sys.executable, "-c", NO_NETWORK]
    done = subprocess.run(command, env={**kept, **own}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.startswith("Network is unreachable") and done.stdout.split()[-1] in ("bad", "good")
    assert (tmp_path / "model" / MERGED / "model.safetensors").is_file()
