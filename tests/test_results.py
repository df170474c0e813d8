"""Records: what they hold, and that they, figures and adapters appear whole or not at all."""

import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from datasets import DatasetDict
from matplotlib.image import imread

from helpers import files, results
from helpers.files import DiskFull, new_file, new_folder, write_json, write_text
from helpers.inference import save_adapter
from helpers.models import build_model, load_tokenizer
from helpers.plots import draw_intervals, provenance, save_figure
from helpers.profiles import COMMITTED
from helpers.recipes import RECIPES
from helpers.results import RunRecord, StudyRecord, check_stored, load_records, make_record, peak_memory


def test_a_record_comes_back_as_it_was_and_another_file_is_refused_by_field_name(record, tmp_path):
    path = record.save(tmp_path / "results")
    assert path.name == "qlora_bert-improved-seed42.json"
    assert load_records(tmp_path / "results") == [record] and load_records(tmp_path / "nothing") == []
    whole, study = asdict(record), asdict(StudyRecord("ranks", "python x", "quick", "cpu", {}, []))
    for kind, data, said in (
        (RunRecord, whole | {"extra": 2}, "extra"),
        (RunRecord, whole | {"n_test": "many"}, "n_test"),
        (RunRecord, {key: value for key, value in whole.items() if key != "seed"}, "seed"),
        (StudyRecord, {key: value for key, value in study.items() if key != "command"}, "command"),
    ):
        with pytest.raises(ValueError, match=rf"(?s)a\.json is no record.*{said}"):
            kind.load(write_json(tmp_path / "a.json", data))


def test_every_committed_record_loads_with_the_values_that_it_holds():
    kinds = []
    for path in COMMITTED.rglob("*.json"):
        held = json.loads(path.read_text(encoding="utf-8"))
        if "git_commit" in held and "settings" in held:
            kinds.append(RunRecord if "variant" in held else StudyRecord)
            loaded = asdict(kinds[-1].load(path))
            assert {name: loaded[name] for name in held} == held, path
    assert set(kinds) == {RunRecord, StudyRecord} and len(kinds) > 60


def test_a_record_counts_the_rows_the_weights_and_the_predictions(toy_reviews, tiny_profile, tiny_checkpoints):
    splits = DatasetDict(train=toy_reviews.select(range(8)), test=toy_reviews.select(range(100, 108)))
    recipe = RECIPES["lora_bert_sst2"].with_settings([f"base_model={tiny_checkpoints['bert']}"])
    predictions = np.array([0, 1, 0, 1, 0, 1, 1, 0])  # the last two are wrong
    record = make_record(recipe, splits, tiny_profile, predictions, build_model(recipe, recipe.base_model))
    assert (record.n_train, record.n_validation, record.n_test, record.max_length) == (8, 0, 8, 16)
    assert record.confusion_matrix == [[3, 1], [1, 3]] and record.correct == "11111100"
    assert (record.metrics["accuracy"], record.precision, record.variant) == (0.75, "fp32", "as_written")
    assert record.weights_bytes == 4 * record.total_params > 4 * record.trainable_params > 0
    assert record.revisions[recipe.base_model].startswith("sha256:") and record.created_at.endswith("+00:00")
    assert {"python", "torch", "transformers", "peft", "bitsandbytes"} <= set(record.versions)
    assert record.settings["r"] == 8 and json.loads(json.dumps(record.settings)) == record.settings


def test_a_record_says_which_command_made_it(monkeypatch):
    monkeypatch.delenv(results.COMMAND, raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["/x/python", "-m", "helpers.train", "a b", "--output", f"{Path.home()}/out"])
    assert results.running_command() == "python -m helpers.train 'a b' --output ~/out"
    monkeypatch.setattr(sys, "orig_argv", ["/x/python", "-m", "ipykernel_launcher", "-f", "x.json"])
    assert results.running_command() is None
    monkeypatch.setenv(results.COMMAND, "python -m helpers.series 02")
    assert results.running_command() == "python -m helpers.series 02"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak since a moment")
