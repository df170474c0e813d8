import socket
import sys
from time import perf_counter

import pytest

from helpers.base import tracking

pytestmark = pytest.mark.usefixtures("wandb_folder")


def test_it_is_off_without_a_key(capsys):
    with tracking.wandb_run("run", {}) as run:
        assert run is None
    assert capsys.readouterr().out.startswith("W&B: off")


def test_offline_logs_metrics_and_the_confusion_matrix(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with tracking.wandb_run("run", {"r": 8}) as run:
        assert run is not None
        tracking.log_results(run, {"accuracy": 0.5}, [0, 1], [1, 1], ["NEGATIVE", "POSITIVE"])
        assert run.summary["test/accuracy"] == 0.5
        assert run.settings.finish_timeout == tracking.FINISH_TIMEOUT_SECONDS <= 15
        assert any("confusion_matrix" in key for key in run.summary.keys())  # noqa: SIM118
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert "logging offline" in capsys.readouterr().out


def test_a_key_without_a_network_costs_one_line_that_does_not_hold_the_key(monkeypatch, capsys):
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_SECONDS", 3)
    with tracking.wandb_run("run", {}) as run:
        assert run is None
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and captured.out.startswith("W&B: not available (")
    assert key not in captured.out + captured.err


def test_a_network_that_swallows_everything_delays_a_run_by_15_seconds_at_most(monkeypatch, capsys):
    """A server that takes each connection and never answers, which is worse than none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = perf_counter()
        with tracking.wandb_run("run", {}) as run:
            assert run is None
        assert perf_counter() - start < 15
    assert capsys.readouterr().out.startswith("W&B: not available (")


def test_a_missing_package_costs_one_line(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracking.wandb_run("run", {}) as run:
        assert run is None
    assert "not available" in capsys.readouterr().out


def test_a_failure_while_logging_does_not_stop_the_run(capsys):
    class Broken:
        def log(self, values):
            raise RuntimeError("gone")

        def finish(self):
            raise RuntimeError("gone")

    tracking.log_results(Broken(), {"accuracy": 1.0}, [0, 1], [0, 1], ["a", "b"])
    assert "results are in Data/ all the same" in capsys.readouterr().out
    tracking.log_results(None, {}, [], [], [])


def test_dotenv_holds_the_settings(tmp_path):
    (tmp_path / ".env").write_text("WANDB_MODE=offline\nWANDB_SILENT=true\n")
    with tracking.wandb_run("run", {}) as run:
        assert run is not None
