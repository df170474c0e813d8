"""The verdicts: each as the records in Data/ make it, and each rule on both sides of its limit with records made up."""

from dataclasses import replace
from math import inf

import matplotlib.pyplot as plt
import pytest

from helpers.evaluation import PairedComparison
from helpers.profiles import ROOT, Profile
from helpers.results import StudyRecord
from lab import claims, claims_accuracy, verdict
from lab.claims import CLAIMS, DECIDED_BY, decide
from lab.figures_costs import plot_claims
from lab.verdict import (
    CONFIRMED,
    FAILS,
    HOLDS,
    KINDS,
    ONLY_WHEN,
    OPEN,
    REFUTED,
    UNDECIDED,
    Evidence,
    all_of,
    in_range,
    verdict_on,
)

PINNED = {
    **dict.fromkeys(("B1", "B3", "B8", "D1", "E2"), CONFIRMED),
    **dict.fromkeys(("A1", "A2", "B6", "E3"), ONLY_WHEN),
    **dict.fromkeys(("B2", "C2"), REFUTED),
    **dict.fromkeys(("A3", "A4", "B4", "B5", "B7", "C1", "C3", "C4", "D2", "D3", "E1"), UNDECIDED),
}
GOOD, FAIR, COIN = "1" * 180 + "0" * 20, "1" * 150 + "0" * 50, "10" * 100


@pytest.mark.parametrize("id", PINNED)
def test_each_claim_s_verdict_on_the_committed_records(id, verdicts):
    found = verdicts[id]
    assert found.kind == PINNED[id]
    assert found.records and all((ROOT / path).is_file() for path in found.records)
    assert bool(found.needs) == (found.kind == UNDECIDED)
    if found.kind == ONLY_WHEN:
        assert HOLDS in found.cases.values() and set(found.cases.values()) != {HOLDS}
    assert all(bar.low <= bar.high for bar in found.bars)
    assert all(bar.low <= bar.value <= bar.high for bar in found.bars if bar.value is not None)


def test_every_claim_has_its_words_its_rule_and_a_function():
    assert [claim.id for claim in CLAIMS] == list(DECIDED_BY) == sorted(PINNED)
    assert len({claim.label for claim in CLAIMS}) == len(CLAIMS)
    assert all(claim.words and claim.rule for claim in CLAIMS)


def test_where_a_claim_holds_is_plain_data(verdicts):
    on_gpu = {name: case for name, case in verdicts["A1"].cases.items() if name.startswith("NVIDIA H100")}
    assert [name for name, case in on_gpu.items() if case != HOLDS] == [
        "NVIDIA H100 80GB HBM3, every linear layer, bert-base 64 x 512",
        "NVIDIA H100 80GB HBM3, every linear layer, embedded 64 x 512",
    ]
    saved = verdicts["B3"].numbers
    assert saved["NVIDIA H100 80GB HBM3, QLoRA with checkpointing: least"] == pytest.approx(0.73, abs=0.01)
    assert all("NVIDIA" in name for name in verdicts["B3"].cases), "a CPU's memory is not a GPU's"
    assert verdicts["E3"].cases["with the labels named"] == HOLDS


def test_a_range_that_reaches_over_a_limit_decides_nothing():
    assert (in_range(1.0, 1.2, 1), in_range(0.9, 0.99, 1), in_range(0.9, 1.1, 1)) == (HOLDS, FAILS, OPEN)
    assert (in_range(2.1, 2.9, 2, 3), in_range(2.1, 3.1, 2, 3), in_range(3.1, 4, 2, 3)) == (HOLDS, OPEN, FAILS)
    assert (all_of(HOLDS, HOLDS), all_of(HOLDS, OPEN), all_of(OPEN, FAILS)) == (HOLDS, OPEN, FAILS)


