"""Two rivals of fine-tuning where rows are few: the nearest class mean, and contrastive tuning as SetFit does it."""

import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer

from helpers.checkpoints import resolve_checkpoint
from helpers.profiles import device

PAIRS = 20  # of each kind for each text, and the rate: setfit's defaults (Tunstall et al. 2022, arXiv 2209.11055)
RATE = 2e-5


def nearest_centroid(train: tuple[np.ndarray, list[int]]) -> Pipeline:
    """The class whose mean embedding is nearest, by cosine; `train` is embeddings, (rows, width), and labels."""
    return make_pipeline(Normalizer(), NearestCentroid()).fit(*train)


def contrastive_encoder(train: Dataset, base_model: str, seed: int, precision: str, folder: Path) -> int:
    """Trains the encoder on pairs of texts, alike in embedding where they share a label; saves it to `folder`.

    Returns how many parameters that trains.
    """
    # Here, as notebooks import this module without it, and releases have it in other places.
    import sentence_transformers as st
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    rng, labels = np.random.default_rng(seed), np.array(train["label"])
    texts, pairs = train["text"][:], {"sentence1": [], "sentence2": [], "label": []}
    for row, label in enumerate(labels):
        for alike in (True, False):
            others = np.flatnonzero((labels == label) == alike)
            for other in rng.choice(others, PAIRS):
                for name, value in zip(pairs, (texts[row], texts[other], float(alike)), strict=True):
                    pairs[name].append(value)
    model = st.SentenceTransformer(resolve_checkpoint(base_model), device=device())
    with tempfile.TemporaryDirectory() as scratch:
        arguments = st.SentenceTransformerTrainingArguments(
            scratch,
            num_train_epochs=1,
            per_device_train_batch_size=16,
            learning_rate=RATE,
            warmup_steps=0.1,
            seed=seed,
            bf16=precision == "bf16",
            use_cpu=device() == "cpu",
            optim="adamw_torch_fused",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        loss = CosineSimilarityLoss(model)
        st.SentenceTransformerTrainer(model, arguments, train_dataset=Dataset.from_dict(pairs), loss=loss).train()
    model[0].model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())
