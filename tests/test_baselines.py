import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from sklearn.metrics import accuracy_score
from transformers import AutoModel

from helpers.baselines import BAG_C, bag_of_words, frozen_encoder, mean_embeddings
from helpers.data import load_splits, tokenize
from helpers.models import load_tokenizer
from helpers.profiles import PROFILES
from helpers.recipes import RECIPES


def test_the_bag_of_words_learns_a_word(toy_reviews):
    model = bag_of_words(toy_reviews.select(range(80)), toy_reviews.select(range(80, 100)))
    rest = toy_reviews.select(range(100, 200))
    assert accuracy_score(rest["label"], model.predict(list(rest["text"]))) > 0.95
    assert model.predict_proba(list(rest["text"])).shape == (100, 2)


def test_its_strength_is_the_one_that_validation_rows_like_best():
    splits = load_splits(RECIPES["lora_bert_sst2"], PROFILES["quick"])
    model = bag_of_words(splits["train"], splits["validation"])
    scores = {}
    for c in BAG_C:
        model[-1].C = c
        features = model[0].transform(list(splits["train"]["text"]))
        other = model[-1].fit(features, splits["train"]["label"])
        scored = model[0].transform(list(splits["validation"]["text"]))
        scores[c] = other.score(scored, splits["validation"]["label"])
    chosen = bag_of_words(splits["train"], splits["validation"])
    assert scores[chosen[-1].C] == max(scores.values()) > min(scores.values())
    assert 0.65 < accuracy_score(splits["test"]["label"], chosen.predict(list(splits["test"]["text"]))) < 0.85


def test_an_embedding_is_the_mean_over_the_tokens_of_the_text(fp32, tiny_checkpoints):
    texts = ["the movie was great great great", "bad", "the plot was awful"]
    tokenizer = load_tokenizer(tiny_checkpoints["bert"])
    found = mean_embeddings(tiny_checkpoints["bert"], tokenizer, tokenizer(texts)["input_ids"], fp32)
    model = AutoModel.from_pretrained(tiny_checkpoints["bert"]).eval()
    for text, row in zip(texts, found, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(row, alone, atol=1e-5)


def test_the_frozen_encoder_reads_reviews_and_the_random_one_less_well(fp32):
    splits = load_splits(RECIPES["lora_bert_sst2"], PROFILES["quick"])
    base_model = PROFILES["quick"].base_model("bert-base-uncased")
    tokenizer = load_tokenizer(base_model)
    parts = {name: tokenize(rows, tokenizer, 32).select(range(300)) for name, rows in splits.items()}
    vectors = {
        name: (mean_embeddings(base_model, tokenizer, list(rows["input_ids"]), fp32), rows["label"])
        for name, rows in parts.items()
    }
    model = frozen_encoder(vectors["train"], vectors["validation"])
    assert accuracy_score(vectors["test"][1], model.predict(vectors["test"][0])) > 0.62
    with pytest.raises(ValueError, match="samples"):
        frozen_encoder((vectors["train"][0], vectors["train"][1][:5]), vectors["validation"])


def test_texts_without_common_words_cannot_be_counted():
    rows = Dataset.from_dict({"text": ["alpha", "beta", "gamma"], "label": [0, 1, 0]})
    with pytest.raises(ValueError, match=r"no terms remain|empty vocabulary"):
        bag_of_words(rows, rows)


def test_balanced_weights_find_more_of_a_rare_class(toy_reviews):
    good, bad = (toy_reviews.filter(lambda row, label=label: row["label"] == label) for label in (1, 0))
    noise = np.random.default_rng(0)
    skewed = concatenate_datasets([bad.select(range(60)), good.select(range(6))])
    texts = [text if noise.random() < 0.3 else "the movie" for text in skewed["text"]]
    skewed = Dataset.from_dict({"text": texts, "label": skewed["label"]})
    rest = concatenate_datasets([bad.select(range(60, 70)), good.select(range(60, 70))])
    found = [bag_of_words(skewed, skewed, weights).predict(list(rest["text"])).sum() for weights in (None, "balanced")]
    assert found[0] < found[1]

    vectors = noise.normal(size=(66, 4)) + np.array(skewed["label"])[:, None]
    train = vectors, skewed["label"]
    found = [frozen_encoder(train, train, weights).predict(vectors).sum() for weights in (None, "balanced")]
    assert found[0] < found[1]