@pytest.mark.parametrize(
    ("cases", "kind"),
    [("HH", CONFIRMED), ("FF", REFUTED), ("HF", ONLY_WHEN), ("HO", ONLY_WHEN), ("FO", UNDECIDED), ("OO", UNDECIDED),
     ("", UNDECIDED)],
)  # fmt: skip
def test_cases_make_one_of_four_kinds(cases, kind):
    words = {"H": HOLDS, "F": FAILS, "O": OPEN}
    assert verdict_on({str(place): words[case] for place, case in enumerate(cases)}, {}).kind == kind


@pytest.fixture
def evidence(record, tmp_path, monkeypatch):
    """An empty folder in place of the committed runs, and a function that writes runs to it."""
    monkeypatch.setattr(verdict, "COMMITTED_RUNS", {"hub": tmp_path / "hub", "quick": tmp_path / "quick"})
    monkeypatch.setattr(verdict, "RECORDS", tmp_path / "full")

    def add(recipe, variant, accuracy, interval, profile="hub", seed=42, **changes):
        right = round(200 * accuracy)
        correct = ("1" * right + "0" * (200 - right))[seed:] + ("1" * right)[:seed]
        scores = {"accuracy": accuracy, "weighted_f1": accuracy}
        run = replace(record, recipe=recipe, variant=variant, profile=profile, seed=seed, base_model="the encoder")
        replace(run, metrics=scores, accuracy_ci95=interval, correct=correct[:200], **changes).save(tmp_path / profile)

    return add


def _kind(id):
    return DECIDED_BY[id](Evidence()).kind


@pytest.mark.parametrize(
    ("interval", "kind"), [([0.901, 0.93], CONFIRMED), ([0.864, 0.904], UNDECIDED), ([0.86, 0.899], REFUTED)]
)
def test_over_90_needs_the_lower_end_at_90(evidence, interval, kind):
    """An interval that only reaches the number is imprecision, not a confirmation."""
    for variant in ("as_written", "improved"):
        evidence("lora_distilbert_qv", variant, sum(interval) / 2, interval)
    assert _kind("D3") == kind


def test_a_claim_on_accuracy_needs_its_own_checkpoint(evidence, studies):
    for variant in ("as_written", "improved"):
        evidence("qlora_bert", variant, 0.95, [0.94, 0.96], profile="full")
    assert _kind("B4") == UNDECIDED and "PROFILE=hub" in DECIDED_BY["B4"](Evidence()).needs
    studies("batches", [r for size in (4, 16, 64) for held in ("reviews", "updates")
                        for r in _rows(GOOD, held=held, batch_size=size)], profile="full")  # fmt: skip
    assert _kind("A4") == UNDECIDED and "its own checkpoint" in DECIDED_BY["A4"](Evidence()).needs
    for seed in (42, 43, 44):
        evidence("lora_distilbert_qv", "untrained", 0.5, [0.46, 0.54], profile="quick", seed=seed)
    assert _kind("D2") == UNDECIDED
    evidence("qlora_bert", "as_written", 0.95, [0.94, 0.96])
    assert _kind("B4") == CONFIRMED, "a hub record comes before the embedded encoder's"


def test_a_coin_toss_needs_three_seeds(evidence):
    evidence("lora_distilbert_qv", "untrained", 0.5, [0.46, 0.54])
    assert _kind("D2") == UNDECIDED
    for seed in (43, 44):
        evidence("lora_distilbert_qv", "untrained", 0.5, [0.46, 0.54], seed=seed)
    assert _kind("D2") == CONFIRMED
    for seed in (42, 43, 44):
        evidence("lora_distilbert_qv", "untrained", 0.8, [0.77, 0.83], seed=seed)
    assert _kind("D2") == REFUTED


@pytest.mark.parametrize(("last", "kind"), [(0.79, CONFIRMED), (0.82, REFUTED)])
def test_the_third_epoch_is_within_four_points(evidence, last, kind):
    history = {"train": [], "validation": [{"epoch": e, "accuracy": a} for e, a in ((1, 0.5), (2, 0.6), (3, last))]}
    for variant in ("as_written", "improved"):
        evidence("lora_bert_sst2", variant, 0.8, [0.7, 0.9], history=history)
    assert _kind("E1") == kind


