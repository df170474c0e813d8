"""What `make full` runs: every run that `Data/full` and the README rest on, and how each question is decided.

The rules were written down before what they decide was measured, but for what is said below:

- Settings are chosen on validation rows alone, with seeds that the scored runs do not use. The searches are records.
- A rate is chosen from three, a factor of two apart, by mean validation accuracy over the search's seeds. Where the
  best is the first or the last of those tried, the next one on its side is tried as well, five at most.
- The test rows are the same for all runs on a corpus. A difference is that of the means over the seeds; its 95 %
  interval resamples seeds and rows; its p-value is corrected for the number of comparisons of its table (Holm).
  "Better" and "worse" need p < 0.05. Else no difference is seen, and the interval says how large one could still be.
- Competitive (claim B5) means not inferior by 2 points: the interval of QLoRA less full fine-tuning lies above -2
  points, at 500, 2,000 and all sentences.
- Few rows: LoRA is within a point of full fine-tuning at a size where the difference of the means is above -1 point;
  the interval says what the measurement leaves open. Where a baseline is better, the series says so. `fewest` came
  when few_rows had 186 of its runs and LoRA was behind at 100 to 500 sentences: changes are tried there, and the
  one with the best mean validation accuracy over the three sizes is scored on the test rows, whatever it gains.
- One rate for all sizes: `one_rate` came when `fewest` had found a quarter of the rate better on test rows, by 3.7
  points at 100 sentences, where two seeds on validation rows had seen no difference. It gives LoRA and full
  fine-tuning the same search, five seeds at five sizes. LoRA's rate is then improved()'s for sentences and own files.
- Layers for more rows: `more_layers` came when LoRA on query and value was 1.0 and 1.3 points behind full fine-tuning
  at 1,000 and 2,000 sentences, and `layers` had found rank 4 on every linear layer 1.5 points better on the test rows
  at 2,000. Both get the same search on validation rows, five seeds at both sizes, a rate for both together; every
  linear layer takes more time and has to be half a point ahead in the mean over both sizes. Each is scored on the test
  rows at its rate, whatever was decided, beside full fine-tuning as in `one_rate`. What is taken, layers and rate, is
  improved()'s for the SST-2 post's 2,000 sentences and for own files of 1,000 training rows or more; below, the rate of
  `one_rate` stands. (The search of query and value is that of `one_rate`, and was known: 5e-4 for these two sizes.)
  Full fine-tuning got the same, a rate for these two sizes alone, when both LoRAs had it and stood beside full
  fine-tuning at the rate for five. It decides nothing but what LoRA is compared with.
- Settings of improved(): START is changed in one thing at a time, and the change with the best mean validation
  accuracy over both sizes of `settings` is taken, unless it gains less than half a point; one that takes more updates
  has to gain a whole point. Then every other change that had been ahead of START is tried on top of it, once, and
  the best of those is taken by the same rule.
- All reviews: layers, truncation and tokens are those that `many_rows` finds best on validation rows at 4,000 reviews,
  in this order, each step with what the one before it chose. Layers are compared at their best rates; every linear
  layer takes more time and has to be better by 0.3 points. The rate is that of the chosen layers; full fine-tuning's
  is the one that `few_reviews` finds there.
- All reviews again: `all_reviews` came when our LoRA on all of them had 91.9 % on test rows and a training loss of 0.09
  beside a validation loss of 0.25. It changes one thing at a time on validation rows, at 256 tokens; the best is taken
  where it gains 0.3 points or more. Then every other change that had been ahead is tried on top of it, once, and where
  half the rate was taken, a quarter as well; the best of those is taken by the same rule. The versions of Assignment 7
  and bert-qlora follow it, and are run anew.
- Full fine-tuning on all reviews ran at the rate of 4,000, 2e-4, and had 91.2 % of the validation rows, LoRA with the
  same seed 92.6, and a validation loss that rose from the first epoch on. Half and a quarter of that rate came then,
  when its score on the test rows was known as well: 91.8 %, LoRA 92.2.
  What is called full fine-tuning is the one of the three with the most right of the validation rows, in its best epoch.
- Epochs: `epochs` came when our version of Assignment 7 had 92.2 % on test rows, its validation accuracy rising in the
  third epoch still, and that of the thirty-epoch post 82.7 %, stopped early in its third. On validation rows, at 256
  tokens: five epochs instead of three on all reviews; three or eight, without stopping early, on that post's 2,500.
  More epochs take more time and have to be better by 0.3 points. Both versions follow it.
- Averaging: `averaging` came when our version of Assignment 7 had 92.3 % on test rows in the mean of two seeds, and
  layers, rate, dropout, tokens and epochs had been tried. The run of `epochs` with three on all reviews is made again,
  and the mean of its weights over the last epoch is scored on the validation rows. It is taken where it gains 0.3
  points, as the changes before it, and then both versions are run anew.
- Quick: its improved run is to be ahead of a bag of words on the same rows, and is level with it at 1,000 reviews of
  128 tokens. `quick` tries twice the tokens or twice the reviews with the recipe for all reviews, two seeds, on
  validation rows: what is further ahead of the bag of words there, in the mean, is the profile's. (It was meant to have
  two epochs, as the profile has. The 400 updates that the recipe makes at least gave it seven, and four on 2,000.)
- Ranks, layers and scaling: each is compared at its own best rate, chosen over three seeds, on the test rows.
- Scaling: in `ranks` the best rate times s times the root of r is 4e-3 for all ranks (s = alpha / r = 2). If that is
  what counts, the best rates in `scaling` are 2.5e-4 (alpha 16, r = 1) and 2e-3 (alpha 16, r = 64): a best rate that
  is another one speaks against it. (rsLoRA at alpha 16 and r = 64 has s = 2, too: it is the run of `ranks` again.)

Changed later: the second round of `settings` was begun when 35 of the first round's 44 runs were in, and committed when
all were. The rule before it, one round, takes the same change, so the outcome hangs on neither. `ranks` was planned on
every linear layer and moved, before its first run, to the layers that `settings` chose; `many_rows` then got "every
linear layer" to try. When `layers` had found every linear layer at rank 4 better than query and value at rank 18,
`fewest` and `many_rows`, of which nothing had run, got that to try, too. `fewest` got 200 updates and a quarter of the
rate to try when most of its first 42 runs were in, all of them on validation rows: LoRA's loss on 100 sentences had
gone down to 1e-4. One of the two won, so the best of the first seven, 800 updates, is scored on the test rows as well.

`many_rows` was put in that order before anything of it had run. It first had one rate for all layers, and "every linear
layer, rank 4", which was left out to save time: it trains as long as rank 16, and `ranks` sees no rank that is better.
After its first run the margin of 0.3 points for more tokens was dropped, since one seed cannot tell so little and long
reviews are cut at 256; after the fifth 384 tokens were left out, to save time; no longer text had run by then. The
margin decides: 512 tokens are ahead of 256 by 0.16 points, 4 of 2,490 reviews, and by the first rule 256 would stand.
Of the recipes for all reviews, the query-only post's was to take every linear layer against that search, to see whether
all reviews change what 4,000 say. `all_reviews` has answered that; our version of Assignment 7 is the same recipe now,
and is not run a second time under another name.

Devices: `few_reviews`, `batches` and the SST-2 post as written ran on a GPU, several at a time (--jobs), all else on a
CPU with two cores; bf16 on both. Devices are crossed where the SST-2 post as written is compared with our version, and
in the search of `few_reviews` at 4,000: full fine-tuning's 5e-5 and 1e-4 ran on a CPU, before all others, since
full fine-tuning on all reviews waits for them, and 2e-4, chosen by 0.2 points, on the GPU.

The second round of `all_reviews` was added when the first two of its runs were in: half the rate was 0.8 points ahead.

Every function here is one study: it gives its runs, in the order in which they are done, from the rows that are there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from helpers.checkpoints import AS_SHIPPED
from helpers.profiles import EMBEDDED_BERT, EMBEDDED_DISTILBERT
from helpers.recipe import EVERY_LINEAR, Recipe
from helpers.recipes import RECIPES
from helpers.studies.at_scale import baselines, improved, sources
from helpers.studies.reviews import SHORT_REVIEWS, all_reviews, averaging, epochs, many_rows, quick
from helpers.studies.runs import Run
from helpers.studies.search import (
    FEW_ROWS,
    RATES,
    REVIEWS,
    SEARCH_SEEDS,
    SENTENCES,
    Plan,
    Rows,
    best_rate,
    fewest,
    method,
    more_layers,
    one_rate,
    settings,
)


def pooler(rows: Rows) -> Iterator[Run]:
    """The SST-2 post as written, by pooler (as the package ships it, or the identity) and learning rate (notebook 06).

    Then the same on 800 sentences once, 100 updates: an earlier sweep of that length saw no rate leave 50 %.
    """
    written = replace(RECIPES["lora_bert_sst2"], dataset="rotten_tomatoes", n_validation=None)
    short = {"n_train": 800, "num_train_epochs": 1}
    for seed in range(5):
        for changes in ({}, short):
            for name, base_model in (("as shipped", AS_SHIPPED), ("identity", EMBEDDED_BERT)):
                for rate in (5e-5, 2e-4, 1e-3):
                    recipe = replace(written, learning_rate=rate, **changes)
                    labels = {"pooler": name, "learning_rate": rate, "n_train": recipe.n_train}
                    yield Run("pooler", tuple(labels.items()), recipe, base_model, **SENTENCES, seed=seed)


CURVE_SIZES = (100, 250, 500, 1_000, 2_000, None)  # None: all
QLORA_SIZES = (500, 2_000, None)


def few_rows(rows: Rows) -> Iterator[Run]:
    """For how many sentences is which method worth it: six methods, the rate of each chosen at each size."""
    where = {"base_model": EMBEDDED_BERT, **SENTENCES}
    yield from _curve("few_rows", FEW_ROWS, CURVE_SIZES, QLORA_SIZES, rows, where)


def few_reviews(rows: Rows) -> Iterator[Run]:
    """The same on reviews, at 500 and at 4,000 of them, of 128 tokens."""
    where = {"base_model": EMBEDDED_BERT, **REVIEWS}
    yield from _curve("few_reviews", SHORT_REVIEWS, (500, 4_000), (), rows, where)


def _curve(
    study: str, recipe: Recipe, sizes: Sequence[int | None], qlora_sizes: Sequence[int | None], rows: Rows, where: dict
) -> Iterator[Run]:
    for size in sizes:
        sized = replace(recipe, n_train=size)
        labels = {"rows": size or "all"}
        seeds = range(5) if size and size <= 1_000 else range(3)
        for name in ("bag_of_words", "frozen_encoder"):
            for seed in seeds:
                marked = tuple({**labels, "method": name}.items())
                yield Run(study, marked, method(name, sized), seed=seed, **where)
        for name in ("head_only", "lora", "full_finetune", *(["qlora"] if size in qlora_sizes else [])):
            marked = {**labels, "method": name}
            search = SEARCH_SEEDS if size and size <= 2_000 else SEARCH_SEEDS[:1]
            chosen = method(name, sized)
            runs, rate = best_rate(f"{study}_search", marked, chosen, RATES[name], rows, search, **where)
            yield from runs
            both = name in ("full_finetune", "qlora") and size in qlora_sizes and size is not None
            for seed in range(5) if both else seeds:  # claim B5: five seeds where rows are counted
                tried = replace(chosen, learning_rate=rate)
                yield Run(study, tuple({**marked, "learning_rate": rate}.items()), tried, seed=seed, **where)


RANKS = (1, 4, 16, 64)


def ranks(rows: Rows) -> Iterator[Run]:
    """Ranks 1 to 64, each at its best rate (notebook 05)."""
    variants = {r: replace(_RANKED, r=r, lora_alpha=2 * r) for r in RANKS}
    yield from _at_best_rates("ranks", "r", variants, rows)


def layers(rows: Rows) -> Iterator[Run]:
    """The same number of parameters on few layers or on many, each at its best rate (notebook 05)."""
    spent = {
        "query": (("query",), 36),
        "query + value": (("query", "value"), 18),
        "all attention": (("query", "key", "value", "attention.output.dense"), 9),
        "every linear layer": (EVERY_LINEAR, 4),
    }
    variants = {
        name: replace(_RANKED, target_modules=targets, r=r, lora_alpha=2 * r) for name, (targets, r) in spent.items()
    }
    yield from _at_best_rates("layers", "layers", variants, rows)


def scaling(rows: Rows) -> Iterator[Run]:
    """Ranks 1 and 64 scaled by a fixed lora_alpha of 16 or by rsLoRA, beside alpha = 2r in `ranks` (notebook 05)."""
    variants = {
        f"alpha 16, r = {r}{', rsLoRA' if stable else ''}": replace(_RANKED, r=r, lora_alpha=16, use_rslora=stable)
        for r, stable in ((1, False), (64, False), (64, True))
    }
    yield from _at_best_rates("scaling", "scheme", variants, rows)


_RANKED = replace(FEW_ROWS, n_train=2_000, num_train_epochs=3, min_updates=None)


def _at_best_rates(study: str, label: str, variants: dict, rows: Rows) -> Iterator[Run]:
    """Each variant with three rates and three seeds, scored on validation rows and, at its best rate, on test rows."""
    where = {"base_model": EMBEDDED_BERT, **SENTENCES}
    for name, recipe in variants.items():
        runs, rate = best_rate(f"{study}_search", {label: name}, recipe, RATES["lora"], rows, range(100, 103), **where)
        yield from runs
        for seed in range(3):
            labels = ((label, name), ("learning_rate", rate))
            yield Run(study, labels, replace(recipe, learning_rate=rate), seed=seed, **where)


def batches(rows: Rows) -> Iterator[Run]:
    """The query-only post's recipe (claim A4) with batches of 4, 16 and 64 on 2,000 reviews, each at its best rate.

    Once with as many reviews seen (two epochs of 2,000), once with as many updates (250; four epochs of 250 to 4,000).
    """
    written = replace(RECIPES["lora_distilbert_q"], n_train=2_000, num_train_epochs=2, max_length=128)
    where = {"base_model": EMBEDDED_DISTILBERT, **REVIEWS}
    for held in ("reviews", "updates"):
        for size in (4, 16, 64):
            recipe = replace(written, per_device_train_batch_size=size)
            if held == "updates":
                recipe = replace(recipe, n_train=250 * size // 4, num_train_epochs=4)
            labels = {"held": held, "batch_size": size}
            rates = tuple(rate * (size / 4) ** 0.5 for rate in (5e-4, 1e-3, 2e-3))  # AdamW's rate goes with the root
            runs, rate = best_rate("batches_search", labels, recipe, rates, rows, SEARCH_SEEDS[:1], **where)
            yield from runs
            for seed in range(3):
                tried = replace(recipe, learning_rate=rate)
                yield Run("batches", tuple({**labels, "learning_rate": rate}.items()), tried, seed=seed, **where)


_STUDIES = (
    *(pooler, settings, few_rows, ranks, layers, scaling, fewest, one_rate, more_layers, many_rows),
    *(all_reviews, quick, epochs, averaging, few_reviews, sources, improved, baselines, batches),
)
STUDIES: dict[str, Plan] = {study.__name__: study for study in _STUDIES}
