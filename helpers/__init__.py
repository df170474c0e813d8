"""Thin helpers behind the notebooks. Each module has one job; imports only point down (see README.md)."""

import logging
import os
import warnings

# What follows silences what is no news in a notebook: download and map bars, the load report of a deliberately
# fresh head, bitsandbytes' hint about the optional `kernels` package. setdefault: the environment can turn each on.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.* is deprecated", category=FutureWarning)
