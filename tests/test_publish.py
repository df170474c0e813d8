"""Card, merged model and upload. Adapters that were really trained are in test_train.py."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from huggingface_hub import ModelCard
from sklearn.metrics import balanced_accuracy_score

from helpers import publish, report
from helpers.card import model_card
from helpers.evaluation import PairedComparison, balanced_accuracy, class_scores
from helpers.own_data import Findings
from helpers.profiles import EMBEDDED_BERT
from helpers.publish import merge_adapter, push_to_hub, write_report
from helpers.report import Baseline, advice, compare_with_baselines, scores_table
from helpers.training import FineTuned

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes | maybe"])})


@pytest.fixture
def splits() -> DatasetDict:
    labels = [0, 1] * 20
    texts = [f"a {('bad', 'good')[label]} plot {index}" for index, label in enumerate(labels)]
    rows = Dataset.from_dict({"text": texts, "label": labels}, features=FEATURES)
    return DatasetDict(
        train=rows.select(range(32)), validation=rows.select(range(32, 36)), test=rows.select(range(36, 40))
    )


@pytest.fixture
def card(record, splits):
    """`card(base_model=..., merged=...)` renders a card of the record fixture."""
    settings = {"quantization": "nf4", "truncation": "head+tail", "r": 8, "lora_alpha": 16, "learning_rate": 1e-3}
    settings |= {"target_modules": ["query"], "per_device_train_batch_size": 4, "num_train_epochs": 2}
    findings = Findings(50, [3, 9], [4], [5], [6, 7], {"no": 20, "yes | maybe": 20}, np.array([5] * 40), 16)
    scores = class_scores(np.array([0, 1, 0, 0]), np.array([0, 1, 0, 1]), ["no", "yes | maybe"])

    def render(base_model="roberta-base", merged=False, baselines=()):
        run = replace(record, base_model=base_model, dataset="mine.csv", settings=settings)
        return model_card(run, splits, findings, scores, baselines, merged)

    return render


def test_the_card_states_data_scores_and_how_to_load(card):
    baselines = [
        Baseline("bag of words", 1.0, 1.0, PairedComparison(-0.25, -0.75, 0.0, 1.0)),
        Baseline("frozen encoder", 0.5, 0.5, PairedComparison(0.25, -0.5, 0.75, 1.0)),
    ]
    text = card(baselines=baselines)
    assert "`mine.csv`, 50 rows. Left out: 2 without text, 1 without label, 1 duplicates, 2 whose" in text
    assert "| no | 16 | 2 | 2 |\n| yes \\| maybe | 16 | 2 | 2 |" in text
    assert "**75.0%**, 95 % interval [50.0%, 100.0%]" in text
    assert "TF-IDF with logistic regression reaches 100.0% on the same rows; the difference is -25.0 points" in text
    assert "the frozen encoder's mean embedding reaches 50.0% on the same rows; the difference is +25.0" in text
    assert "| yes \\| maybe | 100.0% | 50.0% [9.5%, 90.5%] | 66.7% | 2 |" in text  # Wilson's interval of 1 in 2
    assert "SentimentClassifier.from_pretrained" in text and "comes from the Hugging Face Hub" in text
    metadata = ModelCard(text).data
    assert (metadata.base_model, metadata.library_name, metadata.tags[0]) == ("roberta-base", "peft", "qlora")


@pytest.mark.parametrize("matrix", [[[990, 0], [10, 0]], [[70, 3, 2], [0, 1, 4], [2, 0, 0]], [[5, 0], [0, 5]]])
def test_balanced_accuracy_is_scikit_learn_s_inside_its_interval(matrix):
    true, predicted = np.repeat(np.indices(np.shape(matrix)).reshape(2, -1), np.ravel(matrix), axis=1)
    value, low, high = balanced_accuracy(matrix)
    assert value == pytest.approx(balanced_accuracy_score(true, predicted))
    assert low <= value + 1e-12 and value <= high + 1e-12


def test_a_skewed_file_s_card_leads_with_balanced_accuracy_and_class_scores(record, splits):
    settings = {"quantization": None, "truncation": "head", "r": 8, "lora_alpha": 16, "learning_rate": 1e-3}
    settings |= {"target_modules": ["query"], "per_device_train_batch_size": 4, "num_train_epochs": 2}
    run = replace(record, settings=settings | {"class_weights": "balanced"}, confusion_matrix=[[3, 0], [1, 0]])
    findings = Findings(50, [], [], [], [], {"no": 40, "yes | maybe": 10}, np.array([5] * 40), 16)
    scores = class_scores(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]), ["no", "yes | maybe"])
    text = model_card(run, splits, findings, scores, [])
    order = [text.index(part) for part in ("Balanced accuracy,", "**50.0%**", "| class |", "Accuracy on 4 test rows")]
    assert order == sorted(order)
    assert "more than 3 times the rows of the smallest" in text
    assert "an accuracy of 75.0% and a balanced one of 50.0%" in text and "class_weights balanced" in text
    even = model_card(run, splits, replace(findings, classes={"no": 30, "yes | maybe": 20}), scores, [])
    assert "Balanced" not in even and even.index("Accuracy on 4") < even.index("| class |")


def test_a_report_on_500_classes_and_on_labels_like_formulas(record, tmp_path):
    names = [f"${index} to ${index + 1}_{{" for index in range(500)]
    for count, written in ((500, "confusion.csv"), (3, "confusion.png")):
        rows = Dataset.from_dict(
            {"text": [f"w{index}" for index in range(count)], "label": range(count), "row": range(count)},
            features=Features({**FEATURES, "label": ClassLabel(names=names[:count]), "row": Value("int64")}),
        )
        folder = tmp_path / str(count)
        folder.mkdir()
        matrix = np.roll(np.eye(count, dtype=int), 1, axis=1).tolist()
        settings = dict.fromkeys(("quantization", "r", "lora_alpha", "target_modules", "learning_rate"))
        settings |= {"truncation": "head", "per_device_train_batch_size": 4, "num_train_epochs": 2}
        run = replace(record, confusion_matrix=matrix, settings=settings, correct="0" * count, n_test=count)
        result = FineTuned(None, None, run, np.roll(np.eye(count), 1, axis=1), folder)
        findings = Findings(count, [], [], [], [], dict.fromkeys(names[:count], 1), np.array([3]), 16)
        card = write_report(result, DatasetDict(train=rows, validation=rows, test=rows), findings, []).read_text()
        assert (folder / "report" / written).is_file()
        assert len(card.split("# A LoRA adapter")[1].splitlines()[0]) < 400
        assert f"one of {count} classes" in card
    assert pd.read_csv(tmp_path / "500" / "report" / "confusion.csv", index_col=0).shape == (500, 500)


def test_the_card_says_what_does_not_travel(card, tmp_path):
    embedded = card(EMBEDDED_BERT)
    assert "does not travel without that package; the merged folder does" in embedded
    assert ModelCard(embedded).data.base_model is None  # a name that the hub does not know
    (tmp_path / "my-encoder").mkdir()
    local = card(str(tmp_path / "my-encoder"))
    assert "my-encoder, is a folder of the machine that trained" in local and str(tmp_path) not in local


def test_the_merged_model_s_card_is_for_plain_transformers(card):
    text = card(EMBEDDED_BERT, merged=True)
    assert 'pipeline("text-classification"' in text and "helpers" not in text and "TF-IDF" not in text
    assert "longer than 128 tokens are cut (head+tail, where plain transformers keeps the first" in text
    assert ModelCard(text).data.library_name == "transformers"


@pytest.fixture
def own_run(record, tiny_checkpoints):
    """A run on `splits` that is right on the first of its four test rows, and a second record that weights classes."""
    run = replace(record, base_model=tiny_checkpoints["bert"], settings={"truncation": "head"}, correct="1000")
    return run, replace(run, settings={"truncation": "head", "class_weights": "balanced"})


def test_both_baselines_are_trained_on_the_run_s_own_rows(own_run, splits, fp32):
    bag, frozen = compare_with_baselines(own_run[0], splits, fp32)
    assert (bag.name, bag.accuracy, bag.gain.difference) == ("bag of words", 1.0, -0.75)
    assert frozen.name == "frozen encoder" and frozen.accuracy == frozen.balanced_accuracy
    assert frozen.gain.difference == pytest.approx(0.25 - frozen.accuracy)
    shuffled = splits["train"].remove_columns("label").add_column("label", [0, 0, 1, 1] * 8).cast(FEATURES)
    assert compare_with_baselines(own_run[0], DatasetDict({**splits, "train": shuffled}), fp32)[0].accuracy < 1.0


def test_baselines_weight_classes_where_the_run_does(own_run, splits, fp32, monkeypatch):
    seen = []
    for name in ("bag_of_words", "frozen_encoder"):
        original = getattr(report, name)
        spy = lambda *rows, original=original: (seen.append(rows[-1]), original(*rows))[1]  # noqa: E731
        monkeypatch.setattr(report, name, spy)
    for run in own_run:
        compare_with_baselines(run, splits, fp32)
    assert seen == [None, None, "balanced", "balanced"]


def test_texts_without_common_words_have_no_bag_of_words(own_run, splits, fp32):
    rows = Dataset.from_dict({"text": [f"w{index}" for index in range(32)], "label": [0, 1] * 16}, features=FEATURES)
    names = [one.name for one in compare_with_baselines(own_run[0], DatasetDict({**splits, "train": rows}), fp32)]
    assert names == ["frozen encoder"]


@pytest.mark.parametrize(
    ("bag", "frozen", "p_value", "skewed", "said"),
    [
        (0.70, 0.80, 0.3, False, "The frozen encoder is ahead of this model"),
        (0.70, 0.60, 0.3, False, "do not show that this model is better than the bag of words"),
        (0.70, 0.60, 0.01, False, "This model is ahead of the bag of words"),
        (0.70, 0.80, 0.3, True, "This model is ahead of the bag of words"),
    ],
)
def test_the_advice_follows_the_best_baseline(record, bag, frozen, p_value, skewed, said):
    gain = PairedComparison(0.05, -0.1, 0.2, p_value)
    run = replace(record, confusion_matrix=[[1, 0], [1, 2]])  # 75 % and, balanced, 83 %
    baselines = [Baseline("bag of words", bag, 0.80, gain), Baseline("frozen encoder", frozen, 0.5, gain)]
    assert said in advice(run, baselines, skewed)
    table = scores_table(run, baselines, skewed)
    assert list(table.iloc[:, 0]) == (
        ["83.3%", "80.0%", "50.0%"] if skewed else ["75.0%", f"{bag:.1%}", f"{frozen:.1%}"]
    )


def test_merging_asks_for_an_adapter_and_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no saved adapter: it has no inference\.json"):
        merge_adapter(tmp_path, tmp_path / "merged")
    (tmp_path / "inference.json").write_text("{}")
    with pytest.raises(FileExistsError, match="is not empty"):
        merge_adapter(tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["inference.json"]


@pytest.fixture
def hub(monkeypatch) -> list:
    """Calls that reach the hub, which is not there."""
    calls = []

    class Hub:
        def create_repo(self, *arguments, **options):
            calls.append((arguments, options))

        def upload_folder(self, **options):
            calls.append(options)
            return "https://hub/me/model"

    monkeypatch.setattr(publish, "HfApi", Hub)
    monkeypatch.setattr(publish, "get_token", lambda: "token")
    return calls


def test_an_upload_is_private_and_leaves_the_report_here(hub, tmp_path):
    assert push_to_hub(tmp_path, "me/model") == "Uploaded: https://hub/me/model"
    assert hub[0] == (("me/model",), {"private": True, "exist_ok": True})
    assert hub[1] == {"repo_id": "me/model", "folder_path": tmp_path, "ignore_patterns": ["report/*", "merged/*"]}


def test_nothing_is_uploaded_without_a_name_or_a_token(hub, monkeypatch):
    assert "hf upload USER/NAME my-model . --private --exclude 'report/*' 'merged/*'" in push_to_hub("my-model")
    monkeypatch.setattr(publish, "get_token", lambda: None)
    assert "hf upload me/model my-model" in push_to_hub("my-model", "me/model")
    assert not hub


def test_an_upload_that_fails_says_how_to_repeat_it(hub, monkeypatch):
    def refuse(*_, **__):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(publish.HfApi, "upload_folder", refuse)
    line = push_to_hub("my-model", "me/model")
    assert "ConnectionError: no route to host" in line and "hf upload me/model my-model" in line and "\n" not in line

    def wait(*_, **__):
        raise TimeoutError

    monkeypatch.setattr(publish.HfApi, "upload_folder", wait)
    assert "Not uploaded (TimeoutError: )" in push_to_hub("my-model", "me/model")
