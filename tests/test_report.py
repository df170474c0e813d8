"""Baselines, scores and model card of a run. Those of a run that was really trained are in test_train."""

from dataclasses import replace
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import ModelCard

from helpers import report
from helpers.evaluation import PairedComparison
from helpers.models import load_tokenizer
from helpers.own_data import Findings
from helpers.profiles import EMBEDDED_BERT
from helpers.report import Baseline, advice, compare_with_baselines, most_wrong, scores_table
from helpers.training import FineTuned

SETTINGS = {
    "quantization": None, "truncation": "head+tail", "r": 8, "lora_alpha": 16, "target_modules": ["query"],
    "learning_rate": 1e-3, "num_train_epochs": 2, "class_weights": None,
}  # fmt: skip


def rows_of(texts, labels, names) -> Dataset:
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names)), "row": Value("int64")})
    return Dataset.from_dict({"text": texts, "label": labels, "row": range(1, len(texts) + 1)}, features=features)


@pytest.fixture
def splits() -> DatasetDict:
    """32, 4 and 4 rows of two classes, which one word tells."""
    labels = [0, 1] * 20
    rows = rows_of([f"a {('bad', 'good')[label]} plot {k}" for k, label in enumerate(labels)], labels, ("no", "a | b"))
    bounds = {"train": range(32), "validation": range(32, 36), "test": range(36, 40)}
    return DatasetDict({name: rows.select(places) for name, places in bounds.items()})


@pytest.fixture
def result(record, tiny_checkpoints, tmp_path) -> FineTuned:
    """A run on `splits` that is right on all of its test rows but the last."""
    run = replace(record, base_model=tiny_checkpoints["bert"], dataset="mine.csv", precision="fp32", settings=SETTINGS)
    run = replace(run, correct="1110", metrics={"accuracy": 0.75, "balanced_accuracy": 0.7}, max_length=16)
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    predictions, tokenizer = probabilities.argmax(axis=1), load_tokenizer(tiny_checkpoints["bert"])
    return FineTuned(None, tokenizer, run, probabilities, predictions, tmp_path)


@pytest.fixture
def findings() -> Findings:
    return Findings(50, [3, 9], [4], [5], [6, 7], {"no": 20, "a | b": 20}, np.array([5] * 40), 40)


def test_both_baselines_are_trained_on_the_run_s_own_rows(result, splits):
    found = {one.name: one for one in compare_with_baselines(result, splits)}
    assert (found["bag of words"].metrics["accuracy"], found["bag of words"].gain.difference) == (1.0, -0.25)
    assert found["frozen encoder"].gain.difference == pytest.approx(0.75 - found["frozen encoder"].metrics["accuracy"])
    pairs = {name: part.rename_column("text", "pair") for name, part in splits.items()}
    pairs = {name: part.add_column("text", ["the same words"] * len(part)) for name, part in pairs.items()}
    found = {one.name: one for one in compare_with_baselines(result, DatasetDict(pairs))}
    assert found["bag of words"].metrics["accuracy"] == 1.0, "it reads both texts of a pair"


def test_texts_without_common_words_have_no_bag_of_words_and_no_other_failure_is_hidden(result, splits, monkeypatch):
    alone = rows_of([f"w{k}" for k in range(32)], [0, 1] * 16, splits["train"].features["label"].names)
    found = compare_with_baselines(result, DatasetDict({**splits, "train": alone}))
    assert [one.name for one in found] == ["frozen encoder"]
    error = ValueError("This solver needs samples of at least 2 classes in the data")
    monkeypatch.setattr(report.evaluation, "bag_of_words", MagicMock(side_effect=error))
    with pytest.raises(ValueError, match="at least 2 classes"):
        compare_with_baselines(result, splits)


