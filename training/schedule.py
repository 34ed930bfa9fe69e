"""The learning rate of every step, and when to stop: functions of the step and of the history, so a resumed run agrees."""

import math


def learning_rate(config, step, steps):
    """Of the step with that number, counted from 0, of `steps` in the whole run.

    Warm-up first: linear, over `config.training.warmup` steps, reaching the full rate with the last of them. Then

    - constant: `config.training.learning_rate`;
    - cosine: down to 0 along half a cosine, Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5 without restarts.
    """
    rate, warmup = config.training.learning_rate, config.training.warmup
    if step < warmup:
        return rate * (step + 1) / warmup
    if config.training.schedule == "cosine":
        return rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
    return rate


def stops_early(config, rows):
    """Whether the validation dice has not improved for `config.training.patience` epochs; never without a patience."""
    if not config.training.patience or not rows:
        return False
    best = max(range(len(rows)), key=lambda k: rows[k]["val_dice"])  # the first of equals
    return len(rows) - 1 - best >= config.training.patience
