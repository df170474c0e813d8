"""From a recipe as its source runs it to our version, one change a step, interleaved in one process."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from statistics import median

import torch
from transformers import BatchEncoding
from transformers.trainer_pt_utils import LengthGroupedSampler

from helpers.benchmarks.fresh import in_fresh_process
from helpers.benchmarks.records import device_record
from helpers.benchmarks.timing import StepFlops, TrainingStep, matmul_peak, overlap
from helpers.data import load_splits, truncate
from helpers.models import attach_lora, build_model, load_classifier, load_tokenizer
from helpers.profiles import PROFILES, Execution, Profile
from helpers.recipe import Recipe
from helpers.recipes import RECIPES
from helpers.results import StudyRecord

WINDOW_BATCHES = 8  # of all lengths, the same in every window: two windows differ by the machine, not by their texts


@dataclass(frozen=True)
class SourceExecution:
    """What a source does that decides its speed alone; `tokens` is the limit here, where texts are cut for the ladder.

    `pad_to_longest` pads to the longest of a batch, else to the limit.
    """

    tokens: int
    pad_to_longest: bool = False
    gradient_checkpointing: bool = False


# The recipes that have a ladder. peft's preparation for k-bit training, which bert-qlora calls, turns checkpointing on.
SOURCES = {
    "lora_distilbert_qv": SourceExecution(256),
    "lora_bert_sst2": SourceExecution(128),
    "qlora_bert": SourceExecution(256, pad_to_longest=True, gradient_checkpointing=True),
}


@dataclass(frozen=True)
class Rung:
    """One way to train a recipe on its real texts.

    `nf4_compute` is the precision 4-bit weights are unpacked to, where that is not the execution's.
    """

    change: str
    recipe: Recipe
    execution: Execution
    pad_to_longest: bool = True
    group_by_length: bool = True
    nf4_compute: str | None = None


def ladder(name: str, execution: Execution) -> list[Rung]:
    """The rungs of recipe `name`, from its source's own execution to `improved()` on this device's fastest.

    The sources' half precision needs a GPU in Trainer; on a CPU the first rung is what they would run there, fp32.
    """
    written, source = RECIPES[name], SOURCES[name]
    gpu = execution.device == "cuda"
    first = Execution(
        execution.device,
        "fp16" if gpu else "fp32",
        "sdpa",
        gradient_checkpointing=source.gradient_checkpointing,
        fast_dropout=False,
        last_layer_at_cls=False,
        keep_memory=False,
    )
    rung = Rung(
        "as written",
        written,
        first,
        pad_to_longest=source.pad_to_longest,
        group_by_length=False,
        nf4_compute="fp16" if written.quantization else None,
    )
    rungs = [rung]

    def add(change: str, **changes) -> None:
        rungs.append(replace(rungs[-1], change=change, **changes))

    if first.gradient_checkpointing:
        add("no gradient checkpointing", execution=replace(first, gradient_checkpointing=False))
    precision = execution.precision
    if {first.precision, rung.nf4_compute or precision} != {precision}:
        add(precision, execution=replace(rungs[-1].execution, precision=precision), nf4_compute=None)
    add(
        "batches of like length" + ("" if source.pad_to_longest else ", padded to their longest"),
        pad_to_longest=True,
        group_by_length=True,
    )
    if not gpu:
        add("dropout masks in bulk", execution=replace(rungs[-1].execution, fast_dropout=True))
    add("no dropout in the frozen encoder", recipe=replace(written, model_dropout=0.0, lora_dropout=0.0))
    add("the last layer at [CLS] alone", execution=replace(rungs[-1].execution, last_layer_at_cls=True))
    if not gpu:
        add("freed memory kept", execution=replace(rungs[-1].execution, keep_memory=True))
    if execution.attention != "sdpa":
        add(f"{execution.attention} attention", execution=execution)
    add("improved() settings", recipe=written.improved())
    return rungs


def methods_race(execution: Execution) -> list[Rung]:
    """LoRA, QLoRA and full fine-tuning by bert-qlora's improved settings, on this device's fastest execution."""
    return [Rung(method, method_recipe(method), execution) for method in ("lora", "qlora", "full_finetune")]


def method_recipe(method: str) -> Recipe:
    """bert-qlora's improved recipe as "full_finetune", "lora", "lora_query_value", "qlora" or "qlora_checkpointing".

    Adapters are on every linear layer, or on query and value alone.
    """
    recipe = RECIPES["qlora_bert"].improved()
    if method == "full_finetune":
        return recipe.full_finetune()
    if method == "lora_query_value":
        return replace(recipe, quantization=None, target_modules=("query", "value"))
    return replace(recipe, quantization=None) if method == "lora" else recipe


@lru_cache(maxsize=32)
def training_flops(recipe: Recipe, base_model: str, at_cls: bool = True) -> StepFlops:
    """Matrix-product operations of a step of `recipe`, by its shape (see `timing.StepFlops`).

    They are counted on an unquantized copy that keeps its activations, so that work done twice does not count as work
    (model FLOPs utilization, Chowdhery et al. 2022, arXiv 2204.02311, appendix B). `at_cls` is the execution's
    `last_layer_at_cls`: what that leaves out is not counted either.
    """
    execution = Execution("cpu", "fp32", "eager", last_layer_at_cls=at_cls)
    step = TrainingStep(build_model(replace(recipe, quantization=None), base_model, execution), execution)
    return StepFlops(lambda rows, tokens: step.run(*step.random_batch(rows, tokens)))


class _Runner:
    """A rung's model and its batches of real texts."""

    def __init__(self, rung: Rung, encoded: list[list[int]], base_model: str, max_length: int):
        self.rung, recipe, execution = rung, rung.recipe, rung.execution
        tokenizer = load_tokenizer(base_model)
        load = replace(execution, precision=rung.nf4_compute) if rung.nf4_compute else execution
        model = load_classifier(
            base_model, load, quantization=recipe.quantization, model_dropout=recipe.model_dropout, seed=0
        )
        if recipe.method != "full_finetune":
            model = attach_lora(model, recipe, execution.gradient_checkpointing)
        self.step = TrainingStep(model, execution, recipe.optim)
        ids = [truncate(row, max_length, recipe.truncation) for row in encoded]
        order = list(range(len(ids)))
        size = recipe.per_device_train_batch_size
        if rung.group_by_length:
            lengths = [len(row) for row in ids]
            order = list(LengthGroupedSampler(size, lengths=lengths, generator=torch.Generator().manual_seed(0)))
        padding = {"padding": "longest"} if rung.pad_to_longest else {"padding": "max_length", "max_length": max_length}
        batches = [
            tokenizer.pad({"input_ids": [ids[i] for i in order[start : start + size]]}, **padding, return_tensors="pt")
            for start in range(0, len(ids) - size + 1, size)
        ]
        self.batches = _spread(batches, WINDOW_BATCHES)
        self.flops = training_flops(recipe, base_model, execution.last_layer_at_cls)

    def measure(self, seconds: float) -> tuple[float, float]:
        """(samples, operations) a second over the window's batches, once or as often as `seconds` allow.

        The batch with the most tokens goes first and is not counted: it brings the memory that is kept where it is.
        """
        self._timed(max((batch for batch, _ in self.batches), key=lambda batch: batch["input_ids"].numel()))
        spent, elapsed, samples, operations = 0.0, 0.0, 0, 0.0
        while spent < seconds:
            for batch, count in self.batches:
                rows, tokens = batch["input_ids"].shape
                took = self._timed(batch)
                spent, elapsed = spent + took, elapsed + count * took
                samples, operations = samples + count * rows, operations + count * self.flops(rows, tokens)
        return samples / elapsed, operations / elapsed

    def _timed(self, batch: BatchEncoding) -> float:
        device = self.rung.execution.device
        labels = torch.zeros(len(batch["input_ids"]), dtype=torch.long, device=device)
        return self.step.timed(batch.to(device), labels)


