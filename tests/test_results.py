import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from helpers import results
from helpers.adapters import save_adapter
from helpers.base import writing
from helpers.base.paths import ROOT
from helpers.base.writing import NotWritten, _machine, new_file, new_folder, put_back, write_json, write_text
from helpers.models import build_model, load_tokenizer
from helpers.plots import save_figure
from helpers.recipes import RECIPES
from helpers.results import RunRecord, StudyRecord, git_commit, load_records, versions


def test_a_record_comes_back_as_it_was(record, tmp_path):
    path = record.save(tmp_path / "results")
    assert path.name == "qlora_bert-improved-seed42.json"
    assert RunRecord.load(path) == record
    assert load_records(tmp_path / "results") == [record]
    assert load_records(tmp_path / "nothing") == []


def test_unknown_and_missing_fields_are_refused_by_name(record, tmp_path):
    path = write_json(tmp_path / "a.json", asdict(record) | {"accuracy": 1.0, "extra": 2})
    with pytest.raises(ValueError, match=r"a\.json has unknown fields: accuracy, extra"):
        RunRecord.load(path)
    data = asdict(record)
    del data["seed"], data["n_test"]
    with pytest.raises(ValueError, match="lacks fields: n_test, seed"):
        RunRecord.load(write_json(tmp_path / "a.json", data))


def test_a_study_without_its_command_is_refused(tmp_path):
    data = asdict(StudyRecord("ranks", "python x", "quick", "cpu", {}, []))
    del data["command"]
    with pytest.raises(ValueError, match="lacks fields: command"):
        StudyRecord.load(write_json(tmp_path / "a.json", data))


def test_a_record_from_before_revisions_were_kept_still_loads(record, tmp_path):
    data = asdict(record)
    del data["revisions"]
    assert RunRecord.load(write_json(tmp_path / "a.json", data)).revisions == {}


def test_a_run_that_only_names_the_largest_class_is_told_from_one_that_learned(record):
    record.confusion_matrix, record.accuracy_ci95 = [[60, 0], [40, 0]], [0.5, 0.7]
    assert not record.above_largest_class
    record.confusion_matrix, record.accuracy_ci95 = [[50, 10], [5, 35]], [0.61, 0.9]
    assert record.above_largest_class


def test_a_failed_write_leaves_the_old_file_and_no_other(record, tmp_path):
    path = record.save(tmp_path)
    record.metrics["broken"] = object()
    with pytest.raises(TypeError):
        record.save(tmp_path)
    assert json.loads(path.read_text())["metrics"] == {"accuracy": 0.75}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_record_says_when_and_with_what(record):
    assert record.created_at.endswith("+00:00")
    assert {"python", "torch", "transformers", "peft", "bitsandbytes"} <= set(versions())
    assert record.versions == versions()


def test_a_checkout_is_dirty_where_its_code_is(tmp_path, monkeypatch):
    def git(*command):
        who = ("-c", "user.name=x", "-c", "user.email=x")
        subprocess.run(["git", *who, *command], cwd=tmp_path, check=True, capture_output=True)

    code, record = tmp_path / "helpers" / "results.py", tmp_path / "Data" / "record.json"
    for path in (code, record):
        path.parent.mkdir()
        path.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(results, "__file__", str(code))
    record.write_text("2")
    assert re.fullmatch("[0-9a-f]{12}", git_commit())
    code.write_text("2")
    assert re.fullmatch("[0-9a-f]{12}-dirty", git_commit())


