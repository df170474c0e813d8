"""A recipe, data and a model in; a trained model, its record and its saved adapter out."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from math import ceil
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import wandb
from datasets import DatasetDict
from peft import PeftModel
from scipy.special import softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from helpers.data import text_hashes, tokenize
from helpers.evaluation import bag_of_words, predict_logits
from helpers.inference import TRAINING_TEXTS, WEIGHTS, save_adapter
from helpers.models import check_tokenizer, load_tokenizer
from helpers.profiles import Profile, device, setting
from helpers.recipes import Recipe
from helpers.results import RunRecord, make_record, peak_memory, versions
from helpers.trainer import UPDATE, process_state, train


@dataclass
class FineTuned:
    """A trained model and what is known of it; `probabilities`, (n_test, n_labels), are those of the test rows."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    record: RunRecord
    probabilities: np.ndarray
    adapter: Path | None = None

    @property
    def predictions(self) -> np.ndarray:
        """Predicted labels of the test rows, shape (n_test,)."""
        return self.probabilities.argmax(axis=1)


def fine_tune(
    model: torch.nn.Module,
    recipe: Recipe,
    splits: DatasetDict,
    profile: Profile,
    *,
    output: Path | None = None,
    save: bool = True,
    restart: bool = False,
    track: bool = False,
) -> FineTuned | None:
    """Trains `model` in place by the recipe (at most the profile's epochs), and scores it once on the test rows.

    `splits` holds texts as "train", "test" and maybe "validation", on which the epoch is chosen. With `save` the record
    goes to the profile's results and the adapter to its checkpoints, or the adapter to `output` and no record. A run
    that was killed goes on from its last checkpoint, unless with `restart`. `track` logs to W&B where that is set up.
    Where memory runs out, training starts again with smaller batches, as many more of them to an update.

    Among several processes (torchrun), each with the recipe's batch, the first alone scores and writes, and all others
    get None. Raises MemoryError where smaller batches cannot help, ValueError for a loss that is not finite, DiskFull.
    """
    state = process_state()
    folder = checkpoint_folder(recipe, splits, profile) if save else None
    rows_of_one = ceil(len(splits["train"]) / state.num_processes)
    recipe = replace(recipe, num_train_epochs=profile.epochs(recipe.epochs(rows_of_one)))
    tokenizer = load_tokenizer(profile.base_model(recipe.base_model))
    check_tokenizer(model, tokenizer)
    tokens = tokenize(splits, tokenizer, profile.tokens(recipe.max_length), recipe.truncation)
    if folder and restart and state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()
    report_to = start_wandb(recipe) if track and state.is_main_process else "none"
    trainer = train(model, tokenizer, recipe, tokens, profile, folder, report_to)
    if not state.is_main_process:
        return None
    logits = predict_logits(model, tokenizer, list(tokens["test"]["input_ids"]), profile.precision)
    probabilities = softmax(logits, axis=1)
    record = make_record(recipe, splits, profile, probabilities.argmax(axis=1), model)
    _add_training(record, trainer)
    if report_to == "wandb":
        wandb.log({f"test/{name}": value for name, value in record.metrics.items()})
        wandb.finish()
    result = FineTuned(model, tokenizer, record, probabilities)
    if save and isinstance(model, PeftModel):
        place = output or profile.checkpoints / record.name
        result.adapter = save_adapter(model, tokenizer, place, recipe, record.base_model, record.max_length)
        seen = [text for name, part in splits.items() if name != "test" for text in part["text"]]
        np.save(result.adapter / TRAINING_TEXTS, text_hashes(seen))
        record.adapter_bytes = (result.adapter / WEIGHTS).stat().st_size
    if save and output is None:
        record.save(profile.results)
        shutil.rmtree(folder, ignore_errors=True)  # with `output` the caller does, when all is in its place
    return result


def checkpoint_folder(recipe: Recipe, splits: DatasetDict, profile: Profile) -> Path:
    """Where a run keeps its checkpoints while it trains: one of other settings, rows or versions has another."""
    rows = [(name, part["text"][:], part["label"][:]) for name, part in splits.items() if name != "test"]
    decisive = [recipe.stated(), asdict(profile), process_state().num_processes, versions(), rows]
    digest = sha256(json.dumps(decisive).encode(errors="surrogatepass")).hexdigest()[:12]
    return profile.checkpoints / f".{recipe.name}-{digest}"


def _add_training(record: RunRecord, trainer: Trainer) -> None:
    """Adds to `record` what training took; its seconds are known of one sitting alone."""
    log = trainer.state.log_history
    names = {"step": "step", "epoch": "epoch", "loss": "loss", "eval_loss": "loss", "eval_accuracy": "accuracy"}
    rows = [{names[key]: value for key, value in row.items() if key in names} for row in log]
    record.history["train"] = [row for row in rows if "loss" in row and "accuracy" not in row]
    record.history["validation"] = [row for row in rows if "accuracy" in row]
    record.peak_memory_bytes, record.peak_memory_method = peak_memory(device())
    if not trainer.resumed:
        record.train_seconds = log[-1]["train_runtime"] - sum(row.get("eval_runtime", 0.0) for row in log)
        record.train_samples_per_second = record.n_train * trainer.state.epoch / record.train_seconds
    if trainer.args.world_size > 1:
        record.device = f"{trainer.args.world_size} x {record.device}"
    for name in UPDATE:
        record.settings[name] = getattr(trainer.args, name)  # smaller batches after memory had run out


def score_bag_of_words(recipe: Recipe, splits: DatasetDict, profile: Profile) -> RunRecord:
    """Fits the bag of words to the training rows and scores it on the test rows; writes and returns the record."""
    start = perf_counter()
    model = bag_of_words(splits["train"], splits["validation"])
    seconds = perf_counter() - start
    predictions = model.predict(list(splits["test"]["text"]))
    record = make_record(replace(recipe, variant="bag_of_words"), splits, profile, predictions)
    record.base_model, record.train_seconds = "TF-IDF (1-2 grams) + logistic regression", seconds
    record.trainable_params = record.total_params = model[-1].coef_.size
    record.settings = {"C": model[-1].C}
    record.save(profile.results)
    return record


def start_wandb(recipe: Recipe) -> str:
    """Begins a W&B run where a key or WANDB_MODE=offline is set; what Trainer is to report to, "wandb" or "none". No
    network and a bad key cost one line and nothing else, where Trainer alone would end the training."""
    mode = setting("WANDB_MODE")
    if mode == "disabled" or not (mode == "offline" or setting("WANDB_API_KEY")):
        print("W&B: off (set WANDB_API_KEY in .env to log this run)")
        return "none"
    os.environ.setdefault("WANDB_PROJECT", "bert-peft-notebooks")
    settings = wandb.Settings(init_timeout=8, silent=True)
    try:
        run = wandb.init(name=f"{recipe.name}-{recipe.variant}", config=recipe.stated(), settings=settings)
    except Exception as error:
        print(f"W&B: not available ({type(error).__name__}); the run goes on without it")
        return "none"
    print("W&B: logging offline, upload later with `wandb sync`" if mode == "offline" else f"W&B: {run.url}")
    return "wandb"
