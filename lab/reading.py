"""Does a head that reads the mean of the tokens do better than one that reads [CLS]? Once, for the log's `reading`.

`python -m lab.reading jobs.jsonl rows.jsonl` does the runs of `jobs.jsonl` that no other process has begun.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from helpers.models import build_model
from helpers.profiles import current_precision
from helpers.recipes import RECIPES
from helpers.start import prepare_process
from lab import studies

CHANGES = {"n_train": 4_000, "max_length": 128, "min_updates": None}


def build(recipe, *args, **options):
    """`build_model`, whose head reads the tokens' mean where the recipe's variant is "mean"."""
    model = build_model(recipe, *args, **options)
    if recipe.variant == "mean":
        encoder = model.get_base_model().base_model
        for layer in encoder.transformer.layer:
            vars(layer).pop("forward", None)  # the last one computes [CLS] alone
        plain = encoder.forward

        def forward(*args, attention_mask=None, **options):
            output = plain(*args, attention_mask=attention_mask, **options)
            mask = attention_mask.unsqueeze(-1).float()
            hidden = output.last_hidden_state.float() * mask
            output.last_hidden_state = hidden.sum(1, keepdim=True) / mask.sum(1, keepdim=True)
            return output

        encoder.forward = forward
    return model


def main() -> None:
    """Appends a row for each run."""
    prepare_process()
    studies.build_model = build
    jobs, rows = map(Path, sys.argv[1:])
    for line in jobs.read_text().splitlines():
        job = json.loads(line)
        name = "-".join(map(str, job.values()))
        try:
            os.close(os.open(rows.with_name(f"{rows.name}.{name}"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        recipe = RECIPES["lora_distilbert_qv"].improved()
        recipe = replace(recipe, **CHANGES, variant=job["reading"], learning_rate=job["learning_rate"])
        labels = {"reading": job["reading"], "learning_rate": job["learning_rate"]}
        run = studies.StudyRun("reading", recipe, job["seed"], 2_490, 2_490, job["scored_on"], labels)
        with redirect_stdout(None):
            row = studies.do_run(run, replace(studies.FULL, precision=current_precision()))
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