def test_baselines_weight_classes_where_the_run_does(result, splits, monkeypatch):
    spies = {name: MagicMock(wraps=getattr(report.evaluation, name)) for name in ("bag_of_words", "frozen_encoder")}
    for name, spy in spies.items():
        monkeypatch.setattr(report.evaluation, name, spy)
    weighted = replace(result.record, settings={**SETTINGS, "class_weights": "balanced"})
    compare_with_baselines(replace(result, record=weighted), splits)
    assert [spy.call_args.args[-1] for spy in spies.values()] == ["balanced", "balanced"]


@pytest.mark.parametrize(
    ("bag", "frozen", "p_value", "skewed", "said"),
    [
        (0.70, 0.80, 0.3, False, "The frozen encoder is ahead of this model"),
        (0.70, 0.60, 0.3, False, "not significantly better than the bag of words"),
        (0.75, 0.60, 0.01, False, "not significantly better than the bag of words"),
        (0.70, 0.60, 0.01, False, "This model is ahead of the bag of words"),
        (0.60, 0.80, 0.3, True, "This model is ahead of the frozen encoder"),
    ],
)
def test_the_advice_follows_the_best_baseline(result, bag, frozen, p_value, skewed, said):
    gain = PairedComparison(0.05, -0.1, 0.2, p_value)
    scores = {"bag of words": (bag, 0.5), "frozen encoder": (frozen, 0.6)}
    names = ("accuracy", "balanced_accuracy")
    baselines = [Baseline(name, dict(zip(names, both, strict=True)), gain) for name, both in scores.items()]
    assert said in advice(result, baselines, skewed)
    shown = ["70.0%", "50.0%", "60.0%"] if skewed else ["75.0%", f"{bag:.1%}", f"{frozen:.1%}"]
    assert list(scores_table(result, baselines, skewed).iloc[:, 0]) == shown


def test_the_row_most_wrong(result, splits):
    (row,) = most_wrong(result, splits).reset_index().to_dict("records")
    assert (row["row"], row["label"], row["predicted"], row["probability"]) == (40, "a | b", "no", 0.7)


def test_a_report_on_500_classes_and_on_labels_like_formulas(result, findings, tmp_path):
    names = [f"${index} to ${index + 1}_{{" for index in range(500)]
    for count in (500, 3):
        rows = rows_of([f"w{index}" for index in range(count)], range(count), names[:count])
        wrong = np.roll(np.eye(count), 1, axis=1)
        run = replace(result.record, confusion_matrix=wrong.astype(int).tolist(), correct="0" * count, n_test=count)
        folder = tmp_path / str(count)
        folder.mkdir()
        own = replace(result, record=run, probabilities=wrong, predictions=wrong.argmax(axis=1), adapter=folder)
        card = report.write_report(own, DatasetDict(train=rows, validation=rows, test=rows), findings, []).read_text()
        assert (folder / "report" / "confusion.png").is_file() == (count == 3)
        assert f"one of {count} classes" in card and len(card.split("# A LoRA adapter")[1].splitlines()[0]) < 400
    assert pd.read_csv(tmp_path / "500" / "report" / "confusion.csv", index_col=0).shape == (500, 500)


def test_the_card_names_the_base_and_what_does_not_travel(result, findings, splits):
    def card(base_model, merged=False):
        own = replace(result, record=replace(result.record, base_model=base_model))
        return report.model_card(own, splits, findings, [], merged)

    assert ModelCard(card("roberta-base")).data.base_model == "roberta-base"
    for base, local in (("roberta-base", False), (EMBEDDED_BERT, True), (result.record.base_model, True)):
        assert ("not on the Hugging Face Hub" in card(base)) == local == (ModelCard(card(base)).data.base_model is None)
    merged = card(EMBEDDED_BERT, merged=True)
    assert "`mine.csv`, 50 rows" in merged and "2 without text, 1 without label, 1 duplicates, 2 conflicts" in merged
    assert "| a \\| b | 100.0% | 50.0% | 9.5% to 90.5% | 66.7% | 2 |" in merged
