"""What padding batches to a multiple of some tokens saves in memory and costs in time, by the length of the texts."""

from dataclasses import asdict, dataclass, replace
from statistics import median
from time import perf_counter

import torch
from transformers import DataCollatorWithPadding
from transformers.trainer_pt_utils import LengthGroupedSampler

from helpers.base.memory import peak_memory, reset_peak_memory
from helpers.benchmarks.fresh import in_fresh_process
from helpers.benchmarks.ladder import method_recipe
from helpers.benchmarks.records import device_record
from helpers.benchmarks.timing import TrainingStep, synchronize
from helpers.data import load_splits
from helpers.models import build_model
from helpers.profiles import PROFILES, Execution
from helpers.results import StudyRecord
from helpers.training import tokenize_splits

MULTIPLES = (1, 32)  # 1: padded to the longest of the batch
ROUNDS = 2


@dataclass(frozen=True)
class Texts:
    """The training texts of `dataset` that a measurement takes: `updates` batches, cut at `tokens`."""

    dataset: str
    tokens: int
    updates: int


TEXTS = (Texts("imdb", 512, 100), Texts("rotten_tomatoes", 128, 120))


def benchmark_padding(execution: Execution) -> StudyRecord:
    """Trains LoRA by bert-qlora's improved settings on `TEXTS`, for each of `MULTIPLES` in a fresh process, in rounds.

    A row has the medians of `ROUNDS` trainings, `samples_per_second` and `peak_memory_bytes`, and what each of them
    measured as `windows` and `peaks`; `ratio` is the speed over that of padding to the longest.
    """
    found: dict[tuple[Texts, int], list[dict]] = {(texts, multiple): [] for texts in TEXTS for multiple in MULTIPLES}
    for _ in range(ROUNDS):
        for (texts, multiple), measured in found.items():
            how = {"multiple": multiple, "execution": asdict(execution)}
            measured.append(in_fresh_process(measure_padding, texts=asdict(texts), **how))
            print(f"{texts.dataset:16s} {texts.tokens} tokens, multiples of {multiple:2d}", end="  ")
            print(f"{measured[-1]['samples_per_second']:6.1f} samples/s", end="  ")
            print(f"{measured[-1]['peak_memory_bytes'] / 1e9:5.2f} GB", flush=True)
    rows = []
    for (texts, multiple), measured in found.items():
        windows, peaks = ([m[name] for m in measured] for name in ("samples_per_second", "peak_memory_bytes"))
        longest = median(m["samples_per_second"] for m in found[texts, 1])
        row = {**asdict(texts), "multiple": multiple, "samples_per_second": median(windows), "windows": windows}
        row |= {"ratio": median(windows) / longest, "peak_memory_bytes": median(peaks), "peaks": peaks}
        rows.append(row | {"peak_memory_method": measured[0]["peak_memory_method"]})
    return device_record("padding", execution, {"base_model": "embedded", "method": "lora"}, rows)


def measure_padding(texts: dict, multiple: int, execution: dict) -> dict[str, object]:
    """Speed and peak memory of a training in this process, its batches of like length as Trainer draws them."""
    kind, used, recipe = Texts(**texts), Execution(**execution), method_recipe("lora")
    recipe, size = replace(recipe, dataset=kind.dataset, max_length=kind.tokens), recipe.per_device_train_batch_size
    profile = replace(PROFILES["full"], n_train=size * kind.updates, n_validation=2, n_test=2, max_length=kind.tokens)
    tokenizer, splits = tokenize_splits(recipe, load_splits(recipe, profile), profile)
    ids, lengths = splits["train"]["input_ids"][:], splits["train"]["length"][:]
    order = list(LengthGroupedSampler(size, lengths=lengths, generator=torch.Generator().manual_seed(0)))
    collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=multiple)
    step = TrainingStep(build_model(recipe, profile.base_model(recipe.base_model), used), used)
    labels = torch.zeros(size, dtype=torch.long, device=used.device)
    reset_peak_memory(used.device)
    start = perf_counter()
    for first in range(0, len(order), size):
        step.run(collator([{"input_ids": ids[i]} for i in order[first : first + size]]).to(used.device), labels)
    synchronize(used.device)
    seconds = perf_counter() - start
    peak, method = peak_memory(used.device)
    return {"samples_per_second": len(order) / seconds, "peak_memory_bytes": peak, "peak_memory_method": method}
