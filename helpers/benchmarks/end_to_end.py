"""Whole runs on this device: prediction, accuracy by number format, and what an adapter changes."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from transformers import AutoModelForSequenceClassification, pipeline

from helpers.adapters import save_adapter
from helpers.base.writing import write_json
from helpers.benchmarks.ladder import ladder
from helpers.benchmarks.records import device_record
from helpers.checkpoints import label_maps
from helpers.data import LABELS, load_splits
from helpers.fitting.loop import fit
from helpers.inference import SentimentClassifier
from helpers.models import build_model, load_tokenizer
from helpers.profiles import PROFILES, Execution
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from helpers.studies.compare import scores
from helpers.training import class_probabilities, tokenize_splits


def benchmark_prediction(execution: Execution, repeats: int = 5) -> StudyRecord:
    """Texts a second of `pipeline`, one at a time, and of `SentimentClassifier.predict`, in interleaved windows.

    On IMDb reviews and on Rotten Tomatoes sentences, with an adapter as `save_adapter` writes it.
    """
    recipe, profile = RECIPES["lora_bert_sst2"].improved(), PROFILES["full"]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        base_model = profile.base_model(recipe.base_model)
        folder = save_adapter(
            build_model(recipe, base_model, execution),
            load_tokenizer(base_model),
            Path(scratch) / "adapter",
            base_model=base_model,
            quantization=None,
            max_length=512,
            truncation="head",
        )
        classifier = SentimentClassifier.from_pretrained(folder, execution)
        one_at_a_time = pipeline(
            "text-classification", model=str(folder), device=execution.device, truncation=True, max_length=512
        )
        for dataset, count in (("imdb", 100), ("rotten_tomatoes", 400)):
            texts = load_splits(replace(recipe, dataset=dataset), profile)["test"]["text"][:count]
            seconds: dict[str, list[float]] = {"pipeline, one at a time": [], "SentimentClassifier.predict": []}
            for repeat in range(repeats + 1):
                start = perf_counter()
                for text in texts:
                    one_at_a_time(text)
                middle = perf_counter()
                classifier.predict(texts)
                end = perf_counter()
                if repeat:  # the first pass of each warms up: kernels are made for every new shape
                    seconds["pipeline, one at a time"].append(middle - start)
                    seconds["SentimentClassifier.predict"].append(end - middle)
            first = median(seconds["pipeline, one at a time"])
            for method, times in seconds.items():
                rate = {"texts_per_second": count / median(times), "ratio": first / median(times)}
                rows.append({"dataset": dataset, "texts": count, "method": method, **rate, "seconds": times})
                print(f"{dataset:16s} {method:28s} {rate['texts_per_second']:7.1f} texts/s {rate['ratio']:5.1f} x")
    return device_record("prediction", execution, {"base_model": base_model}, rows)


def benchmark_accuracy(execution: Execution) -> StudyRecord:
    """Trains the SST-2 post at its own scale: as written, and improved on the source's execution and on the fastest.

    All runs have its epochs and are scored on the same test sentences, for paired tests: speed must cost nothing. A GPU
    also trains it, by LoRA, QLoRA and full fine-tuning, improved, in fp16 and in fp32, all else as in the fastest.
    """
    recipe = RECIPES["lora_bert_sst2"]
    profile = replace(PROFILES["quick"], n_train=recipe.n_train, n_validation=recipe.n_validation, max_epochs=None)
    source = ladder(recipe.name, execution)[0].execution
    splits = load_splits(recipe, profile)
    base_model = profile.base_model(recipe.base_model)
    rows = []
    ours = recipe.improved()
    runs = [("as_written", recipe, "fastest", execution), ("improved", ours, "source's", source)]
    runs.append(("improved", ours, "fastest", execution))
    if execution.device == "cuda":
        formats = {name: replace(execution, precision=name) for name in ("fp32", "fp16")}
        others = [name for name in formats if name != execution.precision]
        runs += [("improved", ours, name, formats[name]) for name in others]
        methods = {"full_finetune": ours.full_finetune(), "qlora": replace(ours, quantization="nf4")}
        runs += [(label, run, *used) for label, run in methods.items() for used in formats.items()]
    for label, settings, name, used in runs:
        tokenizer, tokens = tokenize_splits(settings, splits, profile)
        model = build_model(settings, base_model, used, profile.seed)
        fit(model, tokenizer, settings, tokens["train"], None, used, profile.seed)
        predictions = class_probabilities(model, tokenizer, tokens["test"], used).argmax(axis=1)
        row = {"settings": label, "execution": name, "precision": used.precision}
        row |= {"attention": used.attention}
        rows.append(row | scores(predictions, splits["test"]))
        print(f"{label:13s} {name:10s} {rows[-1]['accuracy']:.1%}", flush=True)
    shared = {"recipe": recipe.name, "base_model": base_model, "n_train": len(splits["train"])}
    shared |= {"epochs": recipe.num_train_epochs, "n_test": len(splits["test"])}
    return device_record("accuracy", execution, shared, rows)


def benchmark_adapter(execution: Execution) -> StudyRecord:
    """Trains the SST-2 post's recipe, improved, and checks what it says of the result.

    Compares every tensor of the base before and after, bit by bit. Asks `pipeline` for a label: on the saved folder,
    on one whose base names no labels, as BERT on the hub, and on that with the names given.
    """
    recipe, text = RECIPES["lora_bert_sst2"].improved(), "The movie was absolutely wonderful!"
    profile = replace(PROFILES["quick"], n_train=recipe.n_train, n_validation=recipe.n_validation, max_epochs=None)
    base_model, splits = profile.base_model(recipe.base_model), load_splits(recipe, profile)
    tokenizer, tokens = tokenize_splits(recipe, splits, profile)
    model = build_model(recipe, base_model, execution, profile.seed)
    frozen = [
        (parameter, parameter.detach().clone()) for parameter in model.parameters() if not parameter.requires_grad
    ]
    fit(model, tokenizer, recipe, tokens["train"], None, execution, profile.seed)
    with tempfile.TemporaryDirectory() as scratch:
        settings = {"quantization": None, "max_length": recipe.max_length, "truncation": recipe.truncation}
        folder = save_adapter(model, tokenizer, Path(scratch) / "adapter", base_model=base_model, **settings)
        nameless = _without_names(folder, Path(scratch))
        labels, indices = label_maps(LABELS)
        named = AutoModelForSequenceClassification.from_pretrained(nameless, id2label=labels, label2id=indices)
        answer, bare, with_names = (
            pipeline("text-classification", model=asked, tokenizer=str(folder), device=execution.device)(text)[0]
            for asked in (str(folder), str(nameless), named)
        )
    row = {
        "base_tensors": len(frozen),
        "changed_base_tensors": sum(not torch.equal(parameter, before) for parameter, before in frozen),
        "text": text,
        "pipeline_label": answer["label"],
        "pipeline_score": answer["score"],
        "label_without_names": bare["label"],
        "label_with_names": with_names["label"],
    }
    shared = {"recipe": recipe.name, "base_model": base_model, "n_train": len(splits["train"])}
    return device_record("adapter", execution, shared, [row])


def _without_names(adapter: Path, scratch: Path) -> Path:
    """A copy of `adapter` on a copy of its base whose config does not name the labels."""
    copy = Path(shutil.copytree(adapter, scratch / "nameless"))
    settings = json.loads((copy / "adapter_config.json").read_text(encoding="utf-8"))
    base = Path(shutil.copytree(settings["base_model_name_or_path"], scratch / "base"))
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    write_json(base / "config.json", {k: v for k, v in config.items() if k not in ("id2label", "label2id")})
    write_json(copy / "adapter_config.json", {**settings, "base_model_name_or_path": str(base)})
    return copy