def test_no_git_is_no_error(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(results.subprocess, "run", missing)
    assert git_commit() is None


def test_a_record_says_which_command_made_it(monkeypatch):
    monkeypatch.delenv(results.COMMAND, raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["/x/python", "-m", "helpers.train", "a b", "--output", f"{Path.home()}/out"])
    assert results.running_command() == "python -m helpers.train 'a b' --output ~/out"
    monkeypatch.setattr(sys, "orig_argv", ["/x/python", "-u", "-m", "helpers.train", "qlora_bert"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert results.running_command() == "torchrun --nproc_per_node=2 -m helpers.train qlora_bert"
    for others in (["/x/python", "-m", "ipykernel_launcher", "-f", "x.json"], ["/x/python"], ["python", "-c", "1"]):
        monkeypatch.setattr(sys, "orig_argv", others)
        assert results.running_command() is None
    monkeypatch.setenv(results.COMMAND, "python -m helpers.series 02")
    assert results.running_command() == "python -m helpers.series 02"


def test_the_committed_records_are_of_the_types_they_state():
    paths = sorted((ROOT / "Data" / "quick" / "evidence").glob("*.json"))
    kinds = [RunRecord if "variant" in json.loads(path.read_text()) else StudyRecord for path in paths]
    assert {type(kind.load(path)) for kind, path in zip(kinds, paths, strict=True)} == {RunRecord, StudyRecord}


# -- whole or not at all ---------------------------------------------------------------------------------------------


def _fill(folder, tag):
    for name in ("a", "b"):
        (folder / name).write_text(tag * 1_000)


def _tag(folder):
    """The tag that all of a folder's files were written with."""
    (tag,) = {(folder / name).read_text() for name in ("a", "b")}
    return tag[:1]


@pytest.fixture(params=["exchanged", "set aside"])
def way(request, monkeypatch):
    """Both ways to replace a folder: in one step, and where the system has none."""
    if request.param == "set aside":
        monkeypatch.setattr(writing, "_exchange", lambda first, second: False)
    elif sys.platform != "linux":
        pytest.skip("only Linux exchanges two names in one step")
    return request.param


def test_a_folder_is_replaced_by_a_whole_one(tmp_path, way):
    folder = tmp_path / "new" / "adapter"
    for tag in "xyz":
        with new_folder(folder) as temporary:
            _fill(temporary, tag)
            assert not folder.exists() if tag == "x" else _tag(folder) < tag
        assert _tag(folder) == tag
    with pytest.raises(KeyError), new_folder(folder) as temporary:
        (temporary / "a").write_text("half")
        raise KeyError
    assert _tag(folder) == "z"
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path):
    (tmp_path / "adapter").write_text("a file")
    with pytest.raises(NotADirectoryError), new_folder(tmp_path / "adapter") as temporary:
        _fill(temporary, "x")
    assert (tmp_path / "adapter").read_text() == "a file"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two names in one step")
def test_a_folder_that_is_replaced_is_never_gone(tmp_path, monkeypatch):
    folder, seen = tmp_path / "adapter", []

    def looking(do, *arguments, **options):
        do(*arguments, **options)
        seen.append(folder.exists())

    monkeypatch.setattr(os, "rename", partial(looking, os.rename))
    monkeypatch.setattr(shutil, "rmtree", partial(looking, shutil.rmtree))
    for tag in "xyz":
        with new_folder(folder) as temporary:
            _fill(temporary, tag)
        assert _tag(folder) == tag
    assert all(seen) and len(seen) > 3


def test_several_runs_may_write_one_folder_and_one_file_at_once(tmp_path, record, way):
    def write(tag):
        for _ in range(10):
            with new_folder(tmp_path / "adapter") as temporary:
                _fill(temporary, tag)
            record.save(tmp_path)

    with ThreadPoolExecutor(4) as runs:
        list(runs.map(write, "wxyz"))
    assert _tag(tmp_path / "adapter") in "wxyz"
    assert RunRecord.load(tmp_path / f"{record.name}.json") == record
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", f"{record.name}.json"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked, to be killed")
@pytest.mark.parametrize("killed_after", ["the earlier was set aside", "the new one was in place"])
def test_a_process_killed_while_it_replaces_a_folder_loses_nothing(tmp_path, monkeypatch, capsys, killed_after):
    monkeypatch.setattr(writing, "_exchange", lambda first, second: False)
    folder, rename = tmp_path / "adapter", os.rename
    with new_folder(folder) as temporary:
        _fill(temporary, "x")
    child = os.fork()
    if child == 0:
        calls = []

        def renaming(source, target):
            rename(source, target)
            calls.append(target)
            if len(calls) == (1 if "aside" in killed_after else 2):
                os.kill(os.getpid(), signal.SIGKILL)

        os.rename = renaming
        with new_folder(folder) as temporary:
            _fill(temporary, "y")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    capsys.readouterr()
    if "aside" in killed_after:
        assert not folder.exists()
        put_back(folder)
        assert _tag(folder) == "x" and capsys.readouterr().out.startswith("Put back")
    put_back(folder)
    assert _tag(folder) == ("x" if "aside" in killed_after else "y") and not capsys.readouterr().out
    with new_folder(folder) as temporary:  # what the killed process left is in nobody's way
        _fill(temporary, "z")
    assert _tag(folder) == "z" and not (tmp_path / ".adapter-before").exists()


def test_a_full_disk_is_one_clear_error_and_leaves_what_was_there(full, record, tiny_checkpoints, fp32):
    folder, fill, make_room = full
    base_model = tiny_checkpoints["bert"]
    model, tokenizer = build_model(RECIPES["lora_bert_sst2"], base_model, fp32), load_tokenizer(base_model)
    options = {"base_model": base_model, "quantization": None, "max_length": 16, "truncation": "head"}
    readme, figure = folder / "README.md", plt.figure(figsize=(1, 1))
    readme.write_text("what was there")
    writes = {
        record.name: lambda: record.save(folder),
        "figure.png": lambda: save_figure(figure, folder / "figure.png", "made here"),
        "adapter": lambda: save_adapter(model, tokenizer, folder / "adapter", **options),
        "README.md": lambda: write_text(readme, "x" * 100_000),
    }
    for name, write in writes.items():
        if name != "README.md":
            write()
    before = _contents(folder)
    fill()
    for name, write in writes.items():
        with pytest.raises(NotWritten, match=rf"^There is no room to write .*{re.escape(name)}.*DATA_DIR") as caught:
            write()
        assert "\n" not in str(caught.value)
    make_room()
    plt.close(figure)
    assert _contents(folder) == before
    for write in writes.values():
        write()
    assert _contents(folder).keys() == before.keys()


def _contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".filler"}


def test_what_a_killed_process_had_half_written_goes_with_the_next_write(record, tmp_path):
    path, folder = record.save(tmp_path), tmp_path / "adapter"
    with new_folder(folder) as temporary:
        _fill(temporary, "x")
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom helpers.base.writing import new_file, new_folder\n"
        "with new_folder(Path(sys.argv[2])) as half, new_file(Path(sys.argv[1])) as temporary:\n"
        "    (half / 'a').write_text('half')\n    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path), str(folder)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert load_records(tmp_path) == [record] and _tag(folder) == "x", "what it left is taken for what was there"
    left = {entry.name for entry in tmp_path.iterdir()} - {path.name, "adapter"}
    assert len(left) == 2
    elsewhere = tmp_path / next(name for name in left if name.startswith(f".{path.name}-")).replace(_machine(), "0" * 8)
    elsewhere.write_text("half")  # of another machine, whose processes are not known here
    with new_file(path) as ours, new_folder(folder) as temporary:
        ours.write_text("half")
        record.save(tmp_path)
        assert ours.exists(), "what a process that is alive writes is removed"
        _fill(temporary, "y")
        ours.write_bytes(path.read_bytes())
    assert {entry.name for entry in tmp_path.iterdir()} == {path.name, "adapter", elsewhere.name}
    assert load_records(tmp_path) == [record] and _tag(folder) == "y"
