"""What a trained folder is for: `python -m helpers.predict`, `evaluate`, `export` and `demo`."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
from test_reading import written
from test_train import LABELS, TEXTS, here, trained  # noqa: F401
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from helpers import demo, evaluate, export, predict
from helpers.inference import SentimentClassifier
from helpers.profiles import ROOT

COLUMNS = ["--text-column", "what they wrote", "--label-column", "the verdict"]


@pytest.fixture
def model(trained, here) -> Path:  # noqa: F811
    """The folder of a trained adapter; commands run in fp32 in a folder of their own."""
    return trained / "out" / "model"


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl", None])
@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_each_row_of_a_file_comes_back_in_its_place(model, monkeypatch, capsys, ending, output):
    monkeypatch.setitem(predict.TOKENS_PER_BATCH, "cpu", 2)  # two rows at a time
    texts, ids = [*TEXTS, None, "the plot <br /> was bad " * 40], ["007", "b, c", "", "\u2028\u00e9", "x"]
    Path(f"in{ending}").write_bytes(written(list(zip(texts, ids, strict=True)), ending))
    assert predict.main([str(model), f"in{ending}", *(["--output", output] if output else [])]) == 0
    out, err = capsys.readouterr()
    found = Path(output).read_text("utf-8") if output else out
    if output == "out.csv":
        rows = pd.read_csv(io.StringIO(found), dtype=str, keep_default_na=False).to_dict("records")
    else:
        rows = [json.loads(line) for line in found.split("\n") if line]
    told = iter(SentimentClassifier.from_pretrained(model).predict([text for text in texts if text]))
    for row, text, label in zip(rows, texts, ids, strict=True):
        assert (row["text"] or None, row["label"]) == (text, label)
        answer = next(told) if text else None
        assert (row["predicted"] or None) == (answer and answer.label)
        assert not answer or float(row["probability"]) == pytest.approx(answer.score, abs=1e-6)
    assert "1 of 5 rows have no text" in err and [path.name for path in Path().iterdir() if path.name[0] == "."] == []


def test_texts_and_lines_are_answered_with_every_probability(model, monkeypatch, capsys):
    assert predict.main([str(model), "--text", TEXTS[0], "--text", "- dash", "--all"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{TEXTS[0]}\n\n"))
    assert predict.main([str(model), "-", "--all"]) == 0
    first, dash, again, blank = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == pytest.approx(again, abs=1e-6) and dash["text"] == "- dash" and blank["predicted"] is None
    every = {label: first[f"probability of {label}"] for label in LABELS}
    assert sum(every.values()) == pytest.approx(1, abs=1e-6) and max(every, key=every.get) == first["predicted"]
    monkeypatch.setattr(predict.SentimentClassifier, "from_pretrained", Mock(side_effect=KeyboardInterrupt))
    assert predict.main([str(model), "--text", "a"]) == 130 and capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize(
    ("values", "task", "predicted"),
    [([[0.9, 0.6, 0.2], [0.1, 0.2, 0.3]], "multi", ["a; b", ""]), ([[-2.5], [7.0]], "regression", [-2.5, 7.0])],
)
def test_several_labels_and_numbers_are_answers(values, task, predicted):
    labels = list("abc")[: len(values[0])]
    classifier = SimpleNamespace(task=task, threshold=0.5, labels=labels, probabilities=lambda _: np.array(values))
    cells = pd.DataFrame({"text": ["x", None, "y"]}, dtype=object)
    assert predict.answers(classifier, cells)["predicted"].dropna().tolist() == predicted


def test_a_prediction_that_stops_leaves_the_earlier_output(model, monkeypatch):
    Path("in.csv").write_text("text\none\n")
    Path("out.csv").write_text("earlier")
    for error, status in ((KeyboardInterrupt, 130), (OSError(28, "No space left on device"), 1)):
        monkeypatch.setattr(SentimentClassifier, "probabilities", lambda *_, error=error: (_ for _ in ()).throw(error))
        assert predict.main([str(model), "in.csv", "--output", "out.csv"]) == status
    assert {path.name for path in Path().iterdir()} == {"in.csv", "out.csv"}
    assert Path("out.csv").read_text() == "earlier"


def test_another_file_is_scored_and_texts_of_the_training_are_counted(model, trained, capsys):  # noqa: F811
    assert evaluate.main([str(model), str(trained / "verdicts.csv"), *COLUMNS, "--output", "record.json"]) == 0
    record = json.loads(Path("record.json").read_text())
    settings, said = record["settings"], capsys.readouterr().out
    # all but the split's 52 test rows and the text under two labels; its duplicate is a text of the training rows
    assert (settings["scored"], settings["seen_in_training"]) == (263, 263 - 52 - 2)
    assert settings["correct"].count("1") / 263 == pytest.approx(settings["accuracy"])
    stored = json.loads((model / "report" / "record.json").read_text())["metrics"]["accuracy"]
    assert f"on the other 54: {(52 * stored + settings['correct'][-2:].count('1')) / 54:.1%}" in said
    assert [row["class"] for row in record["rows"]] == LABELS and sum(row["support"] for row in record["rows"]) == 263


WITHOUT_TORCH = """
import json, sys
sys.modules |= dict.fromkeys(("torch", "transformers", "helpers"))
sys.path.insert(0, sys.argv[1])
from predict import OnnxClassifier
texts = json.loads(sys.argv[2])
models = [OnnxClassifier(file=file) for file in ("model.onnx", "model_int8.onnx")]
print(json.dumps([model.probabilities(texts).tolist() for model in models]))
"""


def test_an_exported_model_answers_without_torch(model, trained):  # noqa: F811
    texts = [*TEXTS, "<br />the  end\n", "the movie was great " * 60 + "awful " * 30, ""]
    command = [sys.executable, "-c", WITHOUT_TORCH, str(model / "onnx"), json.dumps(texts)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = SentimentClassifier.from_pretrained(model).probabilities(texts)
    for found, tolerance in zip(json.loads(done.stdout), (1e-4, 0.1), strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance)
    printed = (trained / "printed.txt").read_text("utf-8")
    assert "model.onnx, " in printed and "52 of 52 answers are the model's, off by 0.0000" in printed


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (predict.main, ["MODEL"], "Name a FILE"),
        (predict.main, ["MODEL", "no.csv"], "There is no file no.csv"),
        (predict.main, ["MODEL", "x.csv", "--text-column", "words"], "no column 'words'; it has 'text', 'predicted'"),
        (predict.main, ["MODEL", "x.csv"], "column 'predicted' already"),
        (predict.main, ["no-such", "--text", "a"], "Could not load 'no-such': it is not here"),
        (predict.main, ["BASE", "--text", "a"], "is no trained classifier: it lacks classifier.bias"),
        (evaluate.main, ["MODEL", "x.csv", "--label-column", "predicted"], "not have: y; the model has no | verdict"),
        (predict.main, ["MODEL", "--text", "a", "--output", "MODEL"], "must be a file that ends in .csv or .jsonl"),
        (predict.main, ["MODEL", "--text", "a", "--output", "x.tsv"], "must be a file that ends in .csv or .jsonl"),
        (evaluate.main, ["MODEL", "x.csv", "--output", "scores.txt"], "name a file that ends in .json"),
        (export.main, ["MODEL", "MODEL"], "not empty"),
        (export.main, ["MODEL", "new", "--data", "no.csv"], "There is no file no.csv"),
    ],
)
def test_bad_input_is_one_line(model, tiny_checkpoints, capsys, main, arguments, message):
    Path("x.csv").write_text("text,predicted\na,y\n")
    places = {"MODEL": str(model), "BASE": tiny_checkpoints["bert"]}
    assert main([places.get(word, word) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err and not out
    assert [path.name for path in Path().iterdir()] == ["x.csv"]


def test_dates_and_long_numbers_come_back_as_they_were(model):
    pd.DataFrame({"text": ["a"], "at": [pd.Timestamp("2026-01-02")], "x": [0.123456789012345]}).to_parquet("a.parquet")
    assert predict.main([str(model), "a.parquet", "--output", "b.jsonl"]) == 0
    row = json.loads(Path("b.jsonl").read_text())
    assert row["at"].startswith("2026-01-02T00:00:00") and row["x"] == 0.123456789012345
    Path("a.csv").write_text('text\na\n\n"b\rc"\n', newline="")
    assert predict.main([str(model), "a.csv", "--output", "b.csv"]) == 0
    assert pd.read_csv("b.csv")["predicted"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(("main", "package"), [(demo.main, "gradio"), (export.main, "onnxruntime")])
def test_a_missing_package_is_one_line(model, monkeypatch, capsys, main, package):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(export, "installed_versions", dict)
    assert main([str(model), *(["new"] if main is export.main else [])]) == 2
    err = capsys.readouterr().err
    assert "pip install " in err and package in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["distilbert", "roberta", "modernbert"])
def test_other_encoders_are_exported(tiny_checkpoints, tmp_path, architecture):
    loaded = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoints[architecture], num_labels=3)
    for one in (loaded, AutoTokenizer.from_pretrained(tiny_checkpoints[architecture])):
        one.save_pretrained(tmp_path / "plain")
    assert "3 of 3 answers" in export.export_onnx(tmp_path / "plain", tmp_path / "onnx", TEXTS)


@pytest.mark.slow
def test_the_page_answers_in_a_browser(model):
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("no browser is installed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "helpers.demo", str(model), "--port", "7917"]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert "7917" in next(line for line in server.stdout if "http" in line)
        assert urlopen("http://127.0.0.1:7917").status == 200
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto("http://127.0.0.1:7917")
            page.get_by_label("Text").fill(TEXTS[0])
            page.get_by_role("button", name="Submit").click()
            page.get_by_text("%").first.wait_for()
            shown = page.locator("body").inner_text()
        ours = SentimentClassifier.from_pretrained(model).predict(TEXTS[0])[0]
        assert all(label in shown for label in LABELS) and f"{ours.score:.0%}" in shown
    finally:
        server.terminate()
        server.wait()
