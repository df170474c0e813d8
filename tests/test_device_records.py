"""04's tables and figures, and every verdict, on any set of device records."""

import json
from itertools import permutations

import matplotlib.pyplot as plt
import pytest
from device_records import DEVICES, as_device, step_row, write_device

from helpers import profiles
from helpers.base.paths import ROOT
from helpers.benchmarks import records, steps
from helpers.benchmarks.budget import memory_budget
from helpers.benchmarks.ladder import method_recipe
from helpers.benchmarks.records import benchmark_to_show, device_folder, find_benchmarks, main_rows
from helpers.benchmarks.steps import StepSpec, live_specs, measure_step, step_specs, steps_to_show
from helpers.claims.evidence import CONFIRMED, REFUTED, UNDECIDED, Evidence, relative_path
from helpers.claims.verdicts import CLAIMS, decide_all, markdown_table
from helpers.plots.efficiency import plot_efficiency_comparison, plot_memory_breakdown, plot_speed_ladder
from helpers.profiles import PROFILES
from helpers.results import StudyRecord

ORDERS = [order for count in (1, 2, 3) for order in permutations(DEVICES, count)]
LIVE = {"04-25", "04-33"}  # cells that measure here and now
LORA = ("lora", "lora_query_value")


@pytest.fixture
def committed(tmp_path, monkeypatch):
    """An empty folder in place of the repository's `Data`, which is the data folder, too."""
    monkeypatch.setattr(profiles, "COMMITTED", tmp_path / "Data")
    monkeypatch.setattr(profiles, "DATA_DIR", tmp_path / "Data")
    return tmp_path / "Data"


def _first(devices):
    """The device whose record is read: GPUs first, by name."""
    return next(name for name in ("a100", "t4", "cpu") if name in devices)


def test_made_up_rows_have_the_fields_of_measured_ones(tiny_checkpoints):
    spec = StepSpec("tiny", "lora", 2, 16, "fp32", "eager")
    assert set(step_row(spec)) == set(measure_step(spec, "cpu", tiny_checkpoints["bert"], min_seconds=0))


@pytest.mark.parametrize("devices", ORDERS, ids="-".join)
def test_every_verdict_compares_what_it_names_whatever_devices_were_measured(devices, committed):
    for name in devices:
        write_device(committed, name)
    label, execution = DEVICES[_first(devices)]
    verdicts = decide_all()
    speed, memory, half = verdicts["C3"], verdicts["B3"], verdicts["B7"]
    assert speed.verdict == verdicts["A1"].verdict == verdicts["A2"].verdict == verdicts["B8"].verdict == CONFIRMED
    assert " layer 2.45 to 2.55 times" in speed.measured  # 2.5, and the windows' scatter: no row of another execution
    assert label in speed.measured and f"{execution.precision}, {execution.attention} attention" in speed.measured
    assert verdicts["A1"].measured.startswith("60% to 60% less") and memory.measured.startswith("70% to 70% less")
    if devices == ("cpu",):
        assert memory.verdict == half.verdict == UNDECIDED
        assert "python -m helpers.benchmarks steps" in memory.sentence and "on one" in half.sentence
        assert half.measured == "beside it, a CPU's bf16: 3.0 to 3.0 times as fast as its fp32 (AMD EPYC (2 threads))"
    else:
        assert memory.verdict == half.verdict == CONFIRMED
        assert "AMD EPYC" not in memory.measured
        assert "QLoRA 2.45 to 2.55 times; accuracy in LoRA the same" in half.measured and label in half.measured
    assert all("cpu (2 threads)" not in path for path in half.records)
    assert markdown_table(verdicts).count("\n") == len(CLAIMS) + 1


def test_fp16_that_loses_accuracy_or_gains_no_speed_is_refuted(committed):
    folder = write_device(committed, "t4")

    def edit(name, change):
        path = folder / f"{name}.json"
        data = json.loads(path.read_text())
        data["rows"] = [change(row) or row for row in data["rows"]]
        path.write_text(json.dumps(data))

    edit("accuracy", lambda row: row.update(correct="0" * 100) if row["precision"] == "fp16" else None)
    assert decide_all()["B7"].verdict == REFUTED
    write_device(committed, "t4")
    edit("steps", lambda row: row.update(windows=[0.01] * 3) if row["precision"] == "fp16" else None)
    assert decide_all()["B7"].verdict == REFUTED
    write_device(committed, "t4")
    slower = ("lora", "qlora")
    edit(
        "steps", lambda row: row.update(windows=[0.01] * 3) if "fp16" in row.values() and row["method"] in slower else 0
    )
    assert decide_all()["B7"].verdict == "confirmed only when it is full fine-tuning; not LoRA or QLoRA"
    edit("accuracy", lambda row: row.update(precision="none") if row["settings"] == "full_finetune" else None)
    half = decide_all()["B7"]
    assert half.verdict == (
        f"{UNDECIDED}: not LoRA or QLoRA; full fine-tuning faster, the accuracy not measured; "
        "run python -m helpers.benchmarks accuracy there"
    )
    assert "accuracy in LoRA the same answers on all rows, QLoRA the same" in half.measured
    (folder / "accuracy.json").unlink()
    assert decide_all()["B7"].verdict == UNDECIDED  # speed alone is half the claim


