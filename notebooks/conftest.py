"""`pytest --nbval` compares with the outputs of a `quick` run, on a machine with a GPU too; kernels inherit this."""

import os

os.environ.setdefault("PROFILE", "quick")
