"""The learning rate of every step, and when to stop: functions of the step and of the history, so a resumed run agrees."""

import math


def learning_rate(config, step, steps, rows):
    """Of the step with that number, counted from 0, of `steps` in the whole run.

    Warm-up first: linear, over `config.warmup` steps, reaching the full rate with the last of them. Then

    - constant: `config.learning_rate`;
    - cosine: down to 0 along half a cosine, Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5 without restarts;
    - plateau: multiplied by `config.plateau_factor` whenever the validation dice has not improved for
      `config.plateau_patience` epochs.

    rows: of history.csv, the epochs that have ended.
    """
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    if config.schedule == "cosine":
        progress = (step - config.warmup) / max(steps - config.warmup, 1)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "plateau":
        return config.learning_rate * config.plateau_factor ** plateaus(rows, config.plateau_patience)
    return config.learning_rate


def plateaus(rows, patience):
    """How often `patience` epochs have passed since the best validation dice, or since the last time that they had."""
    best, waited, count = -math.inf, 0, 0
    for row in rows:
        best, waited = (row["val_dice"], 0) if row["val_dice"] > best else (best, waited + 1)
        if waited == patience:
            count, waited = count + 1, 0
    return count


def stops_early(config, rows):
    """Whether the validation dice has not improved for `config.patience` epochs; never without a patience."""
    if not config.patience or not rows:
        return False
    best = max(range(len(rows)), key=lambda k: rows[k]["val_dice"])  # the first of equals
    return len(rows) - 1 - best >= config.patience