def _with_windows(folder, first, second, methods=LORA):
    """Sets the windows of LoRA: `first` at BERT-base's size, `second` at the other; full fine-tuning's are at 1.

    Of its two sets of layers, or of those alone whose method is in `methods`.
    """
    path = folder / "steps.json"
    data = json.loads(path.read_text())
    for row in data["rows"]:
        of_lora = first if row["size"] == "bert-base" else second
        row["windows"] = of_lora if row["method"] in methods else row["windows"] if row["method"] in LORA else [1.0] * 3
    path.write_text(json.dumps(data))
    return decide_all()


def test_a_range_that_reaches_over_a_limit_with_its_scatter_is_not_confirmed(committed):
    folder = write_device(committed, "cpu")
    assert _with_windows(folder, [2.1, 2.2, 2.9], [2.1, 2.2, 2.3])["C3"].verdict == CONFIRMED
    assert _with_windows(folder, [1.9, 2.2, 2.9], [1.9, 2.2, 2.9])["C3"].verdict.startswith(UNDECIDED)
    some = _with_windows(folder, [2.1, 2.2, 2.9], [1.9, 2.2, 2.9])["C3"].verdict
    assert some.startswith("confirmed only when the shape is BERT-base's shape at 4 x 128") and "embedded" not in some
    assert _with_windows(folder, [1.7, 1.8, 1.9], [3.1, 3.2, 3.3])["C3"].verdict == REFUTED
    for windows, verdict in (([1.1, 1.2, 1.3], CONFIRMED), ([0.9, 1.2, 1.3], UNDECIDED), ([0.7, 0.8, 0.9], REFUTED)):
        assert _with_windows(folder, windows, windows)["A2"].verdict.split(":")[0] == verdict


def test_devices_that_disagree_are_each_named_in_the_verdict(committed):
    write_device(committed, "cpu")
    folder = write_device(committed, "t4")
    slower, across, faster = [0.7, 0.8, 0.9], [0.9, 1.0, 1.1], [1.1, 1.2, 1.3]
    on_cpu = "confirmed only when it runs on AMD EPYC (2 threads)"
    assert _with_windows(folder, slower, slower)["A2"].verdict == f"{on_cpu}; not on Tesla T4"
    verdict = _with_windows(folder, slower, across)["A2"]
    assert verdict.verdict == f"{on_cpu}; open on Tesla T4 (outside at 6 of 12 shapes)"
    kinds = ["on a GPU", "on a CPU"]
    assert [bar.label for bar in verdict.bars] == kinds + [f"{kind}, query and value" for kind in kinds]
    assert len(verdict.records) == 2
    assert "Tesla T4" in verdict.measured and "AMD EPYC" in verdict.measured
    some = _with_windows(folder, faster, slower)["A2"].verdict
    assert some.startswith(
        "confirmed only when it runs on AMD EPYC (2 threads); on Tesla T4, where the shape is BERT-base's"
    )
    cpu = next(committed.glob("cpu/*/steps.json")).parent
    assert _with_windows(cpu, across, across)["A2"].verdict.endswith("; open on AMD EPYC (2 threads)")
    _with_windows(folder, slower, slower)
    open_one = f"{UNDECIDED}: not on Tesla T4; open on AMD EPYC (2 threads); run python -m helpers.benchmarks steps"
    assert decide_all()["A2"].verdict == f"{open_one} on a quiet machine"
    assert decide_all()["B3"].records == (relative_path(folder / "steps.json"),), (
        "of GPUs alone, where one was measured"
    )


def test_speed_is_decided_for_both_sets_of_layers(committed):
    folder = write_device(committed, "cpu")
    slower, faster = [0.7, 0.8, 0.9], [1.1, 1.2, 1.3]
    _with_windows(folder, faster, faster)
    differ = _with_windows(folder, slower, slower, ["lora"])["A2"]
    device = "AMD EPYC (2 threads)"
    assert differ.verdict == (
        f"confirmed only when it runs on {device} with adapters on query and value; "
        f"not on {device} with adapters on every linear layer"
    )
    assert "with adapters on query and value 1." in differ.measured
    assert _with_windows(folder, slower, slower)["A2"].verdict == REFUTED, "no layers are named where both agree"
    data = json.loads((folder / "steps.json").read_text())
    data["rows"] = [row for row in data["rows"] if row["method"] != "lora_query_value"]
    (folder / "steps.json").write_text(json.dumps(data))
    alone = decide_all()["A2"]
    assert alone.verdict == REFUTED and len(alone.bars) == 1 and "query" not in alone.measured


