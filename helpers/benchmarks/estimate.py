"""`python -m helpers.benchmarks.estimate`: what notebooks 02 to 06 would take under `hub` on a T4, by counted work.

Nobody has timed them there. The matrix products of every run are counted on models of the real checkpoints' shapes, and
a share of the card's peak is assumed: the record says which.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from helpers.benchmarks.budget import REAL_CONFIGS
from helpers.benchmarks.ladder import training_flops
from helpers.data import drop_duplicates, load_reviews, token_lengths
from helpers.models import load_tokenizer
from helpers.profiles import COMMITTED, EMBEDDED_BERT, PROFILES
from helpers.recipe import Recipe
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from helpers.studies.plan import RANKS
from helpers.studies.search import RATES

T4_PEAK = 65e12  # fp16 operations a second with tensor cores: NVIDIA's T4 datasheet
SHARES = (0.10, 0.30)  # of that peak: what a training step of BERT's size is assumed to reach
IMDB, SENTENCES = "imdb", "rotten_tomatoes"


@dataclass(frozen=True)
class Run:
    """One training run: rows a pass, passes over them, and rows that are only predicted (validation and test)."""

    recipe: Recipe
    rows: int
    epochs: int
    predicted: int
    texts: str = IMDB


def hub_runs() -> dict[str, list[Run]]:
    """The runs of each notebook under `hub`, with the row counts that the notebooks ask for."""
    q, qv, qlora = (RECIPES[name] for name in ("lora_distilbert_q", "lora_distilbert_qv", "qlora_bert"))
    cased, sst2 = RECIPES["lora_bert_cased"], RECIPES["lora_bert_sst2"]

    def both(recipe: Recipe, rows: int, validation: int, test: int, **changes) -> Iterator[Run]:
        for one in (recipe, recipe.improved()):
            epochs = one.epochs(rows)
            yield Run(one, rows, epochs, epochs * validation + test, **changes)

    study, seeds = sst2.improved(), 3
    tried = len(RANKS) * len(RATES["lora"])
    return {
        "02": [*both(qv, 22_500, 2_500, 25_000), Run(q, 22_500, 1, 2_500 + 25_000), Run(qv, 0, 0, 25_000)],
        "03": [*both(qlora, 16_000, 2_000, 2_000), Run(qlora, 0, 0, 2_000)],
        "05": [
            *[Run(study, 2_000, 3, 500, SENTENCES)] * tried,
            *[Run(study, 2_000, 3, 872, SENTENCES)] * (len(RANKS) * seeds),
        ],
        "06": [
            *both(cased, 2_500, 1_000, 2_000),
            *both(sst2, 2_000, 500, 872, texts=SENTENCES),
        ],
    }


@lru_cache(maxsize=4)
def _lengths(texts: str) -> np.ndarray:
    rows = drop_duplicates(load_reviews(texts, PROFILES["quick"])["train"])
    return token_lengths(rows, load_tokenizer(EMBEDDED_BERT))


def operations(run: Run, folder: str) -> float:
    """Matrix-product operations of `run` on the checkpoint shape in `folder`, each text at its own length, cut."""
    lengths = np.minimum(_lengths(run.texts), run.recipe.max_length)
    step = training_flops(replace(run.recipe, base_model=folder), folder)
    # One text of mean length stands for all but for attention's square, which the second moment brings.
    a, b, c = step.coefficients
    trained = a + b * lengths.mean() + c * (lengths.astype(float) ** 2).mean()
    return run.rows * run.epochs * trained + run.predicted * _forward_share(folder) * trained


@lru_cache(maxsize=4)
def _forward_share(folder: str) -> float:
    """The forward pass as a share of a LoRA training step: the weights' own gradients are not taken."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).requires_grad_(False)
    embeddings = torch.zeros(1, 64, model.config.hidden_size, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        loss = model(inputs_embeds=embeddings).logits.sum()
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return forward / (forward + counter.get_total_flops())


def estimate() -> StudyRecord:
    """A row for each notebook: `operations`, and `minutes` at the higher and the lower share of the peak."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for checkpoint, config in REAL_CONFIGS.items():
            model = AutoModelForSequenceClassification.from_config(config)
            model.base_model.save_pretrained(f"{scratch}/{checkpoint}")
        for notebook, runs in hub_runs().items():
            counted = sum(operations(run, f"{scratch}/{run.recipe.base_model}") for run in runs)
            minutes = [round(counted / (share * T4_PEAK) / 60) for share in reversed(SHARES)]
            rows.append({"notebook": notebook, "runs": len(runs), "operations": counted, "minutes": minutes})
            print(f"{notebook}  {counted:.2e} operations, {minutes[0]} to {minutes[1]} minutes", flush=True)
    settings = {"peak_flops_per_second": T4_PEAK, "assumed_share_of_peak": list(SHARES)}
    return StudyRecord(
        "estimate_t4", "python -m helpers.benchmarks.estimate", "hub", "NVIDIA T4, not measured", settings, rows
    )


if __name__ == "__main__":
    print(f"Wrote {estimate().save(COMMITTED / 'quick' / 'evidence').relative_to(COMMITTED.parent)}")
