"""An epoch in each implementation, in turn, from one checkpoint to the next: is that three epochs in any one?

To the last bit: with `comparison.proof.exact`, as the second tier of `compare.py parity`.
"""

import itertools

from common.config import Size, UserError
from common.output import write_json
from comparison import columns
from comparison.proof.apart import difference
from comparison.proof.ways import EXACT_CONSTANTS

SMALL = dict(filters=8, batch_size=4, image_size=Size(64, 64))  # six trainings: of a small network

PRECISIONS = ("float64", "float32")

SETS = {"precision", "epochs", "jit", "deterministic"}


def add_options(parser):
    """`compare.py relay` has the options of the configuration alone, but other defaults."""
    parser.set_defaults(**EXACT_CONSTANTS)


def run(config, args):
    """Runs the relay in float32 and float64, prints the table, writes relay.json; the checkpoints lie beside it.

    Returns: whether the relay ended where each implementation alone did.
    """
    from common.device import be_deterministic
    from comparison.proof import exact
    from data.loader import load_examples, steps_per_epoch, training_batches

    if "batch_norm" in args.given and config.network.batch_norm == "fused":
        raise UserError("relay takes the explicit normalization, which there is in float64: leave --batch-norm fused out")
    be_deterministic()
    folder, runners, records = config.training.run_dir, columns.IMPLEMENTATIONS, []
    config, examples, _ = load_examples(columns.shrunk(config, SMALL, args.given))
    steps = steps_per_epoch(config, examples)

    def train(name, epochs, path):
        """Those epochs of the run in one implementation, carried on by `path`. -> canonical name -> array, after them"""
        built = columns.Built(name, config, exact.load(name))
        batches = training_batches(config, examples, first_step=epochs.start * steps)
        about = dict(implementation=name, config=config.as_dict(), epoch=epochs.stop)
        built.carry_on(itertools.islice(batches, len(epochs) * steps), path, **about)
        return built.values()

    print(f"\nan epoch in each ({', '.join(runners)}) against {len(runners)} epochs in one: largest difference of the weights")
    for precision in PRECISIONS:
        batch_norm = "none" if config.network.batch_norm == "none" else "explicit"
        config = config.replace(precision=precision, batch_norm=batch_norm, epochs=len(runners))
        paths = [folder / f"relay-{precision}{name}.safetensors" for name in ("", *(f"-{name}" for name in runners))]
        for path in paths:
            path.unlink(missing_ok=True)
        for k, name in enumerate(runners):
            ended = train(name, range(k, k + 1), paths[0])
        for name, path in zip(runners, paths[1:]):
            worst, d, _ = difference(ended, train(name, range(len(runners)), path))
            records.append(dict(precision=precision, alone=name, worst=worst, difference=d, tolerance=0.0))
            print(f"{precision:<9} relay - {name:<12}{d:>9.1e}  {f'DIFFERENT at {worst}' if d else 'ok'}", flush=True)
    write_json(folder / "relay.json", records)
    print(f"\nwritten to {folder / 'relay.json'}; the checkpoints lie beside it")
    return not any(record["difference"] for record in records)
