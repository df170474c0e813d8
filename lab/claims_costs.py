"""What decides the claims on parameters, bytes, memory and speed, and on what a saved adapter is."""

from collections.abc import Iterable, Mapping
from math import inf

from peft import get_peft_model

from helpers.evaluation import PairedComparison
from helpers.recipes import RECIPES
from helpers.results import StudyRecord
from lab.budget import memory_budget, real_model
from lab.compare import compare_runs
from lab.devices import COMMAND, main_rows
from lab.timing import ratio_range
from lab.verdict import FAILS, HOLDS, OPEN, Bar, Evidence, Verdict, all_of, in_range, verdict_on

SHAPES_NEEDED = 4  # shapes of batch at each size, for a verdict on memory or speed
LESS = 0.98  # of another's memory: two points are what a process's resident memory differs by from run to run
ABOUT_70 = 0.65  # claim B3
BOTH = ("bert-base", "embedded")
LAYERS = {"every linear layer": "lora", "query and value": "lora_query_value"}
MEMORY, SPEED = "own peak memory", "windows"


def _ratios(
    record: StudyRecord, first: str, second: str, what: str, sizes: Iterable[str]
) -> dict[str, tuple[float, float]]:
    """The range of the ratio of two methods by size and shape, empty unless each size has `SHAPES_NEEDED` shapes.

    Of a peak, without what the libraries held before the model came, both ends are the same.
    """
    ratios = {}
    for size in sizes:
        rows = {(row["batch_size"], row["tokens"], row["method"]): row for row in main_rows(record, size=size)}
        shapes = sorted(key[:2] for key in rows if key[2] == first and (*key[:2], second) in rows)
        if len(shapes) < SHAPES_NEEDED:
            return {}
        for shape in shapes:
            one, other = rows[(*shape, first)], rows[(*shape, second)]
            ends = ratio_range(one["windows"], other["windows"])
            if what == MEMORY:
                own = [row["peak_memory_bytes"] - row["libraries_bytes"] for row in (one, other)]
                ends = (own[0] / own[1],) * 2
            ratios["{} {} x {}".format(size, *shape)] = ends
    return ratios


def _compared(
    evidence: Evidence,
    methods: Mapping[str, str],
    second: str,
    what: str,
    limits: tuple[float, float],
    sizes: Iterable[str] = BOTH,
) -> tuple[dict[str, str], dict[str, float], tuple[Bar, ...]]:
    """Cases, numbers and bars of each of `methods` (by its name in words) against `second`, on every device.

    `limits` are those of the ratio that is stated; a saving of memory is shown as what is saved.
    """
    cases, numbers, bars = {}, {}, []
    for record in evidence.devices("steps"):
        for words, method in methods.items():
            ratios = _ratios(record, method, second, what, sizes)
            if not ratios:
                continue
            name = f"{record.device}, {words}{_form(record)}"
            found = {f"{name}, {shape}": in_range(*ends, *limits) for shape, ends in ratios.items()}
            ends, stated = [end for both in ratios.values() for end in both], limits
            if what == MEMORY:
                ends, stated = [1 - end for end in ends], (1 - limits[1], 1 - limits[0])
            counts = {f"{name}: shapes where it {case}": list(found.values()).count(case) for case in (HOLDS, FAILS)}
            cases |= found
            numbers |= {f"{name}: least": min(ends), f"{name}: most": max(ends)}
            numbers |= {f"{name}: shapes": len(found), **counts}
            label = f"{'GPU' if _on_gpu(record) else 'CPU'}, {words}"
            bars.append(Bar("share" if what == MEMORY else "times", stated, min(ends), max(ends), label))
    if not cases:
        raise FileNotFoundError(f"{COMMAND} steps")
    return cases, numbers, tuple(bars)


def _on_gpu(record: StudyRecord) -> bool:
    return record.settings["execution"]["device"] == "cuda"


def _form(record: StudyRecord) -> str:
    """Records from before the frozen base was stored as it is multiplied say so."""
    return "" if any(row["method"] == "lora_fp32_base" for row in record.rows) else ", fp32 base"


def lora_over_full(evidence: Evidence, what: str, at_least: float, at_most: float = inf) -> Verdict:
    """A claim that LoRA's memory or speed, over full fine-tuning's, lies between two limits."""
    found = _compared(evidence, LAYERS, "full_finetune", what, (at_least, at_most))
    return verdict_on(*found, f"{COMMAND} steps, on a quiet machine")


def seventy_percent(evidence: Evidence) -> Verdict:
    """On a GPU alone. A record without bert-qlora's own recipe has QLoRA with checkpointing on every linear layer and
    fp32 AdamW, which hold more: what that saves, the recipe as written saves as well."""
    as_written = {"bert-qlora as written": "qlora_as_written", "QLoRA with checkpointing": "qlora_checkpointing"}
    limits = 0, 1 - ABOUT_70
    cases, numbers, bars = _compared(evidence, as_written, "full_finetune", MEMORY, limits, ("bert-base",))
    gpus = tuple(record.device for record in evidence.devices("steps") if _on_gpu(record))
    cases = {name: case for name, case in cases.items() if name.startswith(gpus)}
    recipe = RECIPES["qlora_bert"]
    held = memory_budget(recipe).static("adamw_8bit") / memory_budget(recipe.full_finetune()).static()
    numbers["saved before activations, counted"] = 1 - held
    bars = tuple(bar for bar in bars if bar.label.startswith("GPU"))
    return verdict_on(cases, numbers, bars, f"{COMMAND} steps, on a GPU")


