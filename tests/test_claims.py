"""Each rule on both sides of its limit with records made up. What the records in Data/ make of each claim is stored in
notebook 10, and test_numbers holds its table to it."""

from dataclasses import replace

import pytest

from helpers.profiles import PROFILES, ROOT, Profile
from helpers.results import StudyRecord
from lab import claims, verdict
from lab.claims import CLAIMS, DECIDED_BY, decide
from lab.figures_costs import plot_claims
from lab.verdict import CONFIRMED, FAILS, HOLDS, ONLY_WHEN, OPEN, REFUTED, UNDECIDED, Evidence, in_range, verdict_on


def test_a_range_that_reaches_over_a_limit_decides_nothing():
    assert (in_range(1.0, 1.2, 1), in_range(0.9, 0.99, 1), in_range(0.9, 1.1, 1)) == (HOLDS, FAILS, OPEN)
    assert (in_range(2.1, 2.9, 2, 3), in_range(2.1, 3.1, 2, 3), in_range(3.1, 4, 2, 3)) == (HOLDS, OPEN, FAILS)
    pairs = ((HOLDS, HOLDS), (HOLDS, OPEN), (OPEN, FAILS))
    assert [verdict.all_of(*pair) for pair in pairs] == [HOLDS, OPEN, FAILS]


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
    for variant in ("as_written", "improved"):
        evidence("lora_distilbert_qv", variant, sum(interval) / 2, interval)
    assert _kind("D3") == kind


def test_a_claim_on_accuracy_needs_its_own_checkpoint(evidence, studies):
    for variant in ("as_written", "improved"):
        evidence("qlora_bert", variant, 0.95, [0.94, 0.96], profile="full")
    assert _kind("B4") == UNDECIDED and "PROFILE=hub" in DECIDED_BY["B4"](Evidence()).needs
    studies("batches", [r for size in (4, 16, 64) for held in ("reviews", "updates")
                        for r in _rows("1" * 180 + "0" * 20, held=held, batch_size=size)], profile="full")  # fmt: skip
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
def studies(monkeypatch, tmp_path):
    """A function that puts a study's rows in place of its record."""
    monkeypatch.setattr(verdict, "RECORDS", tmp_path / "full")

    def put(name, rows, profile="hub"):
        StudyRecord(name, "x", profile, "cpu", {"n_test": 200}, rows).save(tmp_path / "full" / "studies")

    return put


@pytest.mark.parametrize(
    ("qlora", "kind"),
    [((190, 195, 199), CONFIRMED), ((80, 85, 90), REFUTED), ((150, 148, 152), UNDECIDED), ((195, 120, 150), ONLY_WHEN)],
)
def test_competitive_is_no_more_than_two_points_worse(studies, qlora, kind):
    rows = []
    for size, n_train, right in zip((500, 2_000, "all"), (500, 2_000, 5_530), qlora, strict=True):
        rows += _rows("1" * 150 + "0" * 50, rows=size, n_train=n_train, method="full_finetune")
        rows += _rows("0" * (200 - right) + "1" * right, rows=size, n_train=n_train, method="qlora")
    studies("few_rows", rows)
    assert _kind("B5") == kind


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
    measured(fast, _steps("GPU", {"full_finetune": 10, "lora": 8}, {"lora": 99}))
    found = DECIDED_BY["A2"](Evidence())
    assert found.kind == ONLY_WHEN
    held = {name.rpartition(",")[0] for name, case in found.cases.items() if case == HOLDS}
    assert held == {"CPU, every linear layer, fp32 base"}
    assert _kind("A1") == ONLY_WHEN, "99 % of another's memory is not less"
    measured(_steps("CPU", {"full_finetune": 10, "lora": 15}, {}, shapes=3))
    with pytest.raises(FileNotFoundError, match=r"lab\.benchmarks steps"):
        _kind("A2")


@pytest.mark.parametrize(
    ("device", "speed", "held", "saves_70", "slower"),
    [("GPU", 5, 34, CONFIRMED, CONFIRMED), ("GPU", 12, 36, REFUTED, REFUTED), ("GPU", 10, 34, CONFIRMED, UNDECIDED),
     ("GPU", 5, 99, REFUTED, REFUTED), ("CPU", 5, 34, UNDECIDED, CONFIRMED)],
)  # fmt: skip
def test_what_checkpointing_saves_is_asked_of_memory_and_speed_and_70_percent_of_a_gpu(
    measured, device, speed, held, saves_70, slower
):
    rates = {"full_finetune": 10, "qlora": 10, "qlora_checkpointing": speed}
    measured(_steps(device, rates, {"qlora_checkpointing": held}))
    assert (_kind("B3"), _kind("B8")) == (saves_70, slower)


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


def test_a_profile_s_own_runs_come_before_the_committed_ones(evidence, studies, record, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "own"))
    studies("few_rows", [], profile="full")
    StudyRecord("few_rows", "x", "hub", "gpu", {}, []).save(PROFILES["hub"].results / "studies")
    assert [Evidence(profile).study("few_rows").profile for profile in (None, PROFILES["hub"])] == ["full", "hub"]
    evidence("lora_distilbert_qv", "untrained", 0.5, [0.4, 0.6], profile="quick")
    mine, own = Profile("mine", embedded=True), replace(record, recipe="lora_distilbert_qv", variant="untrained")
    own.save(mine.results)
    assert Evidence(mine).runs("lora_distilbert_qv", "untrained") == [own]
    assert Evidence().runs("lora_distilbert_qv", "untrained")[0].metrics["accuracy"] == 0.5


def test_the_command_prints_every_verdict_with_its_numbers_and_records(verdicts, monkeypatch, capsys):
    monkeypatch.setattr(claims, "decide", lambda claim, profile: verdicts[claim.id])
    assert claims.main([]) == 0
    printed = capsys.readouterr().out
    for claim in CLAIMS:
        assert f"{claim.id}  {claim.label}: {verdicts[claim.id].kind}" in printed
    assert "591,362  parameters that train" in printed and "Data/gpu/nvidia-h100-80gb-hbm3/steps.json" in printed


def test_the_figure_has_every_bar_in_its_panel_and_every_word_in_its_frame(verdicts):
    figure = plot_claims(verdicts, "what was found")
    names = [text.get_text() for axes in figure.get_axes() for text in axes.texts]
    assert {claim.label for claim in CLAIMS} <= {name.split(": ")[0] for name in names}
    assert "0.47 to 1.03" in names and "0.54%" in names, "what was measured stands in numbers too"
    figure.canvas.draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x1 < width + 0.02 and drawn.y1 < height + 0.02 and min(drawn.x0, drawn.y0) > -0.02
    bars = [bar for found in verdicts.values() for bar in found.bars]
    assert all(bar.low <= (bar.low if bar.value is None else bar.value) <= bar.high for bar in bars)
    for axes in figure.get_axes():
        left, right = axes.get_xlim()
        assert all(left <= x <= right for line in axes.get_lines() for x in line.get_xdata())
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert len(ticks) == len(set(ticks)), "half a point rounded to a whole one"
