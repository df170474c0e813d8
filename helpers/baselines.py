"""The trivial competitors on the same rows: a bag of words, and the frozen encoder read by its mean embedding."""

import os
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

from helpers.base.hub import checkpoint_options
from helpers.checkpoints import resolve_checkpoint
from helpers.evaluation import predict_in_batches
from helpers.profiles import Execution

BAG_C = (0.1, 1.0, 10.0, 100.0)  # inverse strengths of regularization that are tried on validation rows
ENCODER_C = (0.001, 0.01, 0.1, 1.0)
DEFAULT_C = 10.0  # of a bag of words without validation rows


def bag_of_words(train: Dataset, validation: Dataset | None = None, class_weights: str | None = None) -> Pipeline:
    """TF-IDF over words and word pairs with logistic regression, fitted on `train`: the baseline to beat.

    Its C is the one of `BAG_C` that is most accurate on `validation`, by log loss where several are; None: `DEFAULT_C`.
    With `class_weights="balanced"` each class counts the same, and the best balanced accuracy decides.
    `.predict(texts)` gives labels, `.predict_proba(texts)` probabilities of shape (n, classes).
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = vectorizer.fit_transform(list(train["text"]))
    if validation is None:
        classifier = _logistic(DEFAULT_C, class_weights).fit(features, train["label"])
    else:
        scored = vectorizer.transform(list(validation["text"])), validation["label"]
        fitted = [_logistic(c, class_weights).fit(features, train["label"]) for c in BAG_C]
        classifier = _best(fitted, *scored, class_weights)
    return make_pipeline(vectorizer, classifier)


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
    checkpoint = resolve_checkpoint(base_model)
    attention = None if execution.attention == "sdpa" else execution.attention
    options = {"use_safetensors": True, **({} if os.path.isdir(checkpoint) else checkpoint_options(checkpoint))}
    model = AutoModel.from_pretrained(checkpoint, attn_implementation=attention, **options).to(execution.device)

    def embed(batch) -> torch.Tensor:
        mask = batch["attention_mask"].unsqueeze(-1)
        return (model(**batch).last_hidden_state.float() * mask).sum(1) / mask.sum(1)

    return predict_in_batches(model, embed, model.config.hidden_size, tokenizer, ids, execution)