def checkpointing(evidence: Evidence) -> Verdict:
    sides = {"QLoRA with checkpointing": "qlora_checkpointing"}, "qlora"
    memory, saved, bars = _compared(evidence, *sides, MEMORY, (0, LESS), ("bert-base",))
    speed, times, _ = _compared(evidence, *sides, SPEED, (0, 1), ("bert-base",))
    cases = {name: all_of(memory[name], speed[name]) for name in memory}
    numbers = {f"memory saved, {name}": value for name, value in saved.items()}
    numbers |= {f"speed, {name}": value for name, value in times.items()}
    return verdict_on(cases, numbers, bars, f"{COMMAND} steps")


def share_that_trains(evidence: Evidence, recipe: str, at_least: float, at_most: float) -> Verdict:
    """A claim on how many of the parameters train."""
    budget = memory_budget(RECIPES[recipe])
    numbers = {"share that trains": budget.share, "parameters that train": budget.trainable, "all": budget.total}
    bar = Bar("share", (at_least, at_most), budget.share, budget.share, value=budget.share)
    return verdict_on({"counted": in_range(bar.low, bar.high, *bar.stated)}, numbers, (bar,))


def weights_in_4bit(evidence: Evidence) -> Verdict:
    recipe = RECIPES["qlora_bert"]
    budgets = memory_budget(recipe.full_finetune()), memory_budget(recipe), memory_budget(recipe, dtype="bf16")
    fp32, four, least = (sum(budget.weights.values()) / 1e6 for budget in budgets)
    numbers = {"MB in fp32": fp32, "MB in 4 bits, the rest in fp32": four, "MB, the rest in half precision": least}
    bars = (Bar("share", (55 / 440, 55 / 440), least / fp32, four / fp32, "of the bytes in fp32"),)
    return verdict_on({"counted": in_range(four, four, 0, 60)}, numbers, bars)


def paged_optimizer(evidence: Evidence) -> Verdict:
    recipe = RECIPES["qlora_bert"]
    budgets = {"LoRA": memory_budget(recipe), "every weight": memory_budget(recipe.full_finetune())}
    saved = {name: (budget.adamw - budget.adamw_8bit) / 1e6 for name, budget in budgets.items()}
    cases = {f"trained: {name}": HOLDS if mb >= 0.05 * saved["every weight"] else FAILS for name, mb in saved.items()}
    return verdict_on(cases, {f"MB saved, trained: {name}": mb for name, mb in saved.items()})


def masks(evidence: Evidence) -> Verdict:
    recipe = RECIPES["lora_bert_cased"]
    config, share = recipe.lora_config(), memory_budget(recipe).share
    config.r = 0.2
    try:
        get_peft_model(real_model(recipe.base_model), config)
        taken = HOLDS
    except TypeError:  # there is no matrix with 0.2 rows
        taken = FAILS
    numbers = {"share that the least rank trains": share, "the least rank": recipe.r}
    return verdict_on({"peft takes r = 0.2, or r = 1 trains 20 %": HOLDS if share >= 0.2 else taken}, numbers)


def half_precision(evidence: Evidence) -> Verdict:
    scored = {record.device: record for record in evidence.devices("accuracy")}
    cases, numbers = {}, {}
    for record in evidence.devices("steps"):
        if not _on_gpu(record):
            continue
        tests = fp16_less_fp32(scored[record.device]) if record.device in scored else {}
        for method, (low, high) in fp16_over_fp32(record).items():
            name, test = f"{record.device}, {method}", tests.get(method)
            as_right = OPEN if test is None else FAILS if test.verdict == "worse" else HOLDS
            cases[name] = all_of(in_range(low, high, 1), as_right)
            numbers |= {f"{name}: least speed over fp32": low, f"{name}: most": high}
            numbers |= {f"{name}: difference of accuracies": test.difference} if test else {}
    return verdict_on(cases, numbers, needs=f"{COMMAND} steps accuracy, on a GPU")


def fp16_less_fp32(record: StudyRecord) -> dict[str, PairedComparison]:
    """The accuracy of fp16 less that of fp32, by method, of those that an `accuracy` record has in both.

    Earlier records call LoRA "improved", have one seed, and runs with the source's own settings besides.
    """
    runs: dict[tuple[str, str], list[dict]] = {}
    for row in record.rows:
        if row["settings"] != "as_written" and row.get("execution") != "source's":
            method = row["settings"].replace("improved", "lora")
            runs.setdefault((method, row["precision"]), []).append({"seed": 0, **row})
    return compare_runs(
        {m: (found, runs[m, "fp32"]) for (m, p), found in runs.items() if p == "fp16" and (m, "fp32") in runs}
    )


def fp16_over_fp32(record: StudyRecord) -> dict[str, tuple[float, float]]:
    """The range of fp16's speed over fp32's by method, at the shape of BERT-base that has both."""
    windows = {}
    for row in record.rows:
        if row["optimizer"].startswith("adamw_torch") and row["size"] == "bert-base":
            windows[row["precision"], row["method"], row["batch_size"], row["tokens"]] = row["windows"]
    in_both = [key[1:] for key in windows if key[0] == "fp16" and ("fp32", *key[1:]) in windows]
    return {key[0]: ratio_range(windows[("fp16", *key)], windows[("fp32", *key)]) for key in in_both}


def base_untouched(evidence: Evidence) -> Verdict:
    row = evidence.devices("adapter")[-1].rows[0]
    numbers = {"base tensors": row["base_tensors"], "of them changed": row["changed_base_tensors"]}
    return verdict_on({"bit by bit": FAILS if row["changed_base_tensors"] else HOLDS}, numbers)


def pipeline(evidence: Evidence) -> Verdict:
    row = evidence.devices("adapter")[-1].rows[0]
    answers = {"on a base that names no labels": "label_without_names", "with the labels named": "label_with_names"}
    return verdict_on({words: HOLDS if row[key] == "POSITIVE" else FAILS for words, key in answers.items()}, {})
