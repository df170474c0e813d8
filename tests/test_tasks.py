"""Several labels a text, numbers to predict, and pairs of texts: told apart, trained, saved, and answered the same."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bitsandbytes.nn import Linear4bit
from conftest import WORDS
from sklearn.metrics import f1_score
from test_bad_input import GOOD, refused  # noqa: F401
from test_own_data import rows_of
from test_train import here, settings_of  # noqa: F401
from transformers import pipeline

from helpers import train
from helpers.data import encode
from helpers.evaluation import compare_scores
from helpers.inference import SentimentClassifier
from helpers.models import load_tokenizer
from helpers.own_data import examine, split_rows
from helpers.results import RunRecord
from helpers.tasks import TASKS, best_threshold, micro_f1, read_labels, targets

TAGS = [(), ("bad",), ("good",), ("bad", "good")]
RUNS = [("multi", "bert"), ("regression", "bert"), ("pairs", "bert"), ("pairs", "distilbert")]
RUNS += [("single", "roberta"), ("single", "modernbert"), ("single in 4 bits", "bert"), ("single in 4 bits", "roberta")]
TEXTS, SECOND = ["the movie was great", "bad actor", "the good plot"], ["great", "awful", "awful"]
CASES = {
    "single": (["--text-column", "text", "--label-column", "class"], "2 different labels"),
    "multi": (["--text-column", "text", "--label-column", "tags"], "labels are lists: several labels a text, 40 texts"),
    "regression": (["--text-column", "text", "--label-column", "number"], "160 different numbers: a number to predict"),
    "pairs": (["--text-column", "one", "--text-pair-column", "two", "--label-column", "said"], "2 different labels"),
}
HEADS = {"single": "accuracy", "multi": "macro f1", "regression": "mae", "pairs": "balanced accuracy"}


def examples(count: int = 160) -> list[dict]:
    """Texts whose words tell their tags and a number in the thousands, and pairs whose second text tells the label."""
    rows = []
    for k in range(count):
        tags, filler = TAGS[k % 4], " ".join(WORDS[(k // step) % len(WORDS)] for step in (1, 5, 11))
        first, second = ("great", "awful")[k % 2], ("great", "awful")[k // 2 % 2]
        numbers = {"number": 2_000 + 10 * ("good" in tags) + k / 1_000, "said": "ny"[k // 2 % 2]}
        words = {"text": f"{k} {' '.join(tags)} {filler}", "one": f"{k} {first} {filler}", "two": second}
        rows.append(words | numbers | {"tags": tags, "class": "good" if "good" in tags else "not good"})
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("case", "encoder"), RUNS)
def test_each_task_trains_saves_and_answers_the_same(tiny_checkpoints, here, monkeypatch, capsys, case, encoder):  # noqa: F811
    case, _, in_4_bits = case.partition(" in ")
    monkeypatch.setenv("PRECISION", "bf16" if case == "regression" else "fp32")
    kept, plain = [], train.fine_tune
    monkeypatch.setattr(train, "fine_tune", lambda *a, **options: kept.append(plain(*a, **options)) or kept[-1])
    pd.DataFrame(examples()).to_json("own.jsonl", orient="records", lines=True)
    settings = settings_of({"learning_rate": "5e-3" if encoder == "modernbert" else "2e-2", "num_train_epochs": 6})
    settings += ["--recipe", "qlora_bert", "--set", "optim=adamw_torch"] if in_4_bits else []
    options = ["--data", "own.jsonl", *CASES[case][0], "--base-model", tiny_checkpoints[encoder], "--output", "model"]
    assert train.main([*options, *settings, "--merge"]) == 0
    out, record = capsys.readouterr().out, RunRecord.load("model/report/record.json")
    assert f"own.jsonl: {CASES[case][1]}" in out and f"{record.score} on 32 test rows" in out
    card = Path("model/README.md").read_text(encoding="utf-8")
    assert record.score in card and HEADS[case] in card and "bag of words" in card
    assert record.metrics[record.task.headline] > 0.6
    assert record.history["validation"][-1].keys() == {"step", "epoch", "loss", record.task.headline}
    # The adapter in memory, reloaded, and merged in plain transformers.
    pairs = SECOND if case == "pairs" else None
    told = {"max_length": record.max_length, "truncation": "head", "pairs": bool(pairs)}
    told |= {"task": record.settings["task"], "threshold": record.settings.get("threshold", 0.5)}
    memory = SentimentClassifier(kept[0].model, kept[0].tokenizer, "fp32", **told).probabilities(TEXTS, pairs)
    reloaded = SentimentClassifier.from_pretrained("model", None if case == "regression" else "fp32")
    assert {name: getattr(reloaded, name) for name in ("task", "threshold", "pairs")}.items() <= told.items()
    np.testing.assert_allclose(reloaded.probabilities(TEXTS, pairs), memory, rtol=1e-5, atol=1e-5)
    assert any(isinstance(module, Linear4bit) for module in reloaded.model.modules()) == bool(in_4_bits)
    texts = [{"text": one, "text_pair": two} for one, two in zip(TEXTS, pairs, strict=True)] if pairs else TEXTS
    merged = pipeline("text-classification", model="model/merged", top_k=None)
    answers = merged(texts)
    assert not hasattr(merged.model.config, "quantization_config")
    names = list(reloaded.model.config.id2label.values())
    found = [[{one["label"]: one["score"] for one in row}[name] for name in names] for row in answers]
    np.testing.assert_allclose(found, memory, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="reads single texts" if pairs is None else "reads pairs of texts"):
        reloaded.predict(TEXTS, None if pairs else SECOND)
    if case == "multi":
        assert record.settings["threshold"] == json.loads(Path("model/inference.json").read_text())["threshold"] != 0.5
        expected = [[names[k] for k in np.flatnonzero(row >= reloaded.threshold)] for row in memory]
        assert [[one.label for one in row] for row in reloaded.predict(TEXTS)] == expected
    if case == "regression":
        assert reloaded.predict("the good plot")[0] - reloaded.predict("the plot")[0] > 5
        assert record.metrics["mae"] < 4
    if case == "pairs":
        columns = encode(reloaded.tokenizer, ["good plot " * 20], ["the end"], 12)
        assert len(columns["input_ids"][0]) == 12 and ("token_type_ids" in columns) == (encoder == "bert")
        assert np.abs(memory - reloaded.probabilities(TEXTS, SECOND[::-1])).max() > 1e-3


@pytest.mark.parametrize(
    ("labels", "options", "task", "first"),
    [
        (["a;b", "a", "b"], {}, "multi", ("a", "b")),
        (["a | b", "a", "b"], {}, "multi", ("a", "b")),
        (["['b', 'a']", "['a']"], {}, "multi", ("a", "b")),
        (["['b' 'a c, d']", "['b']"], {}, "multi", ("a c, d", "b")),
        (["[ 2 27]", "[27]"], {}, "multi", ("2", "27")),
        (["[np.str_('b'),\n np.str_('a')]", "[np.str_('b')]"], {}, "multi", ("a", "b")),
        (["('b', 'a')", "('b',)"], {}, "multi", ("a", "b")),
        (["{b,a (x)}", "{b}"], {}, "multi", ("a (x)", "b")),
        (["[7]", "[7]"], {"task": "multi"}, "multi", ("7",)),
        (["x, y z", ("a", "b")], {"task": "multi", "separator": ";"}, "multi", ("x, y z",)),
        (["a;b", "[]", "b", "a"], {}, "multi", ("a", "b")),
        (["2.0", "none"], {}, "single", "2"),
        ([("a",), "b", ()], {}, "multi", ("a",)),
        (["a, b", "a", "b"], {"task": "multi"}, "multi", ("a", "b")),
        (["a/b", "c"], {"separator": "/"}, "multi", ("a", "b")),
        (["Paris, France", "Paris", "France"], {}, "single", "Paris, France"),
        (["one; two", "three", ";)"], {}, "single", "one; two"),
        (["[SPAM]", "[HAM]"], {}, "single", "[SPAM]"),
        ([("a",), ("b",)], {}, "single", "a"),
        (["1.5", "2", "3.5"], {}, "single", "1.5"),
        (["1,5", "2", "3,5"], {"task": "regression"}, "regression", 1.5),
        ([str(k) for k in range(11)], {}, "regression", 0.0),
        ([str(k % 77) for k in range(77 * 13)] + ["77"], {}, "single", "0"),
        ([str(k % 77 + 2) for k in range(77 * 13)] + ["0"], {}, "regression", 2.0),
        ([f"{k % 11}.5" for k in range(11 * 12)], {}, "regression", 0.5),
        ([str(k) for k in range(50)], {"task": "single"}, "single", "0"),
    ],
)
def test_the_task_follows_from_the_labels_unless_it_is_told(labels, options, task, first):
    rows, found, _ = read_labels(rows_of(*[("t", label) for label in [None, *labels]]), **options)
    assert (found, rows["label"].iloc[1]) == (task, first)
    assert rows["label"].isna().tolist() == [True] + [False] * len(labels)


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["3", "x"], ["--task", "regression"], "label of row 2 is 'x', no number"),
        (["1", "inf"], ["--task", "regression"], "label of row 2 is 'inf', no number"),
        (["7"], ["--task", "regression"], "80 texts and 1 different numbers"),
        ([["x"], ["x", "y"]], ["--task", "single"], "row 2 has ('x', 'y'); try --task multi"),
        ([[]], [], "of 0 here 0 are too small"),
        ([["x"], []], ["--task", "multi"], "two classes or more"),
        ([["0", "1"], ["1", "0", "0"]], [], "list the names"),
        ([["x"], ["x", "y"]], ["--class-weights", "balanced"], "--task multi (labels are lists"),
        ([["x"], ["x", 7, None]] * 39 + [["x", "z"]] * 2, [], "'z' (2)"),
        (["x", "y"], ["--text-pair-column", "text"], "no rows of a text and a label"),
        (["x", "y"], ["--text-pair-column", "second", "--set", "truncation=tail"], "truncation=tail is not taken"),
        (["x", "y"], ["--text-pair-column", "gap"], "1 of 80 rows are incomplete: rows 1"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(refused, labels, options, message):  # noqa: F811
    rows = [
        {"text": text, "second": "b", "gap": "b", "label": labels[k % len(labels)]} for k, (text, _) in enumerate(GOOD)
    ]
    rows[0]["gap"] = None
    Path("bad.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert message in refused(*options, file="bad.jsonl")


def test_every_part_has_every_label_and_the_whole_range(tiny_checkpoints):
    several = [("a",)] * 300 + [("a", "b")] * 60 + [("c",)] * 12 + [("a", "b", "c")] * 3 + [()] * 40
    rows = rows_of(*[(f"text {k}", label) for k, label in enumerate(several)], ("TEXT 0", ("a",)), ("text 1", ("b",)))
    findings = examine(rows, load_tokenizer(tiny_checkpoints["bert"]))
    assert (findings.usable, findings.classes, findings.skewed) == (414, {"a": 362, "b": 63, "c": 15}, False)
    splits = split_rows(rows)
    assert all(targets(part).any(axis=0).all() for part in splits.values())
    assert sum(len(part) for part in splits.values()) == 414 and targets(splits["test"]).shape == (83, 3)
    numbers = split_rows(rows_of(*[(f"text {k}", float(k)) for k in range(100)]))
    assert all(abs(targets(part).mean() - 49.5) < 5 for part in numbers.values())
    pairs = rows_of(*[(f"text {k}", "ab"[k % 2]) for k in range(40)]).assign(pair="one")
    again = pd.concat([pairs, pairs.assign(pair="two")]).set_axis(pd.RangeIndex(1, 81, name="row"))
    assert sum(map(len, split_rows(again).values())) == 80  # the same texts, in other pairs


def test_scores_of_several_labels_worked_out():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, (200, 3))
    probabilities = np.clip(0.3 * right + rng.random((200, 3)) * 0.5, 0, 1)
    found = {t: f1_score(right, probabilities >= t, average="micro") for t in np.unique(probabilities)}
    best = best_threshold(probabilities, right)
    assert micro_f1(probabilities >= best, right) == pytest.approx(max(found.values())) == pytest.approx(found[best])
    guess, score = rng.integers(0, 2, (200, 3)), TASKS["multi"].score
    gain = compare_scores(score, (probabilities >= best).astype(int), guess, right)
    assert 0 < gain.low < gain.difference < gain.high and gain.verdict == "better"
    same = compare_scores(score, guess, guess, right)
    assert (same.difference, same.p_value) == (0, 1)
