"""A recipe, data and a model in; a trained model, its record and its saved adapter out."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from math import ceil, isfinite
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import wandb
from datasets import DatasetDict
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

from helpers.data import joined, model_inputs, text_hashes, tokenize
from helpers.evaluation import bag_of_words, fitted_temperature, predict_logits
from helpers.inference import TRAINING_TEXTS, WEIGHTS, save_adapter
from helpers.models import load_tokenizer, only_known_types
from helpers.profiles import DTYPES, Profile, device, platform_secret, setting
from helpers.recipes import Recipe
from helpers.results import RunRecord, make_record, peak_memory, versions
from helpers.tasks import TASKS, best_threshold, decide, rescale_head, targets
from helpers.trainer import UPDATE, process_state, train


@dataclass
class FineTuned:
    """A trained model and what is known of it; `probabilities` (numbers), (n_test, n_labels), and what they say."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    record: RunRecord
    probabilities: np.ndarray
    predictions: np.ndarray
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
    calibrate: bool = False,
    prepare: Callable[[Trainer], None] | None = None,
) -> FineTuned | None:
    """Trains `model` in place by the recipe (at most the profile's epochs), and scores it once on the test rows.

    `splits` holds texts as "train", "test" and maybe "validation", on which the epoch is chosen. With `save` the record
    goes to the profile's results and the adapter to its checkpoints, or the adapter to `output` and no record. A run
    that was killed goes on from its last checkpoint, unless with `restart`. `track` logs to W&B where that is set up.
    `calibrate` divides the head by the temperature that fits the validation rows best (Guo et al. 2017). `prepare` gets
    each Trainer before it trains, to add a callback, say.
    Where memory runs out, training starts again with smaller batches, as many more of them to an update.

    Among several processes (torchrun), each with the recipe's batch, the first alone scores and writes, and all others
    get None. Raises MemoryError where smaller batches cannot help, ValueError for a loss that is not finite, DiskFull.
    """
    state = process_state()
    folder = checkpoint_folder(recipe, splits, profile) if save else None
    rows_of_one = ceil(len(splits["train"]) / state.num_processes)
    recipe = replace(recipe, num_train_epochs=profile.epochs(recipe.epochs(rows_of_one)))
    tokenizer = load_tokenizer(profile.base_model(recipe.base_model))
    check_tokenizer(model, tokenizer, profile.precision)
    only_known_types(model, tokenizer)
    tokens = tokenize(splits, tokenizer, profile.tokens(recipe.max_length), recipe.truncation)
    mean, scale = _with_targets(model, tokens, splits, recipe.task)
    if folder and restart and state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
    state.wait_for_everyone()
    report_to = start_wandb(recipe) if track and state.is_main_process else "none"
    trainer = train(model, tokenizer, recipe, tokens, profile, folder, report_to, prepare)
    if not state.is_main_process:
        return None
    precision = profile.precision
    if recipe.task == "regression":
        rescale_head(model, mean, scale)
        precision = "fp32"  # 16 bits round 2,001 and 2,005 to one number

    def logits_of(part: str) -> np.ndarray:
        return predict_logits(model, tokenizer, model_inputs(tokens[part]), precision)

    chosen, probabilities = {}, TASKS[recipe.task].probabilities
    if recipe.task == "multi" and "validation" in splits:
        chosen["threshold"] = best_threshold(probabilities(logits_of("validation")), targets(splits["validation"]))
    if calibrate:
        chosen["temperature"] = fitted_temperature(logits_of("validation"), targets(splits["validation"]))
        rescale_head(model, 0.0, 1 / chosen["temperature"])
    found = probabilities(logits_of("test"))
    threshold = chosen.get("threshold", 0.5)
    predictions = decide(recipe.task, found, threshold)
    record = make_record(recipe, splits, profile, predictions, model)
    record.settings |= chosen
    _add_training(record, trainer)
    if report_to == "wandb":
        wandb.log({f"test/{name}": value for name, value in record.metrics.items()})
        wandb.finish()
    result = FineTuned(model, tokenizer, record, found, predictions)
    if save and isinstance(model, PeftModel):
        place = output or profile.checkpoints / record.name
        more = {"threshold": threshold, "pairs": "pair" in splits["test"].column_names}
        result.adapter = save_adapter(model, tokenizer, place, recipe, record.base_model, record.max_length, **more)
        seen = [text for name, part in splits.items() if name != "test" for text in joined(part)]
        np.save(result.adapter / TRAINING_TEXTS, text_hashes(seen))
        record.adapter_bytes = (result.adapter / WEIGHTS).stat().st_size
    if save and output is None:
        record.save(profile.results)
        shutil.rmtree(folder, ignore_errors=True)  # with `output` the caller does, when all is in its place
    return result


