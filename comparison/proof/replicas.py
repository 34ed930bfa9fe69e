"""Several devices and hosts against one: is a batch that they share the same step of training?

The devices are this host's GPUs, or copies of its CPU; the hosts are processes of this machine. Each implementation trains for
some steps on a small network, in float64 where the claim is that nothing but the order of additions differs:

1, 2 and 4 devices      the explicit normalization, over the whole batch, against one device
fused, per device       against one device that takes the rows of each in turn, and averages the moving statistics
2 hosts                 against 2 devices of one host
handed on               1, 2, 4 and 1 devices in turn, from checkpoint to checkpoint, against one device
"""

import contextlib
import functools
import io
import itertools
import json
import tempfile
from pathlib import Path

from common import see_one_gpu
from common.checkpoint import load_checkpoint, save_checkpoint
from common.cli import count
from common.config import Addresses, Size, UserError, Weights
from common.output import write_text
from common.weights import assign_weights, is_trainable
from comparison import columns

import numpy as np

SMALL = dict(filters=4, depth=2, image_size=Size(32, 32), batch_size=8)
EXPLICIT = dict(batch_norm="explicit", precision="float64")
# title -> options: what is more than a mean over the images, what is drawn, and what acts on the gradients as a whole
WAYS = {
    "explicit, dice": EXPLICIT,
    "explicit, class weights, clipped, dropout": dict(
        **EXPLICIT, classes=2, loss="dice_ce", class_weights=Weights((0.5, 2.0)), clip_norm=0.1, dropout=0.5
    ),
    "explicit, weight map, SGD": dict(**EXPLICIT, loss="cross_entropy", weight_map=True, optimizer="sgd"),
    "explicit, dice, float32": dict(batch_norm="explicit", precision="float32"),
    "fused, dice": dict(batch_norm="fused", precision="float32"),
}
TOLERANCE = {
    "float64": (1e-12, "the sums of the devices add up in another order: 1e-16 each, and some 20 steps of Adam spread it"),
    "float32": (1e-12 * 2**29, "the same in units of float32, which are 2**29 times as large"),
}


STEPS = 20


def add_options(parser):
    """Adds the options of `compare.py replicas` to those of the configuration."""
    parser.add_argument_group("replicas").add_argument(
        "--steps", type=count, default=STEPS, metavar="N", help="training steps (default: %(default)s)"
    )


def run(config, args):
    """Climbs, prints the table, writes replicas.json. Returns: whether every check passed."""
    if {"precision", "batch_norm"} & args.given:
        raise UserError("replicas chooses --precision and --batch-norm itself: leave them out")
    config = columns.shrunk(config, SMALL, args.given)
    return climb_all(config, args.steps, config.training.run_dir / "replicas.json")


def climb_all(config, steps, path):
    """Runs every implementation every way, prints a table, writes JSON to `path`. Returns: whether every check passed."""
    records = []
    heads = f"{'losses':>9}{'weights':>9}{'statistics':>12}{'allowed':>9}"
    print(f"\n{f'several devices against one, {steps} steps':<76}{heads}")
    for name in columns.IMPLEMENTATIONS:
        local = columns.call(observe, name, name, config, steps)
        for title, (found, wanted, precision) in local["pairs"].items():
            records.append(_compare(name, title, found, wanted, *TOLERANCE[precision]))
        if not local["two"]:  # the one GPU; two hosts cannot share it either
            print(f"{name}: several devices need several GPUs; CUDA_VISIBLE_DEVICES= in front takes copies of the CPU")
            continue
        hosts = _start_hosts(name, config, steps)
        over_hosts = [columns.receive(connection, f"{name} on a host") for _, connection in hosts][0]
        for title, found in over_hosts.items():
            reason = "the same operations on the same rows, and the sum of two numbers has one order"
            records.append(_compare(name, f"{title}: 2 hosts against 2 devices", found, local["two"][title], 0.0, reason))
        for process, _ in hosts:
            process.join()
    write_text(path, json.dumps(records, indent=2) + "\n")
    failed = sum(not record["passed"] for record in records)
    verdict = f"{failed} of {len(records)} FAILED" if failed else f"{len(records)} comparisons, the same training"
    if not any("2 devices" in record["way"] for record in records):
        verdict = "not compared, for there is one GPU"
    print(f"\nseveral devices and hosts: {verdict}; every name and reason in {path}")
    return not failed