def _spread(batches: list[BatchEncoding], count: int) -> list[tuple[BatchEncoding, int]]:
    """`count` of `batches` evenly from the fewest tokens to the most; of equal shapes one, with how many it stands for.

    They stay in the order of `batches`.
    """
    by_tokens = sorted(range(len(batches)), key=lambda index: batches[index]["input_ids"].numel())
    chosen = sorted(by_tokens[int((part + 0.5) * len(batches) / count)] for part in range(count))
    shapes = Counter(tuple(batches[index]["input_ids"].shape) for index in chosen)
    one_of_each = {tuple(batches[index]["input_ids"].shape): batches[index] for index in chosen}
    return [(batch, shapes[shape]) for shape, batch in one_of_each.items()]


def measure_rungs(
    rungs: list[Rung],
    texts: list[str],
    base_model: str,
    max_length: int,
    *,
    repeats: int = 3,
    seconds: float = 3.0,
) -> list[dict[str, object]]:
    """A row for each rung: `change`, `samples_per_second` (the median of `repeats` interleaved windows), all of them as
    `windows`, `ratio` to the first rung, `within_scatter` where they overlap with the rung's before (no gain or loss is
    seen then), and `matmul_share` of the fastest matrix product in this process.

    A window times the same `WINDOW_BATCHES` batches of a rung, for `seconds` or once. All models are in memory at once.
    """
    device = rungs[0].execution.device
    encoded = load_tokenizer(base_model)(texts, verbose=False)["input_ids"]
    runners = [_Runner(rung, encoded, base_model, max_length) for rung in rungs]
    measured, peak = [], 0.0
    for _ in range(repeats):
        peak = max(peak, matmul_peak(device, rungs[-1].execution.compute_dtype))
        measured.append([runner.measure(seconds) for runner in runners])
    rows = []
    for rung, windows in zip(rungs, zip(*measured, strict=True), strict=True):
        rates = [samples for samples, _ in windows]
        rows.append(
            {
                "change": rung.change,
                "samples_per_second": median(rates),
                "windows": rates,
                "within_scatter": bool(rows) and overlap(rates, rows[-1]["windows"]),
                "matmul_share": median(operations for _, operations in windows) / peak,
                "precision": rung.execution.precision,
                "attention": rung.execution.attention,
                "batch_size": rung.recipe.per_device_train_batch_size,
            }
        )
    return [{**row, "ratio": row["samples_per_second"] / rows[0]["samples_per_second"]} for row in rows]


