"""What compare.py calls: is it the same network three times, and what does each cost?"""

import importlib
import types

import common  # noqa: F401  settles the environment before any TensorFlow is imported

IMPLEMENTATIONS = ("lowlevel", "highlevel", "keras_impl")


def load(implementation):
    """The contract's functions of one implementation, as attributes: `UNet`, `named_weights`, `make_train_step`..."""
    functions = {}
    for module in ("model", "train"):
        functions.update(vars(importlib.import_module(f"{implementation}.{module}")))
    contract = ["UNet", "named_weights", "make_optimizer", "named_state"]
    contract += ["make_train_step", "make_eval_step", "main"]
    return types.SimpleNamespace(**{name: functions[name] for name in contract})
