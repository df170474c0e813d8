"""A recipe, data and a model in; a trained model, its record and its saved adapter out."""

import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import wandb
from datasets import DatasetDict
from dotenv import find_dotenv, load_dotenv
from peft import PeftModel
from scipy.special import softmax
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from helpers.data import tokenize
from helpers.evaluation import bag_of_words, predict_logits
from helpers.inference import WEIGHTS, save_adapter
from helpers.models import check_tokenizer, load_tokenizer, weight_bytes
from helpers.profiles import Profile, device
from helpers.recipe import Recipe
from helpers.results import RunRecord, make_record, peak_memory, versions
from helpers.trainer import process_state, train


@dataclass
class FineTuned:
    """A trained model (best epoch on validation rows) and what is known of it.

    `probabilities` has shape (n_test, n_labels), in the order of the test rows. `adapter` is the saved adapter's
    folder, None for a model without one.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    record: RunRecord
    probabilities: np.ndarray
    adapter: Path | None = None


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

    `splits` holds texts as "train", "test" and maybe "validation", on which the epoch is chosen; without it the last
    update counts. With `save` the record goes to the profile's results and the adapter to its checkpoints, or the
    adapter to the folder `output` and no record. A run that was killed goes on from its last checkpoint; `restart`
    begins anew. `track` logs to W&B where that is set up. Where memory runs out, training starts again with smaller
    batches, as many more of them to an update.

    Among several processes (torchrun) each trains on its share of every update, the batch of `recipe` being that of
    one process; the first alone scores and writes, and all others get None. Raises MemoryError where smaller batches
    cannot help, ValueError for a loss that is not finite, and DiskFull, the earlier checkpoints being as they were.
    """
    state = process_state()
    rows_of_one = -(-len(splits["train"]) // state.num_processes)
    recipe = replace(recipe, num_train_epochs=profile.epochs(recipe.epochs(rows_of_one)))
    tokenizer = load_tokenizer(profile.base_model(recipe.base_model))
    check_tokenizer(model, tokenizer)
    tokens = tokenize(splits, tokenizer, profile.tokens(recipe.max_length), recipe.truncation)
    held = sum(weight_bytes(model).values())
    folder = checkpoint_folder(recipe, splits, profile, output) if save else None
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
    record = replace(record, weights_bytes=held, **_what_it_took(trainer))
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        record.settings[name] = getattr(trainer.args, name)  # smaller batches after memory had run out
    if report_to == "wandb":
        wandb.log({f"test/{name}": value for name, value in record.metrics.items()})
        wandb.finish()
    result = FineTuned(model, tokenizer, record, probabilities)
    if save and isinstance(model, PeftModel):
        place = output or profile.checkpoints / record.name
        result.adapter = save_adapter(model, tokenizer, place, recipe, record.base_model, record.max_length)
        record.adapter_bytes = (result.adapter / WEIGHTS).stat().st_size
    if save and output is None:
        record.save(profile.results)
        shutil.rmtree(folder, ignore_errors=True)  # with `output` the caller does, when all is in its place
    return result


def checkpoint_folder(recipe: Recipe, splits: DatasetDict, profile: Profile, output: Path | None = None) -> Path:
    """Where a run keeps its checkpoints while it trains: one of other settings, rows or versions has another."""
    rows = [(name, part["text"][:], part["label"][:]) for name, part in splits.items() if name != "test"]
    decisive = [recipe.stated(), asdict(profile), process_state().num_processes, versions(), rows]
    digest = sha256(json.dumps(decisive).encode(errors="surrogatepass")).hexdigest()[:12]
    return profile.checkpoints / f".{output.name if output else recipe.name}-{digest}"


def _what_it_took(trainer: Trainer) -> dict[str, object]:
    """Fields of a record that training itself gives. Seconds, without validation, are known of one sitting alone."""
    log, rows = trainer.state.log_history, len(trainer.train_dataset) * trainer.state.epoch
    losses = [{key: row[key] for key in ("step", "epoch", "loss")} for row in log if "loss" in row]
    validation = [
        {"step": row["step"], "epoch": row["epoch"], "loss": row["eval_loss"], "accuracy": row["eval_accuracy"]}
        for row in log
        if "eval_loss" in row
    ]
    seconds = log[-1]["train_runtime"] - sum(row.get("eval_runtime", 0.0) for row in log)
    peak, method = peak_memory(device())
    return {
        "train_seconds": None if trainer.resumed else seconds,
        "train_samples_per_second": None if trainer.resumed else rows / seconds,
        "peak_memory_bytes": peak,
        "peak_memory_method": method,
        "history": {"train": losses, "validation": validation},
    }


def score_untrained(model: torch.nn.Module, recipe: Recipe, splits: DatasetDict, profile: Profile) -> RunRecord:
    """Scores `model` as it is, its head freshly drawn, on the test rows; writes and returns the record."""
    tokenizer = load_tokenizer(profile.base_model(recipe.base_model))
    ids = tokenize(splits["test"], tokenizer, profile.tokens(recipe.max_length), recipe.truncation)["input_ids"]
    predictions = predict_logits(model, tokenizer, list(ids), profile.precision).argmax(axis=1)
    record = make_record(replace(recipe, variant="untrained"), splits, profile, predictions, model)
    record.n_train = record.n_validation = 0
    record.save(profile.results)
    return record


def score_bag_of_words(recipe: Recipe, splits: DatasetDict, profile: Profile) -> RunRecord:
    """Fits the bag of words to the training rows and scores it on the test rows; writes and returns the record."""
    start = perf_counter()
    model = bag_of_words(splits["train"], splits["validation"])
    seconds = perf_counter() - start
    predictions = model.predict(list(splits["test"]["text"]))
    record = make_record(replace(recipe, variant="bag_of_words"), splits, profile, predictions)
    record = replace(
        record,
        base_model="TF-IDF (1-2 grams) + logistic regression",
        trainable_params=model[-1].coef_.size,
        total_params=model[-1].coef_.size,
        train_seconds=seconds,
        settings={"C": model[-1].C},
    )
    record.save(profile.results)
    return record


def start_wandb(recipe: Recipe) -> str:
    """Begins a W&B run where a key or WANDB_MODE=offline is set; what Trainer is to report to, "wandb" or "none".

    No network, a bad key or a missing package costs one line and nothing else: Trainer alone would end the training.
    """
    load_dotenv(find_dotenv(usecwd=True))
    mode = os.environ.get("WANDB_MODE")
    if mode == "disabled" or not (mode == "offline" or os.environ.get("WANDB_API_KEY", "").strip()):
        print("W&B: off (set WANDB_API_KEY in .env to log this run)")
        return "none"
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        wandb.init(
            project=os.environ.get("WANDB_PROJECT", "bert-peft-notebooks"),
            name=f"{recipe.name}-{recipe.variant}",
            config=recipe.stated(),
            settings=wandb.Settings(init_timeout=8),
        )
    except Exception as error:
        print(f"W&B: not available ({type(error).__name__}); the run goes on without it")
        return "none"
    print("W&B: logging offline, upload later with `wandb sync`" if mode == "offline" else f"W&B: {wandb.run.url}")
    return "wandb"
