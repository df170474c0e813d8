"""`python -m helpers.benchmarks [NAME ...]`: measures memory, speed and prediction on this device, for notebook 04.

Records go to `cpu/<device>` or `gpu/<device>` below the data folder: they depend on the machine, not on the profile.
Their settings name the device's own `execution`; rows of others stand beside it, and `records.main_rows` tells them
apart.
"""

import argparse
import sys

import psutil

from helpers.base.paths import shown
from helpers.benchmarks.end_to_end import benchmark_accuracy, benchmark_adapter, benchmark_prediction
from helpers.benchmarks.execution import benchmark_execution
from helpers.benchmarks.ladder import benchmark_ladder
from helpers.benchmarks.padding import benchmark_padding
from helpers.benchmarks.records import COMMAND, device_folder, device_label
from helpers.benchmarks.steps import benchmark_steps
from helpers.profiles import fastest_execution

BENCHMARKS = {
    "execution": benchmark_execution,
    "ladder": benchmark_ladder,
    "padding": benchmark_padding,
    "prediction": benchmark_prediction,
    "steps": benchmark_steps,
    "accuracy": benchmark_accuracy,
    "adapter": benchmark_adapter,
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmarks named (all without a name) and writes their records."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(BENCHMARKS)}; all without")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {unknown[0]!r}; there is {', '.join(BENCHMARKS)}")
    execution = fastest_execution()
    print(f"{device_label(execution)}, {execution.precision}: close other programs while this runs", flush=True)
    if (busy := psutil.cpu_percent(interval=1.0)) > 20:
        print(f"They use {busy:.0f} % of the processor now: what follows will scatter.", flush=True)
    for name in options.names or BENCHMARKS:
        path = BENCHMARKS[name](execution).save(device_folder(execution))
        print(f"Wrote {shown(path)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
