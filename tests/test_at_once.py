"""Two processes at one place: `test_resuming.py` has two trainings, this file what only writes."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

from helpers.base.paths import ROOT
from helpers.results import RunRecord


def test_two_adoptions_at_once_damage_nothing(record, tmp_path):
    """In a copy of the repository, as they write its README and its evidence, and both from the same moment on."""
    for name in ("helpers", "Data/quick/evidence", "Data/full/results", "Data/cpu"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", tmp_path)
    results = tmp_path / "Data" / "quick" / "results"
    ours = [replace(record, recipe="own", seed=seed) for seed in range(40)]
    for run in ours:
        run.save(results)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "DATA_DIR": ""}
    script = (
        "from helpers.claims import __main__ as claims; print(flush=True); input(); claims.main(['--adopt', 'quick'])"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", script]
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes) for _ in range(2)]
    for process in both:
        process.stdout.readline()
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        said, errors = process.communicate()
        assert process.returncode == 0 and "40 records copied to Data/quick/evidence" in said, errors
    evidence = tmp_path / "Data" / "quick" / "evidence"
    before = {path.name: path.read_bytes() for path in (ROOT / "Data" / "quick" / "evidence").iterdir()}
    assert {path.name for path in evidence.iterdir()} == before.keys() | {f"{run.name}.json" for run in ours}
    assert all((evidence / name).read_bytes() == data for name, data in before.items())
    assert [RunRecord.load(evidence / f"{run.name}.json") for run in ours] == ours
    readme, plain = ((folder / "README.md").read_text(encoding="utf-8") for folder in (tmp_path, ROOT))
    assert readme.splitlines()[0] == plain.splitlines()[0] and readme.splitlines()[-1] == plain.splitlines()[-1]
    assert not list(tmp_path.glob(".README*"))