def _compare(implementation, title, found, wanted, tolerance, reason):
    from comparison.proof.ladder import difference

    apart = {rung: difference(found[rung], wanted[rung]) for rung in wanted}  # (name, largest difference, ulp)
    passed = all(d <= tolerance for _, d, _ in apart.values())
    losses, weights, statistics = (apart[rung][1] for rung in ("losses", "weights", "moving statistics"))
    verdict = "ok" if passed else "DIFFERENT at " + ", ".join(name for name, d, _ in apart.values() if d > tolerance)
    label = f"{implementation}, {title}"
    print(f"{label:<76}{losses:>9.1e}{weights:>9.1e}{statistics:>12.1e}{tolerance:>9.0e}  {verdict}", flush=True)
    worst = {rung: dict(name=name, difference=None if d == np.inf else d, ulp=ulp) for rung, (name, d, ulp) in apart.items()}
    return dict(
        implementation=implementation, way=title, apart=worst, tolerance=tolerance, reason=reason, passed=bool(passed)
    )  # fmt: skip


# --- in a process of its own, since devices are set before the first operation ---


def observe(implementation, config, steps, connection):
    """What one implementation computes on 1, 2 and 4 devices.

    Sends {"pairs": {title: (found, wanted, precision)}, "two": {title: what 2 devices found}}; see `train`.
    """
    strategies = start_devices()
    pairs, two, whole = {}, {}, None
    for title, options in WAYS.items():
        changed = config.replace(**options)
        step = functools.partial(train, implementation, changed, range(steps))
        precision = changed.network.precision
        for n, strategy in strategies.items():
            # the first shows that their number does not matter, the others what a sum over them could get wrong
            if n > 2 and title != "explicit, dice" or n == 1 and options["batch_norm"] == "fused":
                continue
            found = step(strategy)
            if n == 2:
                two[title] = found
            if n == 1:
                one = found
                whole = whole or found  # of the first way
            elif options["batch_norm"] == "fused":
                by_rows = train_by_rows(implementation, changed, steps, n)
                pairs[f"{title}: {n} devices against rows in turn"] = found, by_rows, precision
            else:
                pairs[f"{title}: {n} devices against 1"] = found, one, precision
    changed = config.replace(**WAYS["explicit, dice"])
    turns = [*strategies, 1]
    with tempfile.TemporaryDirectory() as folder:
        bounds, losses = np.linspace(0, steps, len(turns) + 1).astype(int), {}
        for n, part in zip(turns, itertools.pairwise(bounds)):
            found = train(implementation, changed, range(*part), strategies[n], Path(folder) / "baton.safetensors")
            losses |= found["losses"]
    pairs[f"handed on: {', '.join(map(str, turns))} devices"] = {**found, "losses": losses}, whole, "float64"
    connection.send({"pairs": pairs, "two": two})


def start_devices(counts=(1, 2, 4), deterministic=True):
    """{n: the strategy of n devices of this host}: GPUs, of which there may be fewer, or copies of the CPU."""
    from common.device import be_deterministic, tf

    gpus, cpu = tf.config.list_physical_devices("GPU"), tf.config.list_physical_devices("CPU")[0]
    if not gpus:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * max(counts))
    if deterministic:
        be_deterministic()
    tf.get_logger().setLevel("ERROR")
    kind, sums = ("GPU", None) if gpus else ("CPU", tf.distribute.ReductionToOneDevice())
    several = {
        n: tf.distribute.MirroredStrategy([f"{kind}:{k}" for k in range(n)], sums)
        for n in counts
        if 1 < n <= len(gpus or range(max(counts)))
    }
    return {1: tf.distribute.get_strategy(), **several}


def _start_hosts(implementation, config, steps):
    """Two processes, each a host. -> [(process, connection)]"""
    from training.hosts import free_addresses

    addresses = Addresses(free_addresses(2))
    return [columns.start_process(observe_host, implementation, config, steps, addresses, k) for k in range(2)]


