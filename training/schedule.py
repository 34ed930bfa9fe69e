"""The learning rate of every step, and when to stop: functions of the step and of the history, so a resumed run agrees."""

import math


def learning_rate(config, step, steps, rows):
    """Of the step with that number, counted from 0, of `steps` in the whole run.

    Warm-up first: linear, over `config.training.warmup` steps, reaching the full rate with the last of them. Then

    - constant: `config.training.learning_rate`;
    - cosine: down to 0 along half a cosine, Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5 without restarts;
    - plateau: multiplied by `config.training.plateau_factor` whenever the validation dice has not improved for
      `config.training.plateau_patience` epochs.

    rows: of history.csv, the epochs that have ended.
    """
    if step < config.training.warmup:
        return config.training.learning_rate * (step + 1) / config.training.warmup
    if config.training.schedule == "cosine":
        progress = (step - config.training.warmup) / max(steps - config.training.warmup, 1)
        return config.training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if config.training.schedule == "plateau":
        return config.training.learning_rate * config.training.plateau_factor ** plateaus(
            rows, config.training.plateau_patience
        )
    return config.training.learning_rate


def plateaus(rows, patience):
    """How often `patience` epochs have passed since the best validation dice, or since the last time that they had."""
    best, waited, count = -math.inf, 0, 0
    for row in rows:
        best, waited = (row["val_dice"], 0) if row["val_dice"] > best else (best, waited + 1)
        if waited == patience:
            count, waited = count + 1, 0
    return count


def stops_early(config, rows):
    """Whether the validation dice has not improved for `config.training.patience` epochs; never without a patience."""
    if not config.training.patience or not rows:
        return False
    best = max(range(len(rows)), key=lambda k: rows[k]["val_dice"])  # the first of equals
    return len(rows) - 1 - best >= config.training.patience