def ladder_texts(recipe: Recipe, profile: Profile, count: int = 2_000) -> list[str]:
    """The first `count` training texts of the recipe's dataset, the same for every rung.

    Trainer's sampler sorts by length within a quarter of the texts at most, so that few texts make mixed batches.
    """
    return list(load_splits(recipe, profile)["train"]["text"][:count])


def benchmark_ladder(execution: Execution, names: Iterable[str] = (*SOURCES, "methods")) -> StudyRecord:
    """Measures each ladder, and the race of LoRA, QLoRA and full fine-tuning at 128 tokens, a fresh process each."""
    rows = []
    for name in names:
        measured = in_fresh_process(measure_ladder, name=name, execution=asdict(execution))
        for row in measured:
            print(f"{name:20s} {row['change']:50s} {row['samples_per_second']:7.1f} samples/s", end="  ")
            print(f"{row['ratio']:6.1f} x  {row['matmul_share']:4.0%} of the peak", end="")
            print("  (within the scatter of the row before)" if row["within_scatter"] else "", flush=True)
            rows.append({"ladder": name, **row})
    tokens = {name: source.tokens for name, source in SOURCES.items()} | {"methods": 128}
    return device_record("ladder", execution, {"base_model": "embedded", "tokens": tokens}, rows)


def measure_ladder(name: str, execution: dict) -> list[dict[str, object]]:
    """Rows of one ladder, or of the race "methods", measured in this process on embedded texts."""
    fastest, race = Execution(**execution), name == "methods"
    recipe = RECIPES["qlora_bert" if race else name]
    rungs = methods_race(fastest) if race else ladder(name, fastest)
    profile = PROFILES["full"]
    tokens = 128 if race else SOURCES[name].tokens
    return measure_rungs(rungs, ladder_texts(recipe, profile), profile.base_model(recipe.base_model), tokens)