def _rows(correct, seeds=3, **labels):
    """A row a seed; those of other seeds are shifted, so that the same rows are not right in all of them."""
    return [
        {"seed": seed, "n_train": 500, "trainable_params": 1, "accuracy": correct.count("1") / len(correct),
         "correct": correct[seed:] + correct[:seed], **labels}
        for seed in range(seeds)
    ]  # fmt: skip


@pytest.fixture
def studies(monkeypatch):
    """A function that puts a study's rows in place of its record."""

    def put(name, rows, profile="hub"):
        made = StudyRecord(name, "x", profile, "cpu", {"n_test": 200}, rows)
        monkeypatch.setattr(verdict, "read_study", lambda asked: made)

    return put


@pytest.mark.parametrize(
    ("right", "seeds", "kind"),
    [((GOOD, FAIR, COIN), 3, CONFIRMED), ((GOOD, FAIR, COIN), 2, UNDECIDED), ((FAIR, GOOD, COIN), 3, REFUTED),
     ((FAIR, FAIR, COIN), 3, UNDECIDED)],
)  # fmt: skip
def test_better_than_the_baselines_needs_both_of_them_and_three_seeds(studies, monkeypatch, right, seeds, kind):
    studies("baselines", [])
    names = ("as_written", "frozen_encoder", "head_only")
    rows = [row for name, one in zip(names, right, strict=True)
            for row in _rows(one, seeds, recipe="lora_distilbert_q", variant=name)]  # fmt: skip
    monkeypatch.setattr(claims_accuracy, "rows_at_scale", lambda folder: rows)
    monkeypatch.setattr(Evidence, "runs", lambda *asked: [])
    assert _kind("A3") == kind


@pytest.mark.parametrize(
    ("qlora", "kind"),
    [((190, 195, 199), CONFIRMED), ((80, 85, 90), REFUTED), ((150, 148, 152), UNDECIDED), ((195, 120, 150), ONLY_WHEN)],
)
def test_competitive_is_no_more_than_two_points_worse(studies, qlora, kind):
    rows = []
    for size, n_train, right in zip((500, 2_000, "all"), (500, 2_000, 5_530), qlora, strict=True):
        rows += _rows(FAIR, rows=size, n_train=n_train, method="full_finetune")
        rows += _rows("0" * (200 - right) + "1" * right, rows=size, n_train=n_train, method="qlora")
    studies("few_rows", rows)
    assert _kind("B5") == kind


def test_the_margin_is_two_points():
    for low, case in ((-0.019, HOLDS), (-0.021, OPEN)):
        assert claims_accuracy._no_worse(PairedComparison(-0.01, low, 0.0, 0.06)) == case
    assert claims_accuracy._no_worse(PairedComparison(-0.03, -0.04, -0.021, 0.01)) == FAILS


@pytest.mark.parametrize(
    ("right", "kind"), [((180, 160, 150), CONFIRMED), ((120, 160, 170), REFUTED), ((150, 120, 170), ONLY_WHEN)]
)
def test_a_small_batch_is_no_more_than_two_points_worse(studies, right, kind):
    sides = [(held, size, n) for held in ("reviews", "updates") for size, n in zip((4, 16, 64), right, strict=True)]
    studies("batches", [r for h, size, n in sides for r in _rows("1" * n + "0" * (200 - n), held=h, batch_size=size)])
    assert _kind("A4") == kind


def _steps(device, rates, peaks, shapes=4, precision="bf16"):
    """A `steps` record of one size: samples/s and bytes by method, three windows within 1 % of the rate."""
    rows = [
        {"size": size, "method": method, "batch_size": 4, "tokens": 2**shape, "precision": precision,
         "optimizer": "adamw_torch_fused", "windows": [0.99 * rate, rate, 1.01 * rate], "libraries_bytes": 5,
         "peak_memory_bytes": 5 + peaks.get(method, 100)}
        for size in ("bert-base", "embedded") for method, rate in rates.items() for shape in range(shapes)
    ]  # fmt: skip
    where = {"device": "cuda" if device.startswith("GPU") else "cpu", "precision": precision}
    return StudyRecord("steps", "x", None, device, {"execution": where}, rows)