def test_a_device_that_measured_one_set_of_layers_is_named_with_it(committed):
    write_device(committed, "cpu")
    folder = write_device(committed, "t4")
    slower, across = [0.7, 0.8, 0.9], [0.9, 1.0, 1.1]
    _with_windows(next(committed.glob("cpu/*/steps.json")).parent, across, across)
    data = json.loads((folder / "steps.json").read_text())
    data["rows"] = [row for row in data["rows"] if row["method"] != "lora_query_value"]
    (folder / "steps.json").write_text(json.dumps(data))
    verdict = _with_windows(folder, slower, slower)["A2"].verdict
    on_gpu = "not on Tesla T4 with adapters on every linear layer"
    assert verdict.startswith(f"{UNDECIDED}: {on_gpu}; open on AMD EPYC (2 threads); run")


def test_a_handful_of_shapes_decides_nothing_and_the_next_device_is_asked(committed):
    write_device(committed, "cpu")
    folder = write_device(committed, "t4")
    with as_device("t4") as execution:
        rows = [step_row(spec) for spec in live_specs(execution)]
        rows += [row | {"size": "embedded"} for row in rows]
        records.device_record("steps", execution, {}, rows).save(folder)
    assert "AMD EPYC" in decide_all()["C3"].measured
    for path in committed.glob("cpu/*/steps.json"):
        path.unlink()
    assert decide_all()["C3"].verdict == f"{UNDECIDED}: run python -m helpers.benchmarks steps"


def test_a_t4_and_an_a100_measure_the_formats_that_they_multiply():
    for name, formats in (("t4", {"fp32", "fp16"}), ("a100", {"fp32", "fp16", "bf16"})):
        with as_device(name) as execution:
            specs = step_specs(execution)
        assert {spec.precision for spec in specs} == formats and len(specs) == len(set(specs))
        assert {spec.tokens for spec in specs} == {128, 256, 512} and {spec.attention for spec in specs} == {"sdpa"}
        assert {spec.optimizer for spec in specs} == {"adamw_torch", "paged_adamw_8bit"}
        assert any((spec.batch_size, spec.tokens) == (64, 512) for spec in specs)


@pytest.mark.parametrize("devices", ORDERS, ids="-".join)
def test_records_are_read_gpus_first_by_name_and_the_own_one_before(devices, committed):
    for name in devices:
        write_device(committed, name)
    assert [record.device for _, record in find_benchmarks("steps")] == [
        DEVICES[name][0] for name in ("a100", "t4", "cpu") if name in devices
    ]
    for name, (label, execution) in DEVICES.items():
        with as_device(name):
            shown = benchmark_to_show("steps", execution)
        assert shown.device == (label if name in devices else DEVICES[_first(devices)][0])
        own = {(row["precision"], row["attention"], row["optimizer"]) for row in main_rows(shown)}
        used = shown.settings["execution"]
        assert own == {(used["precision"], used["attention"], "adamw_torch")}


def test_the_data_folder_s_record_of_a_device_comes_before_the_repository_s(tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "COMMITTED", tmp_path / "Data")
    monkeypatch.setattr(profiles, "DATA_DIR", tmp_path / "drive")
    write_device(tmp_path / "Data", "cpu")
    own = write_device(tmp_path / "drive", "cpu")
    write_device(tmp_path / "drive", "t4")
    paths = [path for path, _ in find_benchmarks("steps")]
    assert [path.parent.parent.name for path in paths] == ["gpu", "cpu"] and paths[1].parent == own
    assert "Tesla T4" in decide_all(PROFILES["quick"])["C3"].measured
    assert "AMD EPYC" in decide_all()["C3"].measured  # the committed records alone
    with as_device("t4") as execution:
        assert device_folder(execution) == tmp_path / "drive" / "gpu" / "tesla-t4"
    assert Evidence(PROFILES["quick"]).benchmark("steps")[1] == (tmp_path / "drive/gpu/tesla-t4/steps.json").as_posix()


def test_without_any_record_the_command_is_named(committed):
    with pytest.raises(FileNotFoundError, match=r"Run: python -m helpers\.benchmarks ladder"):
        benchmark_to_show("ladder", DEVICES["cpu"][1])
    assert decide_all()["A1"].verdict == f"{UNDECIDED}: run python -m helpers.benchmarks steps"


