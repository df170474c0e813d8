"""The trivial competitors on the same rows: a bag of words, and the frozen encoder read by its mean embedding."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, PreTrainedTokenizerBase

from helpers.evaluation import predict_in_batches
from helpers.models import from_hub
from helpers.profiles import Execution

BAG_C = (0.1, 1.0, 10.0, 100.0)  # inverse strengths of regularization that are tried on validation rows
ENCODER_C = (0.001, 0.01, 0.1, 1.0)


def bag_of_words(train: Dataset, validation: Dataset, class_weights: str | None = None) -> Pipeline:
    """TF-IDF over words and word pairs with logistic regression, fitted on `train`: the baseline to beat.

    Its C is the one of `BAG_C` that is most accurate on `validation`, by log loss where several are.
    With `class_weights="balanced"` each class counts the same, and the best balanced accuracy decides.
    `.predict(texts)` gives labels, `.predict_proba(texts)` probabilities of shape (n, classes).
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = vectorizer.fit_transform(list(train["text"]))
    scored = vectorizer.transform(list(validation["text"])), validation["label"]
    fitted = [_logistic(c, class_weights).fit(features, train["label"]) for c in BAG_C]
    return make_pipeline(vectorizer, _best(fitted, *scored, class_weights))


def frozen_encoder(
    train: tuple[np.ndarray, Sequence[int]],
    validation: tuple[np.ndarray, Sequence[int]],
    class_weights: str | None = None,
) -> Pipeline:
    """Logistic regression on standardized `mean_embeddings`, (rows, width), with labels; C and `class_weights` as in
    `bag_of_words`."""
    fitted = [make_pipeline(StandardScaler(), _logistic(c, class_weights)).fit(*train) for c in ENCODER_C]
    return _best(fitted, *validation, class_weights)


def _logistic(c: float, class_weights: str | None) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=2_000, class_weight=class_weights)


def _best(fitted: list, rows, labels: Sequence[int], class_weights: str | None):
    score = balanced_accuracy_score if class_weights else accuracy_score

    def quality(model) -> tuple[float, float]:
        loss = log_loss(labels, model.predict_proba(rows), labels=model.classes_)
        return score(labels, model.predict(rows)), -loss

    return max(fitted, key=quality)


def mean_embeddings(
    base_model: str, tokenizer: PreTrainedTokenizerBase, ids: Sequence[list[int]], execution: Execution
) -> np.ndarray:
    """The mean over its tokens of each text's last hidden states, shape (len(ids), width): how sentence encoders are
    read (Reimers and Gurevych 2019, arXiv 1908.10084). Nothing is trained.
    """
    attention = None if execution.attention == "sdpa" else execution.attention
    options = {"dtype": torch.float32, "attn_implementation": attention, "use_safetensors": True}
    model = from_hub(AutoModel.from_pretrained, base_model, **options).to(execution.device)

    def embed(batch) -> torch.Tensor:
        mask = batch["attention_mask"].unsqueeze(-1)
        return (model(**batch).last_hidden_state.float() * mask).sum(1) / mask.sum(1)

    return predict_in_batches(model, embed, model.config.hidden_size, tokenizer, ids, execution)