@pytest.fixture
def measured(monkeypatch):
    """A function that puts records in place of those of devices."""

    def put(*records):
        of_name = {name: [r for r in records if r.name == name] for name in ("steps", "accuracy", "adapter")}
        monkeypatch.setattr(verdict, "find_records", lambda name, _: [(ROOT / "made", r) for r in of_name[name]])

    return put


@pytest.mark.parametrize(
    ("lora", "faster", "twice"),
    [(2.5, CONFIRMED, CONFIRMED), (1.01, UNDECIDED, REFUTED), (0.9, REFUTED, REFUTED), (2.03, CONFIRMED, UNDECIDED)],
)
def test_speeds_are_decided_by_the_whole_range_of_the_windows(measured, lora, faster, twice):
    measured(_steps("CPU", {"full_finetune": 10, "lora": 10 * lora}, {}))
    assert (_kind("A2"), _kind("C3")) == (faster, twice)


def test_devices_and_layers_that_disagree_are_told_apart(measured):
    fast = _steps("CPU", {"full_finetune": 10, "lora": 15, "lora_query_value": 8}, {"lora": 50})
    slow = _steps("GPU", {"full_finetune": 10, "lora": 8}, {"lora": 99})
    measured(fast, slow)
    found = DECIDED_BY["A2"](Evidence())
    assert found.kind == ONLY_WHEN
    assert {name.rpartition(",")[0] for name, case in found.cases.items() if case == HOLDS} == {
        "CPU, every linear layer"
    }
    assert DECIDED_BY["A1"](Evidence()).numbers["CPU, every linear layer: least"] == 0.5
    assert _kind("A1") == ONLY_WHEN, "99 % of another's memory is not less"
    measured(_steps("CPU", {"full_finetune": 10, "lora": 15}, {}, shapes=3))
    with pytest.raises(FileNotFoundError, match=r"lab\.benchmarks steps"):
        _kind("A2")


@pytest.mark.parametrize(("held", "kind"), [(34, CONFIRMED), (36, REFUTED)])
def test_seventy_percent_is_asked_of_a_gpu_with_checkpointing(measured, held, kind):
    rates = {"full_finetune": 10, "qlora": 9, "qlora_checkpointing": 5}
    measured(_steps("GPU", rates, {"qlora": 90, "qlora_checkpointing": held}))
    assert _kind("B3") == kind
    measured(_steps("CPU", rates, {"qlora_checkpointing": held}))
    assert _kind("B3") == UNDECIDED and DECIDED_BY["B3"](Evidence()).numbers, "a CPU's stands beside it"


@pytest.mark.parametrize(
    ("speed", "held", "kind"), [(5, 50, CONFIRMED), (12, 50, REFUTED), (5, 99, REFUTED), (10, 50, UNDECIDED)]
)
def test_checkpointing_must_save_memory_and_be_slower(measured, speed, held, kind):
    measured(_steps("CPU", {"qlora": 10, "qlora_checkpointing": speed}, {"qlora_checkpointing": held}))
    assert _kind("B8") == kind


def _formats(fp16, *settings):
    """Records of a GPU's speed in both formats, and of its accuracy for each of `settings`: (method, fp16, fp32)."""
    steps = _steps("GPU", {"lora": 10}, {}, precision="fp32")
    steps.rows += _steps("GPU", {"lora": 10 * fp16}, {}, precision="fp16").rows
    rows = [{"settings": method, "precision": name, "accuracy": 0.5, "correct": correct}
            for method, *right in settings for name, correct in zip(("fp16", "fp32"), right, strict=True)]  # fmt: skip
    return steps, StudyRecord("accuracy", "x", None, "GPU", {"execution": {"device": "cuda"}}, rows)