def test_what_the_environment_withholds_is_in_the_device_s_name(committed, monkeypatch):
    monkeypatch.delenv("PRECISION", raising=False)
    with as_device("cpu") as execution:
        assert device_folder(execution).name == "amd-epyc-2-threads"
        monkeypatch.setenv("PRECISION", "fp32")
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
        fp32 = profiles.fastest_execution()
        assert records.device_label(fp32) == "AMD EPYC (2 threads), fp32 alone, ONEDNN_MAX_CPU_ISA=AVX2"
        assert device_folder(fp32).name == "amd-epyc-2-threads-fp32-alone-onednn-max-cpu-isa-avx2"


def test_a_gpu_without_a_record_measures_a_handful_says_so_and_keeps_it(committed, monkeypatch, capsys):
    write_device(committed, "a100")
    measured = []

    def measure(spec, **_):
        measured.append(StepSpec(**spec))
        if spec["method"] == "full_finetune" and spec["batch_size"] == 16:
            raise RuntimeError("call_step failed:\ntorch.OutOfMemoryError: CUDA out of memory.")
        return step_row(StepSpec(**spec))

    monkeypatch.setattr(steps, "call_step", measure)
    monkeypatch.setattr(steps, "matmul_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr(steps, "random_bert", lambda folder: None)
    monkeypatch.setattr(steps, "training_flops", lambda *names: lambda *shape: 1.0)
    with as_device("t4") as execution:
        record, again = steps_to_show(execution), steps_to_show(execution)
        saved = device_folder(execution) / "steps.json"
    printed = capsys.readouterr().out
    assert measured == live_specs(execution) and len(measured) == 8
    assert printed.index("8 measurements follow") < printed.index("bert-base") and "a minute or two" in printed
    assert record == again == StudyRecord.load(saved) and record.device == "Tesla T4"
    assert len(record.rows) == 7 and "failed: torch.OutOfMemoryError" in printed
    assert record.settings["failed"][0]["error"] == "torch.OutOfMemoryError: CUDA out of memory."


def _cells():
    cells = json.loads((ROOT / "notebooks" / "04_efficiency_analysis.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"][1:]  # all but the set-up


@pytest.mark.parametrize(
    ("devices", "here"),
    [(("cpu",), "cpu"), (("t4",), "cpu"), (("a100", "cpu"), "cpu"), (("cpu", "a100", "t4"), "t4"), (("cpu",), "t4")],
    ids=str,
)
def test_notebook_04_reads_any_set_of_records_on_any_machine(devices, here, committed, monkeypatch, capsys):
    monkeypatch.setenv("PROFILE", "quick")
    for name in devices:
        write_device(committed, name)
    monkeypatch.setattr(steps, "in_fresh_process", lambda function, spec, **_: step_row(StepSpec(**spec)))
    monkeypatch.setattr(steps, "call_step", lambda spec, **_: step_row(StepSpec(**spec)))
    monkeypatch.setattr(steps, "matmul_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr(steps, "random_bert", lambda folder: None)
    monkeypatch.setattr(steps, "training_flops", lambda *names: lambda *shape: 1.0)
    namespace = {}
    with as_device(here):
        for cell in _cells():
            if cell["id"] not in LIVE:
                exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
    plt.close("all")
    shown = DEVICES[here if here in devices or here == "t4" else _first(devices)]
    assert f"measured on {shown[0]}, {shown[1].precision}, {shown[1].attention} attention: " in capsys.readouterr().out
    rates = namespace["shapes"]["samples/s"][16, 256]
    assert rates["bert-base", "lora"] == pytest.approx(2.5 * rates["bert-base", "full_finetune"])
    assert sorted(path.name for path in (committed / "quick").glob("*.png")) == [
        "efficiency_comparison.png",
        "memory_breakdown.png",
        "speed_ladder.png",
    ]


def test_the_figures_call_no_step_inside_its_scatter_a_gain(committed):
    write_device(committed, "cpu")
    ladders, steps = (find_benchmarks(name)[0][1] for name in ("ladder", "steps"))
    figure = plot_speed_ladder(ladders, {"lora_bert_sst2": "The SST-2 post"})
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert [index for index, text in enumerate(texts) if "within scatter" in text] == [2]
    assert figure.axes[0].patches[2].get_facecolor() != figure.axes[0].patches[1].get_facecolor()
    rows = main_rows(steps, size="bert-base", batch_size=16, tokens=128)
    budgets = {name: memory_budget(method_recipe(name)) for name in ("full_finetune", "lora", "qlora")}
    speed = plot_efficiency_comparison(budgets, rows, {}).axes[2]
    assert speed.get_title() == "LoRA is 2.5 to 2.6 times as fast"
    alike = [row | {"windows": [1.0, 2.0, 3.0]} for row in rows]
    assert plot_efficiency_comparison(budgets, alike, {}).axes[2].get_title() == "No difference in speed seen"
    lone = [row for row in rows if row["method"] != "full_finetune"]
    assert plot_memory_breakdown(lone).axes[0].get_title() == "16 x 128 tokens"
    plt.close("all")
