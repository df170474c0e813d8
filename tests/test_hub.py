"""The hub profile without a hub: every recipe and every notebook on the cache that tests/hub.py makes, network off."""

import json
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nbformat
import numpy as np
import pytest
from hub import CASED, NOWHERE, UNCASED, make_hub
from nbclient import NotebookClient

from helpers import data
from helpers.base.hub import REVISIONS
from helpers.profiles import PROFILES
from helpers.recipes import RECIPES
from helpers.results import RunRecord

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRAINED_IN = {
    "lora_distilbert_qv": "02_lora_distilbert",
    "lora_distilbert_q": "02_lora_distilbert",
    "qlora_bert": "03_qlora_bert",
    "lora_bert_cased": "06_lora_bert",
    "lora_bert_sst2": "06_lora_bert",
}
TOKENS = {"bert-base-uncased": UNCASED, "bert-base-cased": CASED, "distilbert-base-uncased": UNCASED}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> dict[str, str]:
    """The environment of a process that has the `hub` profile, the made cache, a data folder and no network."""
    folder = tmp_path_factory.mktemp("data")
    small = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}  # two of these models run faster side by side
    return {**os.environ, **make_hub(tmp_path_factory.mktemp("home")), **small, "DATA_DIR": str(folder)}


@pytest.fixture(scope="module")
def running(hub, request) -> dict[str, Future]:
    """The outputs as text of each notebook that the chosen tests need; two run at a time."""
    chosen = [item.callspec.id for item in request.session.items if "running" in item.fixturenames]
    chosen = {TRAINED_IN.get(name, name) for name in chosen}
    with ThreadPoolExecutor(2) as workers:
        yield {path.stem: workers.submit(_run_notebook, hub, path) for path in NOTEBOOKS if path.stem in chosen}
        workers.shutdown(cancel_futures=True)


def _run_notebook(environment: dict[str, str], path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
    )
    client.execute(env=environment)
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def _python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_through(running, path):
    shown = running[path.stem].result()
    assert "LABEL_" not in shown and "Warning" not in shown


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_notebook_trains_a_recipe_on_its_own_checkpoint_and_data(hub, running, name):
    running[TRAINED_IN[name]].result()
    _trained(hub, name)


def test_a_command_trains_a_recipe_on_its_own_checkpoint_and_data(hub, tmp_path):
    environment = hub | {"DATA_DIR": str(tmp_path)}  # the notebooks write runs of the same names
    done = _python(environment, "-m", "helpers.train", "lora_bert_cased")
    assert done.returncode == 0, done.stderr[-3_000:]
    _trained(environment, "lora_bert_cased")


def _trained(environment: dict[str, str], name: str) -> None:
    recipe, folder = RECIPES[name], Path(environment["DATA_DIR"]) / "hub"
    record = RunRecord.load(folder / "results" / f"{name}-as_written-seed42.json")
    assert (record.profile, record.base_model) == ("hub", recipe.base_model)
    assert record.revisions[recipe.base_model] == REVISIONS[recipe.base_model]
    assert record.revisions[record.dataset] == REVISIONS.get(record.dataset, "d" * 40)
    assert record.total_params > 64 * TOKENS[recipe.base_model]
    assert all(np.isfinite(row["loss"]) for row in record.history["train"])
    settings = json.loads((folder / "checkpoints" / record.name / "inference.json").read_text())
    assert (settings["base_model"], settings["labels"]) == (recipe.base_model, ["NEGATIVE", "POSITIVE"])


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_hub_and_a_cache_there_is_one_error_soon(tmp_path, offline):
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    environment = {**os.environ, **nowhere, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": offline}
    code = """if True:
        from time import perf_counter
        from helpers.data import load_reviews
        from helpers.models import load_classifier
        from helpers.profiles import PROFILES, Execution
        for load, arguments in (
            (load_reviews, ("imdb", PROFILES["hub"])),
            (load_classifier, ("bert-base-uncased", Execution("cpu", "fp32", "eager"))),
        ):
            start = perf_counter()
            try:
                load(*arguments)
            except ConnectionError as error:
                print(perf_counter() - start, error, sep=" s: ")
    """
    done = _python(environment, "-c", code)
    reviews, classifier = done.stdout.splitlines()
    assert "'stanfordnlp/imdb'" in reviews and "'bert-base-uncased'" in classifier
    assert all(float(line.split(" s: ")[0]) < 10 and "PROFILE=quick" in line for line in (reviews, classifier))


def test_the_command_without_a_hub_says_so_in_one_line(tmp_path):
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), NOWHERE)
    environment = {**os.environ, **nowhere, "PROFILE": "hub", "HF_HOME": str(tmp_path), "DATA_DIR": str(tmp_path)}
    environment.pop("HF_HUB_OFFLINE", None)
    code = """if True:
        import sys
        from time import perf_counter
        from helpers import train
        start = perf_counter()
        status = train.main(["lora_distilbert_q"])
        print(perf_counter() - start)
        sys.exit(status)
    """
    done = _python(environment, "-c", code)
    assert float(done.stdout.splitlines()[-1]) < 10
    assert done.returncode == 2 and "PROFILE=quick" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_half_a_dataset_in_the_cache_is_not_taken_for_the_whole(tmp_path, monkeypatch):
    make_hub(tmp_path)
    (folder,) = (tmp_path / "hub").glob("datasets--stanfordnlp--imdb/snapshots/*")
    monkeypatch.setattr(data, "download_dataset", lambda name, patterns: folder)
    assert set(data.load_reviews("imdb", PROFILES["hub"])) == {"train", "test"}
    (folder / "plain_text" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ConnectionError, match=r"'stanfordnlp/imdb'.*PROFILE=quick"):
        data.load_reviews("imdb", PROFILES["hub"])
