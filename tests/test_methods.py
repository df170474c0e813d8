import json

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from helpers.data import tokenize
from helpers.evaluation import mean_embeddings
from helpers.models import count_parameters, load_tokenizer
from helpers.profiles import COMMITTED
from helpers.recipes import RECIPES
from helpers.trainer import make_trainer
from lab import peft_results, rivals
from lab.methods import METHODS, build_method
from lab.news import load_headlines


@pytest.mark.parametrize("name", METHODS)
def test_each_method_trains_what_it_says_and_the_classifier(name, tiny_checkpoints):
    base = tiny_checkpoints["bert"]
    model, batch = build_method(name, base, "bf16", seed=0).train(), load_tokenizer(base)(["great", "bad plot"])
    batch = {**load_tokenizer(base).pad(batch, return_tensors="pt"), "labels": torch.tensor([1, 0])}
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch).loss.backward()
    trained = {key for key, weight in model.named_parameters() if weight.requires_grad}
    assert any("classifier" in key for key in trained)
    assert all(model.get_parameter(key).dtype == torch.float32 for key in trained)
    assert count_parameters(model)[0] == sum(model.get_parameter(key).numel() for key in trained)
    got = {key for key, weight in model.named_parameters() if weight.grad is not None}
    assert got <= trained and len(got) >= len(trained) - 6, trained - got
    assert (len(trained) == len(list(model.parameters()))) == (name == "full fine-tuning")
    if name == "BitFit":
        assert all(key.endswith(".bias") or "classifier" in key for key in trained)


@pytest.mark.parametrize(("name", "alpha"), [("LoRA", 128), ("rsLoRA", 32)])
def test_another_rank_takes_alpha_with_it_but_for_rslora(name, alpha, tiny_checkpoints):
    for rank, expected in ((64, alpha), (None, 32)):
        config = build_method(name, tiny_checkpoints["bert"], "fp32", seed=0, rank=rank).active_peft_config
        assert (config.r, config.lora_alpha) == (rank or 16, expected)


def test_headlines_are_the_first_lines_of_the_sections_without_duplicates(tmp_path):
    for file, text in {"tech/1": "Net\nlong", "tech/2": "Net ", "sport/1": "A £5m <br/> cup\n\nIt was."}.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / f"{file}.txt").write_text(text, encoding="utf-8")
    rows = load_headlines(tmp_path)
    assert rows["text"][:] == ["A £5m cup", "Net"] and rows.features["label"].names == ["sport", "tech"]
    assert rows["label"][:] == [0, 1]


def test_lora_plus_has_two_rates_and_adalora_moves_its_ranks(tiny_checkpoints, toy_reviews, tiny_profile, tmp_path):
    recipe, base = RECIPES["lora_bert_sst2"].improved(), tiny_checkpoints["bert"]
    tokenizer = load_tokenizer(base)
    tokens = tokenize(toy_reviews.select(range(32)), tokenizer, 16)
    for name in ("LoRA+", "AdaLoRA"):
        model = build_method(name, base, "fp32", seed=0)
        trainer = make_trainer(model, tokenizer, recipe, {"train": tokens}, tiny_profile, tmp_path, "none")
        METHODS[name].prepare(trainer)
        if name == "LoRA+":
            groups = [group for group in trainer.optimizer.param_groups if group["params"]]
            assert {round(group["lr"] / trainer.args.learning_rate) for group in groups} == {1, 16}
        else:
            steps = []
            model.base_model.update_and_allocate = steps.append
            trainer.args.max_steps = 3
            trainer.train()
            assert steps == [1, 2, 3] and model.active_peft_config.total_step == 3
            assert model.base_model.rankallocator.peft_config is model.active_peft_config


def test_the_nearest_centroid_is_by_angle_and_contrastive_tuning_parts_the_classes(
    tiny_checkpoints, toy_reviews, tmp_path, monkeypatch
):
    far_along_one_axis = np.array([[9.0, 1.0], [0.2, 0.0], [0.1, 1.0], [0.0, 8.0]])
    model = rivals.nearest_centroid((far_along_one_axis, [0, 0, 1, 1]))
    assert model.predict([[0.01, 0.0], [2.0, 30.0]]).tolist() == [0, 1]

    monkeypatch.setattr(rivals, "RATE", 1e-2)
    base, rows = tiny_checkpoints["bert"], toy_reviews.select(range(48))
    trained = rivals.contrastive_encoder(rows, base, 0, "fp32", tmp_path / "tuned")
    tokenizer, parted = load_tokenizer(base), []
    ids = tokenizer(toy_reviews["text"][48:96])["input_ids"]
    for encoder in (base, str(tmp_path / "tuned")):
        parted.append(silhouette_score(mean_embeddings(encoder, tokenizer, ids, "fp32"), toy_reviews["label"][48:96]))
    assert parted[1] > parted[0] + 0.2 and trained > 1_000


def test_the_files_in_the_form_of_peft_s_comparison_are_those_of_the_records(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    peft_results.main([])
    own, committed = (sorted((place / "full/method_comparison").iterdir()) for place in (tmp_path, COMMITTED))
    assert [path.name for path in own] == [path.name for path in committed] != []
    for path, other in zip(own, committed, strict=True):
        found, expected = (json.loads(one.read_text(encoding="utf-8")) for one in (path, other))
        configs = [one["run_info"].pop("peft_config") or {} for one in (found, expected)]
        assert found == expected and configs[0].get("peft_type") == configs[1].get("peft_type"), path.name
