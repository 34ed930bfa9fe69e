"""An epoch in each implementation, in turn, from one checkpoint to the next: is that three epochs in any one?

To the last bit: with `comparison.proof.exact`, as the second tier of `compare.py parity`.
"""

import itertools
import json

from common.checkpoint import load_checkpoint, save_checkpoint
from common.config import Size, UserError
from common.output import write_text
from common.weights import assign_weights
from comparison import columns
from comparison.proof.ways import EXACT_CONSTANTS

import numpy as np

SMALL = dict(filters=8, batch_size=4, image_size=Size(64, 64))  # six trainings: of a small network

SETS = {"precision", "epochs", "jit", "deterministic"}


def add_options(parser):
    """`compare.py relay` has the options of the configuration alone, but other defaults."""
    parser.set_defaults(**EXACT_CONSTANTS)


def run(config, args):
    """Runs the relay in float32 and float64, prints the table, writes relay.json; the checkpoints lie beside it.

    Returns: whether the relay ended where each implementation alone did.
    """
    from common.device import be_deterministic
    from data.loader import load_examples

    if "batch_norm" in args.given and config.network.batch_norm == "fused":
        raise UserError("relay takes the explicit normalization, which there is in float64: leave --batch-norm fused out")
    be_deterministic()
    folder, runners, records = config.training.run_dir, columns.IMPLEMENTATIONS, []
    config, training, _ = load_examples(columns.shrunk(config, SMALL, args.given))
    print(f"\nan epoch in each ({', '.join(runners)}) against {len(runners)} epochs in one: largest difference of the weights")
    for precision in ("float64", "float32"):
        batch_norm = "none" if config.network.batch_norm == "none" else "explicit"
        changed = config.replace(precision=precision, batch_norm=batch_norm, epochs=len(runners))
        baton = folder / f"relay-{precision}.safetensors"
        baton.unlink(missing_ok=True)
        for k, name in enumerate(runners):
            ended = train(name, changed, training, range(k, k + 1), baton)
        for name in runners:
            alone = folder / f"relay-{precision}-{name}.safetensors"
            alone.unlink(missing_ok=True)
            values = train(name, changed, training, range(len(runners)), alone)
            worst = max(ended, key=lambda weight: np.abs(ended[weight] - values[weight]).max())
            d = float(np.abs(ended[worst] - values[worst]).max())
            records.append(dict(precision=precision, alone=name, worst=worst, difference=d, tolerance=0.0))
            verdict = f"DIFFERENT at {worst}" if d else "ok"
            print(f"{precision:<9} relay - {name:<12}{d:>9.1e}  {verdict}", flush=True)
    write_text(folder / "relay.json", json.dumps(records, indent=2) + "\n")
    print(f"\nwritten to {folder / 'relay.json'}; the checkpoints lie beside it")
    return not any(record["difference"] for record in records)


def train(implementation, config, training, epochs, path):
    """Trains `epochs` of the run in one implementation: from the checkpoint `path` if there is one, and into it.

    epochs: range. Returns: canonical name -> array, after the last of them.
    """
    from comparison.proof import exact
    from data.loader import steps_per_epoch, training_batches

    built = columns.Built(implementation, config, exact.load(implementation))
    if path.exists():
        values, moments, _ = load_checkpoint(path, config.network)
        built.start(values)
        assign_weights(built.state, moments)
    steps = steps_per_epoch(config, training)
    batches = training_batches(config, training, first_step=epochs.start * steps)
    for images, masks in itertools.islice(batches, len(epochs) * steps):
        built.train_step(images, masks)
    about = dict(implementation=implementation, config=config.as_dict(), epoch=epochs.stop)
    save_checkpoint(path, built.weights, built.state, **about)
    return built.values()