def check_tokenizer(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, precision: str) -> None:
    """Has the tokenizer pad on the side that the model does not read, and prints a change.

    Raises ValueError unless all of the tokenizer's ids have an embedding (a GPU's process would end without a word of
    it), it is the checkpoint's own (another vocabulary's ids would go unnoticed), and the model answers a text alone.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    of_model, of_tokenizer = base.name_or_path, tokenizer.name_or_path
    if of_model and of_tokenizer and of_model != of_tokenizer:
        raise ValueError(f"The texts are tokenized for {of_tokenizer!r}, and the model is {of_model!r}.")
    with suppress(NotImplementedError):  # CANINE embeds characters by their hashes, any number of them
        rows, tokens = len(base.get_input_embeddings().weight), max(tokenizer.get_vocab().values()) + 1
        if tokens > rows:
            raise ValueError(f"The tokenizer has {tokens:,} tokens, the model embeddings for {rows:,}.")
    if getattr(base.config, "pad_token_id", None) is None:
        base.config.pad_token_id = tokenizer.pad_token_id
    ids = tokenizer(["a short text", "a text that is longer than the other"])["input_ids"]
    apart, before = {}, tokenizer.padding_side
    try:
        with torch.autocast(device(), DTYPES[precision], enabled=precision != "fp32"):
            logits = model.train()(**tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device())).logits
        logits.sum().backward()  # some fail here alone
        model.zero_grad()
        alone = predict_logits(model, tokenizer, ids[:1], precision)
        if not isfinite(logits.detach().sum() + alone.sum()):
            raise ValueError("its logits are no numbers")
        for tokenizer.padding_side in ("right", "left"):
            apart[tokenizer.padding_side] = abs(predict_logits(model, tokenizer, ids, precision)[:1] - alone).max()
    except Exception as error:  # each architecture has its own for what it misses
        why = f"a {base.config.model_type!r} checkpoint, cannot be trained here in {precision}: {str(error)[:300]}"
        hint = "" if precision == "fp32" or "CUDA" in str(error) else ". Try PRECISION=fp32."
        raise ValueError(f"{of_model!r}, {why}{hint}") from error
    rounding = 0.05 * abs(alone).max()  # XLNet reads the last token, other families the first, or all
    tokenizer.padding_side = "left" if max(rounding, 4 * apart["left"]) < apart["right"] else "right"
    if tokenizer.padding_side != before:
        tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side  # or it would not be saved
        print(f"The tokenizer pads on the {tokenizer.padding_side}, not on the {before}, which {of_model} reads")
    if apart[tokenizer.padding_side] > rounding:
        print(f"{of_model} reads padding: its answer to a text depends on the texts beside it")


def checkpoint_folder(recipe: Recipe, splits: DatasetDict, profile: Profile) -> Path:
    """Where a run keeps its checkpoints while it trains: one of other settings, rows or versions has another."""
    rows = [(name, part.to_dict()) for name, part in splits.items() if name != "test"]
    decisive = [recipe.stated(), asdict(profile), process_state().num_processes, versions(), rows]
    digest = sha256(json.dumps(decisive).encode(errors="surrogatepass")).hexdigest()[:12]
    return profile.checkpoints / f".{recipe.name}-{digest}"


def _with_targets(model: torch.nn.Module, tokens: DatasetDict, splits: DatasetDict, task: str) -> tuple[float, float]:
    """Gives `tokens` the labels that the loss of `task` wants; returns the (mean, deviation) that numbers are less and
    divided by, those of the training rows: no head's learning rate suits years and shares of one alike."""
    if task == "single":
        return 0.0, 1.0
    train = targets(splits["train"])
    mean, scale = (float(train.mean()), float(train.std())) if task == "regression" else (0.0, 1.0)
    if task == "regression":
        rescale_head(model, 0.0, 0.0)  # one that is kept from the base answers in units of its own
        print(f"Numbers train as deviations from their mean, {mean:.4g}, over {scale:.4g}: so are the losses below")
    for name, part in splits.items():
        wanted = ((targets(part) - mean) / scale).tolist()
        tokens[name] = tokens[name].remove_columns("label").add_column("labels", wanted)
    return mean, scale


def _add_training(record: RunRecord, trainer: Trainer) -> None:
    """Adds to `record` what training took; its seconds are known of one sitting alone."""
    log, score = trainer.state.log_history, record.task.headline
    names = {"step": "step", "epoch": "epoch", "loss": "loss", "eval_loss": "loss", f"eval_{score}": score}
    rows = [{names[key]: value for key, value in row.items() if key in names} for row in log]
    record.history["train"] = [row for row in rows if "loss" in row and score not in row]
    record.history["validation"] = [row for row in rows if score in row]
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
    if mode not in ("disabled", "offline") and (key := setting("WANDB_API_KEY") or platform_secret("WANDB_API_KEY")):
        os.environ["WANDB_API_KEY"] = key  # where wandb reads it
    elif mode != "offline":
        print("W&B: off (set WANDB_API_KEY in .env, or in Colab's or Kaggle's secrets, to log this run)")
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
