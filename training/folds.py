"""Cross-validation: a run for each fold, in a folder of its own."""

import shutil

from common.output import scratch
from training.folder import take_new_folder, write_config
from training.report import list_folds


def train_folds(train, config):
    """Calls `train(config)` for each of `config.data.folds`, and then tells mean and deviation.

    Folds of an interrupted cross-validation that `config.training.resume` finds finished are not trained again.
    """
    with take_new_folder(config):
        cache = scratch(config.training.run_dir) / "cache"  # without --cache the folds share one, until the last is done
        write_config(config)
        for fold in range(config.data.folds):
            run_dir = config.training.run_dir / f"fold{fold}"
            print(f"fold {fold + 1} of {config.data.folds}", flush=True)
            train(config.replace(fold=fold, run_dir=run_dir, cache=config.data.cache or cache))
        if not config.data.cache:
            shutil.rmtree(cache, ignore_errors=True)
    list_folds(config)
