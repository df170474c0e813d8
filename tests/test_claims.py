import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest

from helpers import claims
from helpers.claims import markdown_table, write_readme
from helpers.plots_claims import plot_claims, plot_learning_curve, verdict_kind
from helpers.profiles import ROOT, Profile
from helpers.results import StudyRecord, load_records
from helpers.studies import sizes_ahead
from helpers.verdicts import CLAIMS, CONFIRMED, REFUTED, UNDECIDED, Evidence, Missing, decide_all, relative_path

NOTHING = Profile("nothing", embedded=True, n_train=1, n_validation=1, n_test=1, max_length=8)


def test_the_readme_says_what_the_records_say():
    text = claims.README.read_text(encoding="utf-8")
    assert claims.START in text and claims.END in text
    table = text.split(claims.START)[1].split(claims.END)[0].strip()
    assert table == markdown_table(decide_all()), "run: python -m helpers.claims"


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
    monkeypatch.setattr("helpers.verdicts.EVIDENCE", tmp_path)
    monkeypatch.setattr("helpers.profiles.COMMITTED", tmp_path)
    verdicts = decide_all()
    assert verdicts["B4"].verdict == f"{UNDECIDED}: run make run, for qlora_bert-as_written-seed42.json"
    assert verdicts["A1"].verdict == f"{UNDECIDED}: run python -m helpers.benchmarks steps"
    assert verdicts["B5"].verdict == f"{UNDECIDED}: run python -m helpers.claims --learning-curve"
    assert verdicts["B1"].verdict == CONFIRMED  # a count needs no record
    assert all(verdict_kind(verdict) for verdict in verdicts.values())


@pytest.fixture
def evidence(record, tmp_path, monkeypatch):
    """A folder of run records that stands for the committed ones, and a function that adds to it."""
    monkeypatch.setattr("helpers.verdicts.EVIDENCE", tmp_path)
    monkeypatch.setattr("helpers.verdicts.relative_path", lambda path: path.name)

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


def test_a_comparison_is_decided_by_the_paired_test(evidence):
    evidence("lora_distilbert_qv", "untrained", "10" * 100)
    evidence("lora_distilbert_qv", "bag_of_words", "1" * 170 + "0" * 30)
    evidence("lora_distilbert_q", "as_written", "1" * 160 + "0" * 40)
    assert _decide("A3").verdict == CONFIRMED
    assert _decide("A4").verdict == REFUTED
    evidence("lora_distilbert_q", "as_written", "10" * 100)
    assert _decide("A3").verdict == REFUTED


def test_runs_on_different_rows_are_not_compared(evidence):
    evidence("lora_distilbert_qv", "untrained", "10" * 100)
    evidence("lora_distilbert_q", "as_written", "10" * 50)
    with pytest.raises(Missing, match="on the same rows"):
        _decide("A3")


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


def test_the_readme_s_table_is_replaced_and_nothing_else(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{claims.START}\nold\n{claims.END}\nafter\n")
    assert write_readme(readme) and not write_readme(readme)
    text = readme.read_text()
    assert (
        text.startswith(f"before\n{claims.START}\n| |")
        and text.endswith(f"{claims.END}\nafter\n")
        and "old" not in text
    )
    readme.write_text("no markers")
    with pytest.raises(ValueError, match=r"README\.md lacks the lines"):
        write_readme(readme)


def _curve(**methods):
    rows = [
        {"method": name, "n_train": size, "correct": "1" * right + "0" * (100 - right), "accuracy": right / 100}
        for name, rights in methods.items()
        for size, right in zip((250, 500, 1000), rights, strict=True)
    ]
    rows = [row | {"accuracy_ci95": [row["accuracy"] - 0.1, row["accuracy"] + 0.1]} for row in rows]
    return StudyRecord("learning_curve", "x", "full", "cpu", {"n_scored": 100, "methods_at": 500}, rows)


def test_fine_tuning_is_ahead_where_the_paired_test_says_so():
    bag = (50, 60, 70)
    assert sizes_ahead(_curve(bag_of_words=bag, lora=(55, 75, 85))) == [500, 1000]  # five rows more are chance
    assert sizes_ahead(_curve(bag_of_words=bag, lora=(70, 62, 71))) == [250]
    assert sizes_ahead(_curve(bag_of_words=bag, lora=(30, 40, 50))) == []  # far behind is not ahead
    assert sizes_ahead(_curve(bag_of_words=bag, lora=bag, qlora=(50, 60, 90)), "qlora") == [1000]


def test_the_figures_show_each_claim_and_each_method():
    verdicts = decide_all()
    figure = plot_claims(verdicts)
    text = " ".join(entry.get_text() for entry in figure.axes[0].texts)
    assert all(claim.id in text for claim in CLAIMS) and figure.axes[0].get_title().startswith("22 claims")
    curve = _curve(bag_of_words=(50, 60, 70), lora=(55, 75, 85), full_finetune=(50, 70, 88))
    figure = plot_learning_curve(curve, [250, 500])
    assert figure.axes[0].get_title() == "LoRA beats a bag of words at 250 and 500 rows; no such difference at 1,000"
    everywhere = plot_learning_curve(curve, [250, 500, 1000]).axes[0].get_title()
    assert everywhere == "LoRA beats a bag of words at 250, 500 and 1,000 rows, every size tried"
    assert plot_learning_curve(curve, []).axes[0].get_title().startswith("No size")
    assert {entry.get_text() for entry in figure.axes[0].texts} == {"bag of words", "LoRA", "full fine-tuning"}


def test_adopting_copies_runs_and_studies(record, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path)
    monkeypatch.setattr(claims, "EVIDENCE", tmp_path / "evidence")
    record.save(tmp_path / "nothing" / "results")
    StudyRecord("rank", "x", "nothing", "cpu", {}, []).save(tmp_path / "nothing" / "results" / "studies")
    assert [path.name for path in claims.adopt(NOTHING)] == [f"{record.name}.json", "rank.json"]
    assert json.loads((tmp_path / "evidence" / f"{record.name}.json").read_text()) == asdict(record)


def test_two_that_adopt_at_once_damage_nothing(record, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path)
    monkeypatch.setattr(claims, "EVIDENCE", tmp_path / "evidence")
    records = [replace(record, seed=seed) for seed in range(10)]
    for run in records:
        run.save(tmp_path / "nothing" / "results")
    (tmp_path / "nothing" / "results" / ".half.json").write_text("{")  # hidden: a file that is being written
    with ThreadPoolExecutor(4) as runs:
        list(runs.map(lambda _: claims.adopt(NOTHING), range(8)))
    assert load_records(tmp_path / "evidence") == sorted(records, key=lambda run: run.name)
    assert len(list((tmp_path / "evidence").iterdir())) == 10


def test_an_adoption_that_fails_half_way_leaves_the_earlier_record(record, tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.profiles.DATA_DIR", tmp_path)
    monkeypatch.setattr(claims, "EVIDENCE", tmp_path / "evidence")
    record.save(tmp_path / "nothing" / "results")
    claims.adopt(NOTHING)

    def half(source, target):
        target.write_text(source.read_text()[:100])
        raise OSError("gone")

    monkeypatch.setattr(claims.shutil, "copy", half)
    with pytest.raises(OSError, match="gone"):
        claims.adopt(NOTHING)
    assert load_records(tmp_path / "evidence") == [record]
    assert len(list((tmp_path / "evidence").iterdir())) == 1
