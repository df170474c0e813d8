import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForSequenceClassification, pipeline

from helpers import evaluation
from helpers.adapters import INFERENCE_FILE, save_adapter
from helpers.checkpoints import label_maps
from helpers.data import LABELS, truncate
from helpers.evaluation import predict_logits
from helpers.inference import SentimentClassifier
from helpers.models import build_model, load_tokenizer
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT, Execution
from helpers.recipes import RECIPES

TEXTS = ["A wonderful, wonderful film.", "Bad.", "I want my two hours back. " * 30, "So-so<br />at best", ""]
FP32 = Execution("cpu", "fp32", "eager")

CASES = {
    "bert-lora": (RECIPES["lora_bert_sst2"].improved(), EMBEDDED_BERT),
    "bert-qlora": (RECIPES["qlora_bert"].improved(), EMBEDDED_BERT),
    "distilbert-lora": (RECIPES["lora_distilbert_qv"], EMBEDDED_DISTILBERT),
    "distilbert-qlora": (replace(RECIPES["lora_distilbert_qv"], quantization="nf4"), EMBEDDED_DISTILBERT),
}


def perturbed(recipe, base_model):
    """A model whose every trainable weight is off its start, as training would leave it."""
    model = build_model(recipe, base_model, FP32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save(case, folder):
    """(folder, recipe, logits of TEXTS in memory) of an adapter saved to `folder`."""
    recipe, base_model = CASES[case]
    model, tokenizer = perturbed(recipe, base_model), load_tokenizer(base_model)
    save_adapter(
        model, tokenizer, folder, base_model=base_model, quantization=recipe.quantization, max_length=64,
        truncation=recipe.truncation,
    )  # fmt: skip
    cleaned = [text.replace("<br />", " ").strip() for text in TEXTS]
    ids = [truncate(row, 64, recipe.truncation) for row in tokenizer(cleaned)["input_ids"]]
    return folder, recipe, predict_logits(model, tokenizer, ids, FP32)


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def saved(request, tmp_path_factory):
    return save(request.param, tmp_path_factory.mktemp("saved") / "adapter")


def test_a_fresh_process_gives_the_same_logits(tmp_path):
    expected = {case: save(case, tmp_path / case)[2] for case in CASES}
    program = (
        "import json, sys\nfrom helpers.inference import SentimentClassifier\nfrom helpers.profiles import Execution\n"
        "fp32, texts = Execution('cpu', 'fp32', 'eager'), json.loads(sys.argv[1])\n"
        "load = SentimentClassifier.from_pretrained\n"
        "print(json.dumps([load(folder, fp32).logits(texts).tolist() for folder in sys.argv[2:]]))"
    )
    command = [sys.executable, "-c", program, json.dumps(TEXTS), *(str(tmp_path / case) for case in CASES)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for case, found in zip(CASES, json.loads(output.strip().splitlines()[-1]), strict=True):
        assert np.ptp(expected[case]) > 0.1, case
        np.testing.assert_allclose(np.array(found), expected[case], atol=1e-5, err_msg=case)


def test_the_base_is_stored_as_it_was_trained(saved):
    folder, recipe, _ = saved
    model = SentimentClassifier.from_pretrained(folder, FP32).model
    assert sum(isinstance(module, Linear4bit) for module in model.modules()) == (36 if recipe.quantization else 0)
    assert hasattr(model, "peft_config") == bool(recipe.quantization)  # full precision is merged


def test_half_precision_stores_what_can_be_stored_and_says_the_same(saved):
    folder, recipe, logits = saved
    classifier = SentimentClassifier.from_pretrained(folder, replace(FP32, precision="bf16"))
    parameters = classifier.model.parameters()
    stored = {parameter.dtype for parameter in parameters if parameter.dtype != torch.uint8}
    assert stored == ({torch.float32} if recipe.quantization else {torch.bfloat16})
    found = classifier.logits(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, logits, atol=0.02)  # bf16 keeps 8 bits: the logits are below 1
    assert not np.array_equal(found, logits), "computed in fp32"


def test_plain_transformers_loads_the_folder(saved):
    folder, recipe, _ = saved
    answer = pipeline("text-classification", model=str(folder))("A wonderful, wonderful film.", top_k=None)
    scores = {row["label"]: row["score"] for row in answer}
    ours = SentimentClassifier.from_pretrained(folder, FP32).predict("A wonderful, wonderful film.")[0]
    tolerance = 0.05 if recipe.quantization else 1e-5  # pipeline loads the base in full precision
    assert scores[ours.label] == pytest.approx(ours.score, abs=tolerance)


def test_pipeline_answers_with_our_labels_on_a_base_without_them(tiny_checkpoints, tmp_path):
    base_model = tiny_checkpoints["bert"]
    recipe = replace(RECIPES["lora_bert_sst2"], base_model=base_model)
    model = build_model(recipe, base_model, FP32)
    options = {"quantization": None, "max_length": 16, "truncation": "head"}
    folder = save_adapter(model, load_tokenizer(base_model), tmp_path / "a", base_model=base_model, **options)
    bare = pipeline("text-classification", model=str(folder))("the movie was great")[0]
    id2label, label2id = label_maps(LABELS)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, id2label=id2label, label2id=label2id)
    named = pipeline("text-classification", model=loaded, tokenizer=str(folder))("the movie was great")[0]
    assert bare["label"] in ("LABEL_0", "LABEL_1") and named["label"] in ("NEGATIVE", "POSITIVE")
    assert named["score"] == pytest.approx(bare["score"], abs=1e-6), "another adapter, or none"


def test_predictions_answer_one_many_and_none(saved, monkeypatch):
    monkeypatch.setitem(evaluation.TOKENS_PER_BATCH, "cpu", 12)
    folder, _, logits = saved
    classifier = SentimentClassifier.from_pretrained(folder, FP32)
    many = classifier.predict(TEXTS)
    assert [answer.label for answer in many] == [("NEGATIVE", "POSITIVE")[row.argmax()] for row in logits]
    assert all(0.5 <= answer.score <= 1 for answer in many)
    one = classifier.predict(TEXTS[0])
    assert len(one) == 1 and one[0].score == pytest.approx(many[0].score, abs=1e-6)
    assert classifier.predict([]) == []


def test_wrong_input_is_named(saved):
    classifier = SentimentClassifier.from_pretrained(saved[0], FP32)
    with pytest.raises(TypeError, match="must be strings, and text 1 is nan \\(float\\), not a string"):
        classifier.predict(["good", float("nan")])
    with pytest.raises(ValueError, match=r"text 2 has half a character, the lone surrogate '\\ud83d', at 5\."):
        classifier.predict(["", "good", "good \ud83d"])


@pytest.mark.parametrize("missing", [INFERENCE_FILE, "adapter_model.safetensors"])
def test_a_folder_that_is_no_adapter_says_what_it_lacks(saved, tmp_path, missing):
    for path in saved[0].iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match=missing):
        SentimentClassifier.from_pretrained(tmp_path)


def test_an_embedded_adapter_travels_to_a_machine_with_other_folders(saved, tmp_path):
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/somewhere/else/minilm"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = SentimentClassifier.from_pretrained(tmp_path, FP32).logits(TEXTS)
    np.testing.assert_allclose(found, saved[2], atol=1e-5)