def test_the_peak_is_that_since_the_reset():
    size, peaks = 300_000_000, []
    for _ in range(2):
        np.ones(size, dtype=np.uint8)
        peaks.append(peak_memory("cpu")[0])
        results.reset_peak_memory("cpu")
    assert 0.9 * size < peaks[1] - peak_memory("cpu")[0] < 1.5 * size


def test_a_saved_figure_shows_the_intervals_and_says_where_it_comes_from(record, tmp_path):
    figure, axes = plt.subplots()
    low, high = record.accuracy_ci95
    point = {"accuracy": record.metrics["accuracy"], "low": low, "high": high, "accuracies": []}
    draw_intervals(axes, ["one", "two"], [point, point], ["blue", "red"])
    assert list(axes.lines[0].get_xdata()) == [low, high]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    path = save_figure(figure, tmp_path / "new" / "figure.png", provenance(record))
    assert imread(path).shape[0] > 100
    text = figure.texts[-1].get_text()
    for part in ("quick", "minilm-l6-bert", "imdb", "10 train", "2 validation", "4 test", "cpu", "bf16", "20"):
        assert part in text


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".filler"}


def test_a_link_and_what_is_no_file_stay_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe"), os.symlink(tmp_path / "target", tmp_path / "link")
    write_text(tmp_path / "link", "written")
    with new_file(tmp_path / "pipe") as path:
        assert path == tmp_path / "pipe"
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "written"


@pytest.mark.parametrize("write", [new_file, new_folder])
def test_an_interrupted_write_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, write):
    def fill(text):
        with write(tmp_path / "it") as temporary:
            (temporary / "a" if write is new_folder else temporary).write_text(text)
            assert (tmp_path / "it").exists() == (text == "half"), "not before it is whole"
            if text == "half":
                raise KeyboardInterrupt

    fill("whole")
    before, replace = _contents(tmp_path), os.replace

    def refuse(source, target):
        if target == tmp_path / "it" and "earlier" not in str(source):
            raise SystemExit("the new one cannot be put in place")
        replace(source, target)

    with pytest.raises(KeyboardInterrupt):
        fill("half")
    assert _contents(tmp_path) == before
    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(SystemExit), write(tmp_path / "it"):
        pass
    assert _contents(tmp_path) == before


def test_a_full_disk_is_one_clear_error_and_leaves_what_was_there(full, record, tiny_checkpoints):
    folder, fill, make_room = full
    recipe, base_model = RECIPES["lora_bert_sst2"], tiny_checkpoints["bert"]
    model, tokenizer, figure = build_model(recipe, base_model), load_tokenizer(base_model), plt.figure(figsize=(1, 1))
    writes = {
        record.name: lambda: record.save(folder),
        "figure.png": lambda: save_figure(figure, folder / "figure.png", "made here"),
        "adapter": lambda: save_adapter(model, tokenizer, folder / "adapter", recipe, base_model, 16),
        "README.md": lambda: write_text(folder / "README.md", "x" * 100_000),
    }
    for write in writes.values():
        write()
    before = _contents(folder)
    fill()
    for name, write in writes.items():
        with pytest.raises(DiskFull, match=rf"^There is no room to write .*{re.escape(name)}.*DATA_DIR") as caught:
            write()
        assert "\n" not in str(caught.value)
    make_room()
    assert _contents(folder) == before


def test_stored_accuracies_are_compared_to_within_points(monkeypatch):
    monkeypatch.setenv("PROFILE", "quick")
    assert "LoRA 86.0%" in check_stored({"LoRA": 0.83}, {"LoRA": 0.86})
    with pytest.raises(AssertionError, match=r"LoRA.*-5\.0"):
        check_stored({"LoRA": 0.81}, {"LoRA": 0.86})
    monkeypatch.setenv("PROFILE", "full")
    assert "quick" in check_stored({"LoRA": 0.5}, {"LoRA": 0.86})
