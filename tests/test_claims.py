import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import matplotlib.pyplot as plt
import pytest

from helpers.base.paths import ROOT
from helpers.claims import __main__ as claims_command
from helpers.claims.__main__ import write_readme
from helpers.claims.evidence import CONFIRMED, ONLY_WHEN, REFUTED, UNDECIDED, Evidence, Missing, relative_path
from helpers.claims.findings import findings, rank_gains, rate_gain, short_table
from helpers.claims.scale import rows_at_scale, scale_table
from helpers.claims.verdicts import CLAIMS, decide_all
from helpers.plots.claims import plot_claims, plot_few_rows
from helpers.profiles import Profile
from helpers.results import StudyRecord, load_records

NOTHING = Profile("nothing", embedded=True, n_train=1, n_validation=1, n_test=1, max_length=8)


def test_the_readme_says_what_the_records_say():
    text = claims_command.README.read_text(encoding="utf-8")
    verdicts, scale = decide_all(), scale_table(rows_at_scale(Evidence()))
    for part, says in (("findings", findings(verdicts)), ("claims", short_table(verdicts)), ("scale", scale)):
        start, end = claims_command.markers(part)
        assert text.split(start)[1].split(end)[0].strip() == says, "run: python -m helpers.claims"


def test_the_headlines_hold_by_the_rule_of_comparison():
    evidence = Evidence()
    assert rate_gain(evidence).verdict == "better" and rate_gain(evidence).low > 0.1
    assert {gain.verdict for gain in rank_gains(evidence).values()} == {"no difference seen"}
    rates = [row["learning_rate"] for row in evidence.study("ranks")[0].rows]
    assert rates == sorted(rates, reverse=True), "the best rate falls with the rank"


