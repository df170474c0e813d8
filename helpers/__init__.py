"""Thin helpers behind the notebooks. Each module has one job; imports only point down (see README.md).

Import this package before the libraries it is built on: it quiets what they say at start-up.
"""

import logging
import os
import sys
import warnings

# On two GPUs Trainer's DataParallel doubles the batch and breaks 4 bits; under torchrun each process has its own.
if "LOCAL_RANK" not in os.environ:
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# The series uses no torchao, yet peft looks for it in every LoRA layer and raises for one older than it accepts, as the
# one is that Colab and Kaggle preinstall. None hides it from find_spec, also where it has been imported already.
sys.modules["torchao"] = None
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # hints at the optional `kernels` package
warnings.filterwarnings("ignore", message="IProgress not found")
warnings.filterwarnings("ignore", message="Could not find a config file in")  # peft without a network
warnings.filterwarnings("ignore", message="Paged optimizers are not supported on CPU")  # notebook 03 says so
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
