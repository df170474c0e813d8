"""`python -m helpers.train`: a file of one's own becomes an adapter with card, report and model; a recipe, a record."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from helpers import export, train
from helpers.inference import SentimentClassifier
from helpers.models import load_tokenizer
from helpers.profiles import PROFILES, ROOT
from helpers.results import RunRecord, load_records

TEXTS = ["1 the movie was great", "2 the movie was awful very", "the end scene actor"]
LABELS = ["no | verdict", "thumbs $down$", "thumbs up"]
FAST = {"num_train_epochs": "2", "min_updates": "60", "learning_rate": "2e-2"}  # five epochs of 182 rows


def settings_of(values: dict) -> list[str]:
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def command(file, base_model, *options, output="out/model") -> list[str]:
    """The arguments of a short training on a file."""
    columns = ["--text-column", "what they wrote", "--label-column", "the verdict", "--base-model", str(base_model)]
    return ["--data", str(file), *columns, "--output", str(output), *settings_of(FAST), *options]


def write_verdicts(toy_reviews, path: Path, neutral: int = 60, down: int = 100) -> Path:
    """A CSV with column names and label words of its own, three classes, and one defect of each kind."""
    rows = [(text, LABELS[1 + label]) for text, label in zip(toy_reviews["text"], toy_reviews["label"], strict=True)]
    rows = [row for row in rows if row[1] == LABELS[2]] + [row for row in rows if row[1] == LABELS[1]][:down]
    rows += [(f"the end scene {index} actor", LABELS[0]) for index in range(neutral)]
    rows += [(rows[0][0].upper(), rows[0][1]), ("torn", LABELS[1]), ("torn", LABELS[2])]
    pd.DataFrame(rows, columns=["what they wrote", "the verdict"]).to_csv(path, index=False)
    return path


def in_folder(patched: pytest.MonkeyPatch, folder: Path) -> None:
    """The command runs in `folder`, in fp32, and its data folder lies there."""
    patched.chdir(folder)
    patched.setenv("DATA_DIR", str(folder / "Data"))
    patched.setenv("PRECISION", "fp32")
    patched.delenv("HF_TOKEN", raising=False)
    patched.setattr(export, "get_token", lambda: None)


@pytest.fixture(scope="module")
def trained(tiny_checkpoints, toy_reviews, tmp_path_factory) -> Path:
    """The folder of one run: `verdicts.csv`, what was printed as `printed.txt`, and `out/model` with a merged model."""
    folder = tmp_path_factory.mktemp("own")
    write_verdicts(toy_reviews, folder / "verdicts.csv")
    with pytest.MonkeyPatch.context() as patched, open(folder / "printed.txt", "w", encoding="utf-8") as printed:
        in_folder(patched, folder)
        patched.setattr(sys, "stdout", printed)
        assert train.main(command("verdicts.csv", tiny_checkpoints["bert"], "--merge", "--export", "onnx")) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    in_folder(monkeypatch, tmp_path)
    return tmp_path


def test_a_file_becomes_an_adapter_and_a_report(trained):
    assert [path.name for path in (trained / "out").iterdir()] == ["model"]
    assert not [path for path in (trained / "Data").rglob("*") if path.is_file()], "checkpoints are left"
    report = trained / "out" / "model" / "report"
    record = RunRecord.load(report / "record.json")
    assert (record.profile, record.dataset, record.precision) == ("quick", "verdicts.csv", "fp32")
    assert (record.n_train, record.n_validation, record.n_test, record.max_length) == (182, 26, 52, 64)
    assert record.metrics["accuracy"] > 0.6  # the largest class is 38 %
    matrix = np.array(record.confusion_matrix)
    scores = pd.read_csv(report / "class_scores.csv", index_col="class")
    assert list(scores.index) == LABELS and list(scores["rows"]) == list(matrix.sum(axis=1))
    np.testing.assert_allclose(scores["recall"], matrix.diagonal() / matrix.sum(axis=1))
    wrong = pd.read_csv(report / "most_wrong.csv")
    assert len(wrong) == min(20, matrix.sum() - matrix.trace()) and (wrong["label"] != wrong["predicted"]).all()
    assert (report / "confusion.png").stat().st_size > 10_000


def test_terminal_and_card_say_what_was_found_and_scored(trained):
    folder = trained / "out" / "model"
    words = " ".join((trained / "printed.txt").read_text(encoding="utf-8").split())
    card, record = (folder / "README.md").read_text("utf-8"), RunRecord.load(folder / "report" / "record.json")
    assert "duplicates 1 rows 261" in words and "conflicts 2 rows 262, 263" in words
    assert f"Accuracy {record.score} on 52 test rows" in words and record.score in card
    assert all(baseline in text for baseline in ("bag of words", "frozen encoder") for text in (words, card))
    assert "hf upload USER/NAME out/model/merged . --private" in words
    assert "`verdicts.csv`, 263 rows" in card and "1 duplicates, 2 conflicts" in card
    assert "| thumbs up | 70 | 10 | 20 |" in card and "no \\| verdict" in card and "$down$" in card
    assert "bert-tiny" in card and "SentimentClassifier.from_pretrained" in card
    assert (ModelCard(card).data.library_name, ModelCard(card).data.base_model) == ("peft", None)
    merged = ModelCard.load(folder / "merged" / "README.md")
    assert not [path for path in (folder / "merged").iterdir() if bytes(trained.parent) in path.read_bytes()]
    assert merged.data.library_name == "transformers" and "SentimentClassifier" not in merged.text


def test_a_recipe_leaves_a_record_and_an_adapter_named_by_what_was_asked(here, monkeypatch, capsys):
    quick = replace(PROFILES["quick"], n_train=32, n_validation=16, n_test=16, max_length=16, max_epochs=1)
    monkeypatch.setitem(PROFILES, "quick", quick)
    recipe = ["lora_bert_sst2", "--seed", "7", "--set", "r=3", "--set", "learning_rate=2e-3", "--output", "models/one"]
    assert train.main(recipe) == 0
    record, bag = load_records(quick.results)
    assert bag.variant == "bag_of_words" and bag.n_test == len(bag.correct) == 16
    assert record.name == "lora_bert_sst2,r=3,learning_rate=2e-3-as_written-seed7" and bag.seed == 7
    assert (record.settings["r"], record.settings["learning_rate"], record.seed) == (3, 2e-3, 7)
    assert (record.n_train, record.n_test, record.dataset) == (32, 16, "rotten_tomatoes (embedded)")
    out = capsys.readouterr().out
    assert "Profile quick: lora_bert_sst2,r=3,learning_rate=2e-3, as_written, 32 reviews" in out
    assert record.score in out and f"{bag.metrics['accuracy']:.1%}" in out
    assert out.strip().splitlines()[-1] == "Adapter: models/one"
    assert record.adapter_bytes == (here / "models" / "one" / "adapter_model.safetensors").stat().st_size
    assert len(SentimentClassifier.from_pretrained("models/one", "fp32").predict(["fine"])) == 1
    assert not list(quick.checkpoints.iterdir()), "checkpoints are left"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["lora_bert_sst2", "qlora_bert"])
def test_training_goes_on_from_an_adapter(tiny_checkpoints, toy_reviews, here, monkeypatch, recipe):
    write_verdicts(toy_reviews, here / "verdicts.csv")
    own = settings_of({"optim": "adamw_torch", "r": 5, "max_length": 40, "min_updates": 20})
    assert train.main(command("verdicts.csv", tiny_checkpoints["bert"], "--recipe", recipe, *own)) == 0
    seen, plain = [], train.fine_tune

    def look(model, recipe, splits, profile, **options):
        told = {"max_length": 40, "truncation": "head+tail"}
        seen.append(
            (recipe, SentimentClassifier(model, load_tokenizer(recipe.base_model), "fp32", **told).logits(TEXTS))
        )
        return plain(model, recipe, splits, profile, **options)

    monkeypatch.setattr(train, "fine_tune", look)
    more = ["--data", "verdicts.csv", *command("", "")[2:6], "--continue-from", "out/model", "--output", "more"]
    more += settings_of({"num_train_epochs": 1, "learning_rate": "1e-3", "gradient_checkpointing": "True"})
    more += ["--seed", "7"]  # whose test rows the adapter has seen
    assert train.main(more) == 0
    ((going_on, start),) = seen
    before, after = (SentimentClassifier.from_pretrained(name, "fp32").logits(TEXTS) for name in ("out/model", "more"))
    np.testing.assert_allclose(start, before, atol=1e-4)
    assert np.abs(after - before).max() > 1e-3
    assert (going_on.r, going_on.max_length, going_on.quantization) == (5, 40, "nf4" if "qlora" in recipe else None)
    weights = [load_file(f"{name}/adapter_model.safetensors") for name in ("out/model", "more")]
    assert weights[0].keys() == weights[1].keys()
    assert not [name for name, weight in weights[0].items() if torch.equal(weight, weights[1][name])]
    assert "lora_bert_sst2,from adapter " in (here / "more" / "README.md").read_text(encoding="utf-8")
    assert json.loads((here / "more" / "inference.json").read_bytes())["labels"] == LABELS
    assert set(np.load("out/model/training_texts.npy")) < set(np.load("more/training_texts.npy"))


@pytest.mark.slow
def test_a_skewed_file_is_read_by_balanced_accuracy_and_can_be_weighted(tiny_checkpoints, toy_reviews, here, capsys):
    write_verdicts(toy_reviews, here / "skewed.csv", neutral=30, down=20)
    options = ["--class-weights", "balanced", "--calibrate", "--set", "min_updates=150"]
    assert train.main(command("skewed.csv", tiny_checkpoints["bert"], *options)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "skewed; --class-weights balanced" in out and "balanced accuracy gain" in out
    record = RunRecord.load(here / "out" / "model" / "report" / "record.json")
    assert record.settings["class_weights"] == "balanced"
    card = (here / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert f"{record.metrics['balanced_accuracy']:.1%} (the classes are skewed" in card
    assert f"a temperature of {record.settings['temperature']:.2f} fits best" in card
    matrix = np.array(record.confusion_matrix)
    assert (matrix.diagonal() / matrix.sum(axis=1)).min() >= 0.5, "a rare class is not found"


def killed(step: int, arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    """The command in a process of its own that is killed after `step` updates, having saved at each epoch's end."""
    code = f"""if True:
        import os, pytest, signal, sys
        from helpers import train
        from test_resuming import at_step
        at_step({step}, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
        sys.exit(train.main({arguments!r}))
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_weights(trained, here, tiny_checkpoints, capsys):
    shutil.copy(trained / "verdicts.csv", here)
    arguments = command("verdicts.csv", tiny_checkpoints["bert"])
    assert killed(30, arguments, here).returncode == -signal.SIGKILL
    assert not (here / "out" / "model").exists()
    assert train.main(arguments) == 0
    assert "Resuming after 24 updates" in capsys.readouterr().out
    weights = [folder / "out" / "model" / "adapter_model.safetensors" for folder in (here, trained)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not [path for path in (here / "Data").rglob("*") if path.is_file()], "checkpoints are left"
    assert [path.name for path in (here / "out").glob("[!.]*")] == ["model"]


@pytest.mark.slow
def test_a_terminal_that_cannot_show_a_label_gets_escapes(tiny_checkpoints, here):
    rows = "".join(f"text {index},\N{THUMBS UP SIGN}\n" for index in range(40))
    (here / "own.csv").write_text(f"what they wrote,the verdict\nbad,\N{SHRUG}\n{rows}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "helpers.train", *command("own.csv", tiny_checkpoints["bert"])], cwd=here,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "class \\U0001f44d" in done.stdout, done.stderr
    assert done.returncode == 2 and "'\\U0001f937' (1)" in done.stderr, done.stderr
