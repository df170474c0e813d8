from pathlib import Path

import pytest
import torch

from helpers.profiles import COMMITTED, PROFILES, ROOT, current_precision, current_profile, data_dir


def pretend(monkeypatch, cuda: bool, bf16: bool = False, capabilities: dict | None = None) -> None:
    """Makes torch report a GPU or none, that multiplies bf16 or not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or bf16)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities or {}, raising=False)


@pytest.mark.parametrize(("cuda", "default"), [(True, "hub"), (False, "quick")])
def test_the_environment_chooses_the_profile_and_the_device_where_it_does_not(monkeypatch, cuda, default):
    pretend(monkeypatch, cuda)
    for name in ("quick", "full", "hub", ""):
        monkeypatch.setenv("PROFILE", name)
        assert current_profile().name == (name or default)


def test_dotenv_chooses_the_profile_and_the_environment_comes_first(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("PROFILE=full\n")
    monkeypatch.chdir(tmp_path)
    assert current_profile().name == "quick"
    monkeypatch.delenv("PROFILE")
    assert current_profile().name == "full"
    monkeypatch.delenv("PROFILE")  # load_dotenv set it


def test_data_dir_chooses_where_runs_are_written_and_creates_nothing(monkeypatch):
    for name, expected in (("", COMMITTED), ("some/where", ROOT / "some" / "where"), ("~/runs", Path.home() / "runs")):
        monkeypatch.setenv("DATA_DIR", name)
        assert data_dir() == expected and PROFILES["quick"].results == expected / "quick" / "results"
    assert not (ROOT / "some").exists()


@pytest.mark.parametrize(
    ("cuda", "bf16", "capabilities", "fastest", "formats"),
    [
        (True, True, {}, "bf16", "fp32, fp16, bf16"),
        (True, False, {}, "fp16", "fp32, fp16"),
        (False, False, {"avx512_bf16": True}, "bf16", "fp32, bf16"),
        (False, False, {"avx512_f": True, "amx_bf16": False}, "fp32", "fp32, bf16"),
    ],
)
def test_precision_follows_the_hardware_and_the_environment(monkeypatch, cuda, bf16, capabilities, fastest, formats):
    pretend(monkeypatch, cuda, bf16, capabilities)
    assert current_precision() == fastest
    for asked in ("fp32", "fp16", "bf16", "int4"):
        monkeypatch.setenv("PRECISION", asked)
        if asked in formats:
            assert current_precision() == asked
        else:
            with pytest.raises(ValueError, match=rf"PRECISION='{asked}' cannot be had.*: {formats}\."):
                current_precision()