def test_all_22_claims_are_decided_by_records_that_are_there():
    verdicts = decide_all()
    assert [claim.id for claim in CLAIMS] == [
        *("A1", "A2", "A3", "A4", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8"),
        *("C1", "C2", "C3", "C4", "D1", "D2", "D3", "E1", "E2", "E3"),
    ]
    for id, verdict in verdicts.items():
        assert verdict.measured and verdict.sentence and verdict.records, id
        assert all((ROOT / path).is_file() for path in verdict.records), id


def test_a_claim_without_its_record_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.claims.evidence.kept", lambda profile: tmp_path)
    monkeypatch.setattr("helpers.claims.evidence.AT_SCALE", tmp_path)
    monkeypatch.setattr("helpers.profiles.COMMITTED", tmp_path)
    verdicts = decide_all()
    assert verdicts["B4"].verdict == f"{UNDECIDED}: run make run, for qlora_bert-as_written-seed42.json"
    assert verdicts["A1"].verdict == f"{UNDECIDED}: run python -m helpers.benchmarks steps"
    assert verdicts["B5"].verdict == f"{UNDECIDED}: run make full ONLY=few_rows"
    assert verdicts["C4"].verdict == f"{UNDECIDED}: run make full, for lora_bert_cased-as_written-seed42.json"
    assert verdicts["B1"].verdict == CONFIRMED  # a count needs no record
    assert all(verdict.kind for verdict in verdicts.values())


@pytest.fixture
def evidence(record, tmp_path, monkeypatch):
    """A folder of run records that stands for the committed ones, and a function that adds to it."""
    monkeypatch.setattr("helpers.claims.evidence.kept", lambda profile: tmp_path)
    monkeypatch.setattr("helpers.claims.evidence.AT_SCALE", tmp_path)
    monkeypatch.setattr("helpers.claims.evidence.relative_path", lambda path: path.name)

    def add(recipe, variant, correct, profile="quick", **changes):
        accuracy = correct.count("1") / len(correct)
        interval = [accuracy - 0.01, accuracy + 0.01]
        run = replace(record, recipe=recipe, variant=variant, profile=profile, correct=correct, **changes)
        run = replace(run, metrics={"accuracy": accuracy, "weighted_f1": accuracy}, accuracy_ci95=interval)
        run.settings = {"base_model": "bert-base-uncased"}
        run.save(tmp_path)

    return add


def _decide(id):
    return next(claim for claim in CLAIMS if claim.id == id).decide(Evidence())


def _rows(correct, seeds=3, **labels):
    """A row a seed; those of other seeds are shifted, so that the same rows are not right in all of them."""
    shifted = [correct[seed:] + correct[:seed] for seed in range(seeds)]
    return [
        {"seed": seed, "n_train": 500, "trainable_params": 1, "seconds": 1.0, "correct": one,
         "accuracy": one.count("1") / len(one), **labels}
        for seed, one in enumerate(shifted)
    ]  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A function that writes a study's record where `make full` does."""
    monkeypatch.setattr("helpers.claims.evidence.AT_SCALE", tmp_path)

    def write(name, rows):
        StudyRecord(name, "x", "full", "cpu", {"n_test": 200}, rows).save(tmp_path / "studies")

    return write


GOOD, FAIR, COIN = "1" * 180 + "0" * 20, "1" * 150 + "0" * 50, "10" * 100


def test_accuracy_improves_if_it_does_over_what_costs_nothing(evidence, study):
    study("baselines", _rows(FAIR, 1, rows_of="lora_distilbert_q", method="frozen_encoder"))
    evidence("lora_distilbert_q", "head_only", FAIR)
    evidence("lora_distilbert_q", "as_written", GOOD)
    assert _decide("A3").verdict == CONFIRMED and len(_decide("A3").bars) == 2
    evidence("lora_distilbert_q", "as_written", FAIR)
    assert _decide("A3").verdict == REFUTED, "as good as the head alone is no improvement"
    evidence("lora_distilbert_q", "head_only", COIN)
    assert _decide("A3").verdict == REFUTED, "the frozen encoder is as good"


def test_out_of_the_box_is_beaten_as_written_or_when_improved(evidence, study):
    study("baselines", _rows(FAIR, 1, rows_of="lora_bert_cased", method="frozen_encoder"))
    evidence("lora_bert_cased", "head_only", COIN)
    evidence("lora_bert_cased", "as_written", FAIR)
    evidence("lora_bert_cased", "improved", GOOD)
    assert _decide("C4").verdict == f"{ONLY_WHEN} the recipe is improved"
    evidence("lora_bert_cased", "as_written", GOOD)
    assert _decide("C4").verdict == CONFIRMED


def test_runs_on_different_rows_are_not_compared(evidence, study):
    study("baselines", _rows(FAIR, 1, rows_of="lora_distilbert_q", method="frozen_encoder"))
    evidence("lora_distilbert_q", "head_only", COIN)
    evidence("lora_distilbert_q", "as_written", "10" * 50)
    with pytest.raises(Missing, match="on the same rows"):
        _decide("A3")


def _sizes(*qlora):
    """`few_rows` with full fine-tuning at 150 of 200 and QLoRA at the given numbers of right rows."""
    rows = []
    for size, n_train, right in zip((500, 2000, "all"), (500, 2_000, 5_530), qlora, strict=True):
        rows += _rows(FAIR, rows=size, n_train=n_train, method="full_finetune")
        rows += _rows("0" * (200 - right) + "1" * right, rows=size, n_train=n_train, method="qlora")
    return rows


def test_competitive_is_not_worse_by_two_points(study):
    study("few_rows", _sizes(190, 195, 199))
    assert _decide("B5").verdict == CONFIRMED
    study("few_rows", _sizes(80, 85, 90))
    assert _decide("B5").verdict == REFUTED
    study("few_rows", _sizes(150, 148, 152))
    assert _decide("B5").verdict.startswith(UNDECIDED), "an interval that reaches over the margin decides nothing"
    study("few_rows", _sizes(195, 120, 150))
    assert _decide("B5").verdict.startswith(ONLY_WHEN)


def test_a_small_batch_is_high_if_larger_ones_are_no_higher(study):
    def rows(*right):
        found = []
        for held in ("reviews", "updates"):
            for size, n in zip((4, 16, 64), right, strict=True):
                found += _rows("1" * n + "0" * (200 - n), held=held, batch_size=size)
        return found

    study("batches", rows(180, 160, 150))
    assert _decide("A4").verdict == CONFIRMED
    study("batches", rows(120, 160, 170))
    assert _decide("A4").verdict == REFUTED
    study("batches", rows(150, 120, 170))
    assert _decide("A4").verdict == f"{ONLY_WHEN} compared with batches of 16"


def test_a_coin_toss_is_one(evidence):
    evidence("lora_distilbert_qv", "untrained", COIN)
    assert _decide("D2").verdict == CONFIRMED
    evidence("lora_distilbert_qv", "untrained", "1" * 110 + "0" * 90)
    assert _decide("D2").verdict == REFUTED


def test_epochs_are_told_over_all_seeds(evidence, record):
    for seed, last in ((42, 0.7), (43, 0.8)):
        history = {"validation": [{"accuracy": accuracy} for accuracy in (0.5, 0.6, last)]}
        for variant in ("as_written", "improved"):
            evidence("lora_bert_sst2", variant, COIN, seed=seed, history=history)
    verdict = _decide("E1")
    assert verdict.measured.startswith("as written 50.0% / 60.0% / 75.0%") and "mean of 2 seeds" in verdict.measured
    assert (verdict.bars[0].low, verdict.bars[0].high) == (0.7, 0.8) and verdict.verdict == UNDECIDED


def test_a_stated_accuracy_is_decided_on_the_real_checkpoint_only(evidence):
    for variant in ("as_written", "improved"):
        evidence("qlora_bert", variant, "1" * 94 + "0" * 6)
    assert _decide("B4").verdict == UNDECIDED and "PROFILE=hub" in _decide("B4").sentence
    evidence("qlora_bert", "as_written", "1" * 94 + "0" * 6, profile="hub")
    assert _decide("B4").verdict == CONFIRMED
    evidence("qlora_bert", "as_written", "1" * 80 + "0" * 20, profile="hub")
    assert _decide("B4").verdict == REFUTED


def test_a_profile_s_own_records_come_before_the_committed_ones(evidence, record, tmp_path, monkeypatch):
    evidence("lora_distilbert_qv", "untrained", "10" * 100)
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path / "Data")
    own = replace(record, recipe="lora_distilbert_qv", variant="untrained", metrics={"accuracy": 0.9})
    own.save(tmp_path / "Data" / "nothing" / "results")
    assert Evidence(NOTHING).run("lora_distilbert_qv", "untrained")[0] == own
    assert Evidence().run("lora_distilbert_qv", "untrained")[0].metrics["accuracy"] == 0.5


