"""Numbers in hand-written texts are the records': each is a value computed from them, at as many digits as it has."""

import json
import re

import pandas as pd
import pytest

from helpers.own_data import FEW_ROWS, FEW_ROWS_RATE, TEST_SHARE, VALIDATION_SHARE
from helpers.profiles import COMMITTED, ROOT
from helpers.recipes import RECIPES
from lab.at_scale import rows_at_scale
from lab.budget import memory_budget
from lab.claims import CLAIMS
from lab.devices import find_records, main_rows
from lab.methods import METHODS, LoRA
from lab.studies import read_study
from lab.verdict import KINDS

# What has a digit and is a name, not a measurement: links, code, notebooks, "95 % interval", "4 bits", the write-ups.
NAMES = re.compile(
    r"\]\([^)]*\)|`[^`]*`|https?://\S+|(?:notebooks? )\[?\d\d\b|\b95 % (?:bootstrap )?interval\w*|\b\d+-bit\b"
    r"|\b[48] bits?\b|\b(?:seed|arXiv) [\d.]+|" + "|".join(sorted({claim.source for claim in CLAIMS}))
)
NUMBER = re.compile(r"(?<![\w.,\-])[+\-−–]?(?:\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?:\.\d+)?(?:e-?\d+)?(?![\w]|-\w)")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def unbacked_numbers(text: str, values: list[float], said: str = "") -> list[str]:
    """The numbers in `text` that none of `values` is, as they are written.

    A number is backed by a value that rounds to it at as many digits as it has, as it is or in percent (and so in
    points), whatever its sign; or by standing in `said`, the source's own words. Names (`NAMES`) are left out.
    """
    quoted = {_plain(found) for found in NUMBER.findall(NAMES.sub(" ", said))}
    return [
        found
        for found in NUMBER.findall(NAMES.sub(" ", text))
        if _plain(found) not in quoted and not any(_rounds_to(value, _plain(found)) for value in values)
    ]


def _plain(number: str) -> str:
    number = number.replace(",", "").lstrip("+-−–")
    return f"0{number}" if number.startswith(".") else number


def _rounds_to(value: float, number: str) -> bool:
    if "e" in number:
        return abs(value) == float(number)
    digits = len(number.partition(".")[2])
    return any(f"{abs(value) * scale:.{digits}f}" == number for scale in (1, 100))


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("LoRA scores 92.3 % [91.3, 93.4] on 2,490 reviews", []),
        ("92 % at 5e-4, p = .012, -1.2 points", []),
        ("LoRA scores 92.4 % on 2,491 reviews", ["92.4", "2,491"]),
        ("5e-5 with p = .12", ["5e-5", ".12"]),
        ("as `r=7` in [notebook](../12.ipynb), with a 95 % interval, in 4 bits; bert-qlora, SST-2 post, H100", []),
        ("stated: 93 to 94 %, measured: 95 %", ["95"]),
    ],
)
def test_a_number_is_backed_at_its_own_digits_or_quoted(text, missing):
    values = [0.92346, 0.9129, 0.9337, 2_490, 5e-4, 0.0123, -0.012]
    assert unbacked_numbers(text, values, said="~93–94%") == missing


def cells_of(notebook: str) -> list[dict]:
    return json.loads((ROOT / "notebooks" / notebook).read_text(encoding="utf-8"))["cells"]


def text_of(notebook: str, id: str) -> str:
    (text,) = ("".join(cell["source"]) for cell in cells_of(notebook) if cell["id"] == id)
    return text


def test_the_claims_table_and_the_counts_in_10_are_those_of_the_verdicts(verdicts):
    rows = [line.split(" | ") for line in text_of("10_claims.ipynb", "10-table").splitlines()[2:]]
    assert [row[0].strip() for row in rows] == [f"{claim.id} {claim.label}" for claim in CLAIMS]
    for claim, row in zip(CLAIMS, rows, strict=True):
        found, words = verdicts[claim.id], row[1].strip()
        assert words == claim.words and row[3].strip().startswith(f"**{found.kind}**"), claim.id
        said = f"{claim.label} {claim.words} {claim.rule} {' '.join(found.cases)}"
        assert unbacked_numbers(" ".join(row[2:]), [*found.numbers.values()], said) == [], claim.label
    kinds = [found.kind for found in verdicts.values()]
    for kind in KINDS:
        assert f"{WORDS[kinds.count(kind)]} {kind}" in text_of("10_claims.ipynb", "10-00").lower(), kind


