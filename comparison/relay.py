"""An epoch in each implementation, in turn, from one checkpoint to the next: is that three epochs in any one?"""

import itertools
import json

import comparison
from common.checkpoint import load_checkpoint, save_checkpoint
from common.device import be_deterministic, tf
from common.weights import assign_weights
from data.loader import load_examples, steps_per_epoch, training_batches

import numpy as np

TOLERANCES = {
    "float64": (
        1e-12,
        "v1 multiplies its powers of beta up, the others call pow; tf.layers moves its averages by another formula",
    ),
    "float32": (1e-5, "of moving statistics; everything else is the same, bit for bit, while the constants are binary-exact"),
}


def train(implementation, config, training, epochs, path):
    """Trains `epochs` of the run in one implementation: from the checkpoint `path` if there is one, and into it.

    epochs: range. Returns: canonical name -> array, after the last of them.
    """
    code = comparison.load(implementation)
    model = code.UNet(config.network)
    optimizer = code.make_optimizer(model, config)
    train_step = code.make_train_step(model, config, optimizer)
    weights, state = code.named_weights(model), code.named_state(model, optimizer)
    if path.exists():
        values, moments, _ = load_checkpoint(path, config)
        assign_weights(weights, values)
        assign_weights(state, moments)
    steps = steps_per_epoch(config, training)
    batches = training_batches(config, training, first_step=epochs.start * steps)
    for images, masks in itertools.islice(batches, len(epochs) * steps):
        train_step(images, masks)
    save_checkpoint(path, weights, state, implementation=implementation, config=config.as_dict(), epoch=epochs.stop)
    return {name: weight.numpy() for name, weight in weights.items()}


def run(config, path):
    """Runs the relay in float32 and float64, prints the table, writes it to `path` as JSON; the checkpoints lie beside it.

    Returns: whether the relay ended where each implementation alone did.
    """
    be_deterministic()
    tf.get_logger().setLevel("ERROR")  # "triggered retracing": the three models are traced by the same lines
    path.parent.mkdir(parents=True, exist_ok=True)
    runners = comparison.IMPLEMENTATIONS
    config, training, _ = load_examples(config)
    records = []
    print(f"\nan epoch in each ({', '.join(runners)}) against {len(runners)} epochs in one: largest difference of the weights")
    for precision, (allowed, reason) in TOLERANCES.items():
        batch_norm = "none" if config.network.batch_norm == "none" else "explicit"
        changed = config.replace(precision=precision, batch_norm=batch_norm, epochs=len(runners))
        baton = path.parent / f"relay-{precision}.safetensors"
        baton.unlink(missing_ok=True)
        for k, name in enumerate(runners):
            ended = train(name, changed, training, range(k, k + 1), baton)
        for name in runners:
            alone = path.parent / f"relay-{precision}-{name}.safetensors"
            alone.unlink(missing_ok=True)
            values = train(name, changed, training, range(len(runners)), alone)
            worst = max(ended, key=lambda weight: np.abs(ended[weight] - values[weight]).max())
            d = float(np.abs(ended[worst] - values[worst]).max())
            records.append(dict(precision=precision, alone=name, worst=worst, difference=d, tolerance=allowed, reason=reason))
            verdict = "ok" if d <= allowed else "DIFFERENT"
            print(f"{precision:<9} relay - {name:<12}{d:>9.1e} at {worst:<32} tolerance {allowed:.0e}  {verdict}", flush=True)
    path.write_text(json.dumps(records, indent=2) + "\n")
    print(f"\nwritten to {path}; the checkpoints lie beside it")
    return all(record["difference"] <= record["tolerance"] for record in records)