def test_a_record_outside_the_repository_is_shown_whole(tmp_path):
    assert relative_path(ROOT / "Data" / "cpu" / "here" / "steps.json") == "Data/cpu/here/steps.json"
    assert relative_path(tmp_path / "steps.json") == (tmp_path / "steps.json").as_posix()


def test_the_readme_s_computed_parts_are_replaced_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    parts = list(map(claims_command.markers, claims_command.PARTS))
    readme.write_text(
        "before\n" + "\nbetween\n".join(f"{start}\nobsolete\n{end}" for start, end in parts) + "\nafter\n"
    )
    verdicts = decide_all()
    assert write_readme(verdicts, readme) and not write_readme(verdicts, readme)
    text = readme.read_text()
    (first, first_end), (second, second_end), (third, last) = parts
    assert text.startswith(f"before\n{first}\nOf 22 claims") and f"\n{first_end}\nbetween\n{second}\n| " in text
    assert f"\n{second_end}\nbetween\n{third}\n| " in text
    assert text.endswith(f"{last}\nafter\n") and "obsolete" not in text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match=r"README\.md lacks the lines"):
        write_readme(verdicts, readme)


def test_the_readme_says_what_the_install_took():
    record = StudyRecord.load(ROOT / "Data/cpu/amd-epyc-2-threads/install.json")
    ours, *others = record.rows
    text = claims_command.README.read_text(encoding="utf-8")
    assert f"{len(ours['commands'])} commands and {ours['seconds']['first figure']} seconds" in text
    counts = [len(row["commands"]) for row in others]
    assert "the {} commands of LLMs-from-scratch's IMDb example and the {} of peft's".format(*counts) in text
    assert all(len(ours["commands"]) < count for count in counts)