@pytest.mark.parametrize("notebook", ["08_how_many_rows", "09_methods"])
def test_every_number_in_a_notebook_of_studies_stands_in_its_outputs_or_is_a_setting(notebook):
    cells = cells_of(f"{notebook}.ipynb")
    shown = [output.get("text") or output["data"]["text/plain"] for cell in cells for output in cell.get("outputs", [])]
    values = [float(_plain(found)) for text in shown for found in NUMBER.findall("".join(text))]
    rows, reviews = read_study("few_rows"), read_study("few_reviews")
    settings = [rows.settings["n_test"], min(row["updates"] for row in rows.rows if "updates" in row), 0.05, 300]
    settings += [48, TEST_SHARE, VALIDATION_SHARE, reviews.settings["max_length"], 512, 5_000]
    settings.append(read_study("news").settings["n_test"])
    if notebook == "09_methods":
        settings = [rows.settings["n_test"], LoRA().r, METHODS["prompt tuning"].config.num_virtual_tokens, 16, 25]
        reviews = read_study("methods_reviews")
        settings += [reviews.settings["max_length"], reviews.rows[0]["n_train"]]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    prose = re.sub(r"(?m)^(# \d\d ·|\d\. )|\[(Notebook )?\d\d\b", "", prose)
    assert unbacked_numbers(prose, [*values, *settings]) == []


def test_the_results_in_the_readme_are_the_records():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    findings = text.split("<!-- results -->")[1].split("<!-- end of results -->")[0].partition("\n- ")[2]

    def mean(study: str, **labels) -> float:
        found = [row["accuracy"] for row in read_study(study).rows if labels.items() <= row.items()]
        return sum(found) / len(found)

    post = {"pooler": "identity", "n_train": 2_000}
    values = [mean("pooler", **post, learning_rate=rate) for rate in (5e-5, 1e-3)] + [5e-5, 1e-3, 55]
    for _, record in find_records("steps", [COMMITTED]):
        speeds = {(row["size"], row["batch_size"], row["tokens"], row["method"]): row for row in main_rows(record)}
        for (*shape, _), row in speeds.items():
            values.append(row["samples_per_second"] / speeds[(*shape, "full_finetune")]["samples_per_second"])
    for rows in (500, 2_000, "all"):
        of_size = [row for row in read_study("few_rows").rows if row["rows"] == rows]
        full, qlora = (
            {row["seed"]: row["accuracy"] for row in of_size if row["method"] == name}
            for name in ("full_finetune", "qlora")
        )
        gaps = [full[seed] - qlora[seed] for seed in full.keys() & qlora.keys()]
        values += [sum(gaps) / len(gaps), 5_530 if rows == "all" else rows]
    budgets = (memory_budget(RECIPES["qlora_bert"]), memory_budget(RECIPES["qlora_bert"].full_finetune()))
    values += [sum(budget.weights.values()) / 1e6 for budget in budgets]
    assert unbacked_numbers(findings, values) == []


def test_every_number_in_the_settings_page_is_a_record_s_or_a_recipe_s():
    text = (ROOT / "notebooks" / "settings.md").read_text(encoding="utf-8")
    ours = [RECIPES[name].improved() for name in ("lora_bert_sst2", "lora_bert_cased", "lora_distilbert_qv")]
    values = [1e-4, FEW_ROWS, FEW_ROWS_RATE, *(row["r"] for row in read_study("ranks").rows)]
    for study in ("one_rate", "few_rows", "few_reviews"):
        runs = pd.DataFrame(read_study(study).rows)
        values += [*runs.groupby(["method", "rows"])["accuracy"].mean(), *runs["n_train"], *runs["learning_rate"]]
    values += [*pd.DataFrame(read_study("more_layers").rows).groupby(["layers", "n_train"])["accuracy"].mean()]
    values += [float(full) - float(lora) for lora, full in re.findall(r"\| ([\d.]+) % \| ([\d.]+) % \|", text)]
    values += [row[name] for row in rows_at_scale() for name in ("accuracy", "n_train")]
    for name in ("learning_rate", "r", "lora_alpha", "max_length", "warmup_ratio", "num_train_epochs"):
        values += [getattr(recipe, name) for recipe in ours]
    values += [ours[0].min_updates, *(ours[0].epochs(rows) for rows in (100, 1_000, 2_000))]
    assert unbacked_numbers(text, values) == []