def observe_host(implementation, config, steps, addresses, worker, connection):
    """Sends {title: what this host found}, for the first way and the fused."""
    see_one_gpu(worker)
    from common.device import be_deterministic
    from training.hosts import spread

    be_deterministic()
    found = {}
    with spread(config.replace(workers=addresses, worker=worker)):
        for title in ("explicit, dice", "fused, dice"):
            found[title] = train(implementation, config.replace(**WAYS[title]), range(steps), None)
    connection.send(found)


def start(implementation, config):
    """-> (the contract's functions, `config` filled in by the data, examples to train on, model, optimizer, weights, state)"""
    from common.device import tf
    from data.loader import load_examples
    from training.devices import variants

    code = columns.load(implementation)
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        vars(code).update(variants(implementation))
    with contextlib.redirect_stdout(io.StringIO()):
        config, training, _ = load_examples(config)
    model = code.UNet(config.network)
    optimizer = code.make_optimizer(model, config)
    weights, state = code.named_weights(model), code.named_state(model, optimizer)
    return code, config, training, model, optimizer, weights, state


def _found(losses, weights, state):
    values = {name: weight.numpy() for name, weight in weights.items()}
    return {
        "losses": losses,
        "weights": {name: value for name, value in values.items() if is_trainable(name)},
        "moving statistics": {name: value for name, value in values.items() if not is_trainable(name)},
        "moments": {name: value.numpy() for name, value in state.items()},
    }


def train(implementation, config, steps, strategy, baton=None):
    """Some steps of a training, from its start or from the checkpoint `baton`, which it leaves behind.

    steps: range. strategy: None, to stay in the scope that is open.

    Returns: rung -> {name -> array}: losses, weights, moving statistics, and the moments of the optimizer.
    """
    from data.loader import training_batches
    from training.devices import scope

    with scope(strategy) if strategy else contextlib.nullcontext():
        code, config, training, model, optimizer, weights, state = start(implementation, config.replace(epochs=1000))
        if baton and baton.exists():
            values, moments, _ = load_checkpoint(baton, config.network)
            assign_weights(weights, values)
            assign_weights(state, moments)
        step = code.make_train_step(model, config, optimizer)
        batches = itertools.islice(training_batches(config, training, first_step=steps.start), len(steps))
        losses = {f"step {k + 1}": step(*batch).numpy() for k, batch in zip(steps, batches)}
        if baton:
            save_checkpoint(baton, weights, state)
        return _found(losses, weights, state)


def train_by_rows(implementation, config, steps, n):
    """What n devices compute with a normalization of their own each, on one device: the rows of each in turn."""
    from common.device import tf
    from common.losses import segmentation_loss
    from data.loader import training_batches

    code, config, training, model, optimizer, weights, state = start(implementation, config.replace(epochs=1000))
    trainable = {name: w for name, w in weights.items() if w.trainable}
    statistics = {name: w for name, w in weights.items() if "/moving_" in name}

    @tf.function
    def of_rows(images, masks):
        with tf.GradientTape() as tape:
            loss = segmentation_loss(masks, model(images, training=True), config) / n
        return loss, tape.gradient(loss, trainable)

    def apply(gradients):
        if implementation == "lowlevel":
            optimizer.apply(gradients)
        elif implementation == "highlevel":
            optimizer.apply_gradients(((gradients[name], w) for name, w in trainable.items()), global_step=optimizer.iterations)
        else:
            optimizer.apply([gradients[name] for name in trainable], model.trainable_variables)

    apply, losses = tf.function(apply), {}
    for k, (images, masks) in enumerate(itertools.islice(training_batches(config, training), steps)):
        before, after, gradients, loss = {name: w.numpy() for name, w in statistics.items()}, [], [], []
        for rows in zip(tf.split(images, n), tf.split(masks, n)):
            assign_weights(statistics, before)
            of_these = of_rows(*rows)
            loss.append(of_these[0])
            gradients.append(of_these[1])
            after.append({name: w.numpy() for name, w in statistics.items()})
        apply({name: tf.add_n([of_these[name] for of_these in gradients]) for name in trainable})
        assign_weights(statistics, {name: np.mean([values[name] for values in after], axis=0) for name in statistics})
        losses[f"step {k + 1}"] = tf.add_n(loss).numpy()
    return _found(losses, weights, state)