def test_without_the_records_of_the_findings_the_readme_stays_and_one_line_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("helpers.claims.evidence.AT_SCALE", tmp_path)
    before = claims_command.README.read_bytes()
    assert claims_command.main([]) == 1 and claims_command.README.read_bytes() == before
    assert capsys.readouterr().err.endswith("is missing. Run: make full ONLY=baselines\n")


def test_the_figure_has_what_is_stated_and_what_was_measured_of_each_number():
    verdicts = decide_all()
    figure = plot_claims(verdicts)
    names = [label.get_text() for axes in figure.get_axes() for label in axes.get_yticklabels()]
    bars = [bar for verdict in verdicts.values() for bar in verdict.bars]
    assert len(names) == len(bars) > 10 and {name.split()[0] for name in names} == {
        c for c in verdicts if verdicts[c].bars
    }
    assert figure.get_suptitle().startswith(f"{len(CLAIMS)} claims: ")
    dots = [x for axes in figure.get_axes() for line in axes.get_lines() if line.get_marker() == "o"
            for x in line.get_xdata()]  # fmt: skip
    assert sorted(dots) == sorted(bar.value for bar in bars if bar.value is not None), "a range has no estimate"
    assert all(bar.low <= bar.value <= bar.high for bar in bars if bar.value is not None)
    assert {bar.axis for bar in bars if bar.value is None} == {"times", "share", "accuracy"}
    figure.canvas.draw()
    for axes in figure.get_axes():
        ticks = [label.get_text() for label in axes.get_xticklabels()]
        assert len(ticks) == len(set(ticks)), "half a point rounded to a whole one"
        left, right = axes.get_xlim()
        for line in axes.get_lines():
            assert all(left <= x <= right for x in line.get_xdata()), "a measurement outside of its panel"
    plt.close(figure)


def test_the_curve_has_a_line_for_each_method():
    point = {"accuracy": 0.7, "low": 0.68, "high": 0.72}
    points = {name: [{**point, "n_train": size} for size in (500, 100)] for name in ("bag_of_words", "lora", "qlora")}
    axes = plot_few_rows(points, "what is seen", 2_000).axes[0]
    assert axes.get_title() == "what is seen" and "n = 2,000" in axes.get_ylabel()
    assert {entry.get_text() for entry in axes.texts} == {"bag of words", "LoRA", "QLoRA"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "500"]


def test_adopting_copies_runs_and_studies(record, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path)
    monkeypatch.setattr(claims_command, "kept", lambda profile: tmp_path / "evidence")
    record.save(tmp_path / "nothing" / "results")
    StudyRecord("rank", "x", "nothing", "cpu", {}, []).save(tmp_path / "nothing" / "results" / "studies")
    assert [path.name for path in claims_command.adopt(NOTHING)] == [f"{record.name}.json", "rank.json"]
    assert json.loads((tmp_path / "evidence" / f"{record.name}.json").read_text()) == asdict(record)


def test_two_that_adopt_at_once_damage_nothing(record, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path)
    monkeypatch.setattr(claims_command, "kept", lambda profile: tmp_path / "evidence")
    records = [replace(record, seed=seed) for seed in range(10)]
    for run in records:
        run.save(tmp_path / "nothing" / "results")
    (tmp_path / "nothing" / "results" / ".half.json").write_text("{")  # hidden: a file that is being written
    with ThreadPoolExecutor(4) as runs:
        list(runs.map(lambda _: claims_command.adopt(NOTHING), range(8)))
    assert load_records(tmp_path / "evidence") == sorted(records, key=lambda run: run.name)
    assert len(list((tmp_path / "evidence").iterdir())) == 10


def test_an_adoption_that_fails_half_way_leaves_the_earlier_record(record, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path)
    monkeypatch.setattr(claims_command, "kept", lambda profile: tmp_path / "evidence")
    record.save(tmp_path / "nothing" / "results")
    claims_command.adopt(NOTHING)

    def half(source, target):
        target.write_text(source.read_text()[:100])
        raise OSError("gone")

    monkeypatch.setattr(claims_command.shutil, "copy", half)
    with pytest.raises(OSError, match="gone"):
        claims_command.adopt(NOTHING)
    assert load_records(tmp_path / "evidence") == [record]
    assert len(list((tmp_path / "evidence").iterdir())) == 1