def test_fp16_must_be_faster_and_no_worse(measured):
    for fp16, scores, kind in (
        (2.0, [("lora", GOOD, GOOD)], CONFIRMED),
        (0.5, [("lora", GOOD, GOOD)], REFUTED),
        (2.0, [("lora", COIN, GOOD)], REFUTED),
        (2.0, [("qlora", GOOD, GOOD)], UNDECIDED),  # faster, but its own accuracy was not measured
        (1.0, [("improved", GOOD, GOOD)], UNDECIDED),  # LoRA's name in earlier records
    ):
        measured(*_formats(fp16, *scores))
        assert _kind("B7") == kind, (fp16, scores[0][0])


def test_what_a_saved_adapter_is(measured):
    def adapter(changed, bare, named):
        row = {"base_tensors": 105, "changed_base_tensors": changed}
        row |= {"label_without_names": bare, "label_with_names": named}
        measured(StudyRecord("adapter", "x", None, "CPU", {}, [row]))
        return _kind("E2"), _kind("E3")

    assert adapter(0, "POSITIVE", "POSITIVE") == (CONFIRMED, CONFIRMED)
    assert adapter(1, "LABEL_1", "POSITIVE") == (REFUTED, ONLY_WHEN)
    assert adapter(0, "LABEL_1", "LABEL_1") == (CONFIRMED, REFUTED)


def test_a_claim_without_its_record_says_what_is_missing(evidence, measured):
    measured()
    found = {claim.id: decide(claim) for claim in CLAIMS if claim.id in ("A1", "B1", "B4")}
    assert found["A1"].needs == "python -m lab.benchmarks steps"
    assert found["B4"].needs == "a run of qlora_bert, as written"
    assert found["B1"].kind == CONFIRMED, "a count needs no record"


def test_a_profile_s_own_runs_come_before_the_committed_ones(evidence, record, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "own"))
    evidence("lora_distilbert_qv", "untrained", 0.5, [0.4, 0.6], profile="quick")
    mine = Profile("mine", embedded=True)
    own = replace(record, recipe="lora_distilbert_qv", variant="untrained", metrics={"accuracy": 0.9})
    own.save(mine.results)
    assert Evidence(mine).runs("lora_distilbert_qv", "untrained") == [own]
    assert Evidence().runs("lora_distilbert_qv", "untrained")[0].metrics["accuracy"] == 0.5


def test_the_command_prints_every_verdict_with_its_numbers_and_records(verdicts, monkeypatch, capsys):
    monkeypatch.setattr(claims, "decide", lambda claim: verdicts[claim.id])
    assert claims.main() == 0
    printed = capsys.readouterr().out
    for claim in CLAIMS:
        assert f"{claim.id}  {claim.label}: {PINNED[claim.id]}" in printed
    assert "591,362  parameters that train" in printed and "Data/gpu/nvidia-h100-80gb-hbm3/steps.json" in printed


def test_the_figure_names_claims_by_their_labels_and_keeps_every_bar_inside(verdicts):
    figure = plot_claims(verdicts, "what was found")
    names = [text.get_text() for axes in figure.get_axes() for text in axes.texts]
    assert {claim.label for claim in CLAIMS} <= {name.split(": ")[0] for name in names}
    assert "0.47 to 1.03" in names and "0.54%" in names, "what was measured stands in numbers too"
    bars = [bar for found in verdicts.values() for bar in found.bars]
    figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02 and min(drawn.x0, drawn.y0) > -0.02
    for axes in figure.get_axes():
        left, right = axes.get_xlim()
        assert all(left <= x <= right for line in axes.get_lines() for x in line.get_xdata())
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert len(ticks) == len(set(ticks)), "half a point rounded to a whole one"
    assert inf in {end for bar in bars for end in bar.stated}, "a claim of more is drawn to the edge"
    assert {found.kind for found in verdicts.values()} == set(KINDS)
    plt.close(figure)
