"""`python -m helpers.train RECIPE [--improved]`: one recipe from a terminal, under the profile in force."""

import argparse
import sys
from collections.abc import Sequence

from helpers.data import load_splits
from helpers.models import build_model
from helpers.profiles import DATA_DIR, current_profile, fastest_execution
from helpers.recipes import RECIPES
from helpers.series import summary
from helpers.training import fine_tune, score_bag_of_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains the recipe and the bag of words on the same rows, as the notebooks do; writes records and adapter."""
    parser = argparse.ArgumentParser(prog="python -m helpers.train", description=__doc__)
    parser.add_argument("recipe", choices=sorted(RECIPES), metavar="RECIPE", help=", ".join(sorted(RECIPES)))
    parser.add_argument("--improved", action="store_true", help="our version of the recipe, not the source's own")
    parser.add_argument("--track", action="store_true", help="log to W&B where a key or WANDB_MODE=offline is set")
    options = parser.parse_args(arguments)
    profile, execution = current_profile(), fastest_execution()
    recipe = RECIPES[options.recipe].improved() if options.improved else RECIPES[options.recipe]
    splits = load_splits(recipe, profile)
    print(f"Profile {profile.name}: {recipe.name}, {recipe.variant}, {len(splits['train']):,} reviews", flush=True)
    bag, _ = score_bag_of_words(recipe, splits, profile)
    model = build_model(recipe, profile.base_model(recipe.base_model), execution, profile.seed)
    result = fine_tune(model, recipe, splits, profile, execution, track=options.track)
    print(f"\n{summary([result.record, bag], profile)}\nAdapter: {result.adapter.relative_to(DATA_DIR.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
