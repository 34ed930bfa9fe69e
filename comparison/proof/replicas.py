"""Several devices and hosts against one: is a batch that they share the same step of training?

The devices are this host's GPUs, or copies of its CPU; the hosts are processes of this machine. Each implementation trains for
some steps on a small network, in float64 where the claim is that nothing but the order of additions differs:

1, 2 and 4 devices      the explicit normalization, over the whole batch, against one device
fused, per device       against one device that takes the rows of each in turn, and averages the moving statistics
2 hosts                 against 2 devices of one host
handed on               1, 2, 4 and 1 devices in turn, from checkpoint to checkpoint, against one device
"""

import contextlib
import io
import itertools
import tempfile
from pathlib import Path

from common import see_one_gpu
from common.cli import count
from common.config import Addresses, Size, UserError, Weights
from common.output import write_json
from common.weights import assign_weights
from comparison import columns
from comparison.proof.apart import difference

import numpy as np

SMALL = dict(filters=4, depth=2, image_size=Size(32, 32), batch_size=8)
EXPLICIT = dict(batch_norm="explicit", precision="float64")
FIRST = "explicit, dice"
# title -> options: what is more than a mean over the images, what is drawn, and what acts on the gradients as a whole
WAYS = {
    FIRST: EXPLICIT,
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

SETS = {"precision", "batch_norm", "epochs", "jit", "deterministic"}


def add_options(parser):
    """Adds the options of `compare.py replicas` to those of the configuration."""
    parser.add_argument_group("replicas").add_argument(
        "--steps", type=count, default=STEPS, metavar="N", help="training steps (default: %(default)s)"
    )


def run(config, args):
    """Climbs, prints the table, writes replicas.json. Returns: whether every check passed."""
    config = columns.shrunk(config, SMALL, args.given)
    if config.training.batch_size % 4:
        raise UserError(f"--batch-size {config.training.batch_size} cannot be shared by 4 devices: a multiple of 4 can")
    return climb_all(config, args.steps, config.training.run_dir / "replicas.json")


def climb_all(config, steps, path):
    """Runs every implementation every way, prints a table, writes JSON to `path`. Returns: whether every check passed."""
    from training.hosts import free_addresses

    records = []
    heads = f"{'losses':>8}{'weights':>8}{'statistics':>11}{'allowed':>8}"
    print(f"\n{f'several devices against one, {steps} steps':<61}{heads}")
    for name in columns.IMPLEMENTATIONS:
        pairs, two = columns.call(observe, name, name, config, steps)
        print(name)
        for title, (found, wanted, precision) in pairs.items():
            records.append(_compare(name, title, found, wanted, *TOLERANCE[precision]))
        if not two:  # the one GPU; two hosts cannot share it either
            print(f"{name}: several devices need several GPUs; CUDA_VISIBLE_DEVICES= in front takes copies of the CPU")
            continue
        addresses = Addresses(free_addresses(2))
        work = columns.returned, observe_host, name, config, steps, addresses
        hosts = [columns.Process(f"{name} on a host", *work, worker) for worker in range(2)]
        over_hosts, _ = (host.ask() for host in hosts)
        for title, found in over_hosts.items():
            reason = "the same operations on the same rows, and the sum of two numbers has one order"
            records.append(_compare(name, f"{title}: 2 hosts against 2 devices", found, two[title], 0.0, reason))
        for host in hosts:
            host.end()
    write_json(path, records)
    failed = sum(not record["passed"] for record in records)
    verdict = f"{failed} of {len(records)} FAILED" if failed else f"{len(records)} comparisons, the same training"
    if not any("2 devices" in record["way"] for record in records):
        verdict = "not compared, for there is one GPU"
    print(f"\nseveral devices and hosts: {verdict}; every name and reason in {path}")
    return not failed


def _compare(implementation, title, found, wanted, tolerance, reason):
    apart = {rung: difference(found[rung], wanted[rung]) for rung in wanted}  # (name, largest difference, ulp)
    passed = all(d <= tolerance for _, d, _ in apart.values())
    losses, weights, statistics = (apart[rung][1] for rung in ("losses", "weights", "moving statistics"))
    verdict = "ok" if passed else "DIFFERENT at " + ", ".join(name for name, d, _ in apart.values() if d > tolerance)
    print(f"{title:<61}{losses:>8.0e}{weights:>8.0e}{statistics:>11.0e}{tolerance:>8.0e}  {verdict}", flush=True)
    worst = {rung: dict(name=name, difference=None if d == np.inf else d, ulp=ulp) for rung, (name, d, ulp) in apart.items()}
    return dict(
        implementation=implementation, way=title, apart=worst, tolerance=tolerance, reason=reason, passed=bool(passed)
    )  # fmt: skip


# --- in a process of its own, since devices are set before the first operation ---


def observe(implementation, config, steps):
    """What one implementation computes on 1, 2 and 4 devices.

    Returns: ({title: (found, wanted, precision)}, {title: what 2 devices found}); see `train`.
    """
    strategies, pairs, seen = start_devices(), {}, {}
    for title, options in WAYS.items():
        changed, is_fused = config.replace(**options), options["batch_norm"] == "fused"
        # the first shows that their number does not matter, the others what a sum over them could get wrong
        some = {n: strategy for n, strategy in strategies.items() if n <= 2 or title == FIRST}
        found = {n: train(implementation, changed, range(steps), strategy) for n, strategy in some.items()}
        seen[title] = found
        for n in [n for n in found if n > 1]:
            wanted = train_by_rows(implementation, changed, steps, n) if is_fused else found[1]
            against = "rows in turn" if is_fused else "1"
            pairs[f"{title}: {n} devices against {against}"] = found[n], wanted, changed.network.precision
    changed = config.replace(**WAYS[FIRST])
    turns = [*strategies, 1]
    with tempfile.TemporaryDirectory() as folder:
        bounds, losses = np.linspace(0, steps, len(turns) + 1).astype(int), {}
        for n, part in zip(turns, itertools.pairwise(bounds)):
            found = train(implementation, changed, range(*part), strategies[n], Path(folder) / "baton.safetensors")
            losses |= found["losses"]
    pairs[f"handed on: {', '.join(map(str, turns))} devices"] = {**found, "losses": losses}, seen[FIRST][1], "float64"
    return pairs, {title: found[2] for title, found in seen.items() if 2 in found}


def start_devices(counts=(1, 2, 4), deterministic=True):
    """{n: the strategy of n devices of this host}: GPUs, of which there may be fewer, or copies of the CPU."""
    from common.device import be_deterministic, tf
    from training.hosts import mirrored

    gpus, cpu = tf.config.list_physical_devices("GPU"), tf.config.list_physical_devices("CPU")[0]
    if not gpus:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * max(counts))
    if deterministic:
        be_deterministic()
    names = [f"GPU:{k}" for k in range(len(gpus))] or [f"CPU:{k}" for k in range(max(counts))]
    several = {n: mirrored(names[:n]) for n in counts if 1 < n <= len(names)}
    return {1: tf.distribute.get_strategy(), **several}


def observe_host(implementation, config, steps, addresses, worker):
    """{title: what this host found}, for the first way and the fused."""
    see_one_gpu(worker)
    from common.device import be_deterministic
    from training.hosts import spread

    be_deterministic()
    found = {}
    with spread(config.replace(workers=addresses, worker=worker)):
        for title in (FIRST, "fused, dice"):
            found[title] = train(implementation, config.replace(**WAYS[title]), range(steps), None)
    return found


def start(implementation, config):
    """-> (`Built` of `config` filled in by the data, the examples to train on)"""
    from data.loader import load_examples

    with contextlib.redirect_stdout(io.StringIO()):
        config, training, _ = load_examples(config)
    return columns.Built(implementation, config), training


def _found(losses, built):
    return {
        "losses": losses,
        "weights": built.values(trained=True),
        "moving statistics": built.values(trained=False),
        "moments": built.moments(),
    }


def train(implementation, config, steps, strategy, baton=None):
    """Some steps of a training, from its start or from the checkpoint `baton`, which it leaves behind.

    steps: range. strategy: None, to stay in the scope that is open.

    Returns: rung -> {name -> array}: losses, weights, moving statistics, and the moments of the optimizer.
    """
    from data.loader import training_batches
    from training.devices import scope

    with scope(strategy) if strategy else contextlib.nullcontext():
        built, training = start(implementation, config.replace(epochs=1000))
        batches = itertools.islice(training_batches(built.config, training, first_step=steps.start), len(steps))
        losses = built.carry_on(batches, baton)
        return _found({f"step {k + 1}": loss for k, loss in zip(steps, losses)}, built)


def train_by_rows(implementation, config, steps, n):
    """What n devices compute with a normalization of their own each, on one device: the rows of each in turn."""
    from common.device import tf
    from data.loader import training_batches

    built, training = start(implementation, config.replace(epochs=1000))
    optimizer, trainable = built.optimizer, {name: w for name, w in built.weights.items() if w.trainable}
    statistics = {name: w for name, w in built.weights.items() if "/moving_" in name}
    of_rows, losses = tf.function(built.backward), {}

    @tf.function
    def apply(gradients):
        if implementation == "lowlevel":
            optimizer.apply(gradients)
        elif implementation == "highlevel":
            optimizer.apply_gradients(((gradients[name], w) for name, w in trainable.items()), global_step=optimizer.iterations)
        else:
            optimizer.apply([gradients[name] for name in trainable], built.model.trainable_variables)

    for k, (images, masks) in enumerate(itertools.islice(training_batches(built.config, training), steps)):
        before, after, gradients, loss = {name: w.numpy() for name, w in statistics.items()}, [], [], []
        for rows in zip(tf.split(images, n), tf.split(masks, n)):
            assign_weights(statistics, before)
            _, of_these, gradient = of_rows(*rows)
            loss.append(of_these)
            gradients.append(gradient)
            after.append({name: w.numpy() for name, w in statistics.items()})
        apply({name: tf.add_n([of_these[name] for of_these in gradients]) / n for name in trainable})
        assign_weights(statistics, {name: np.mean([values[name] for values in after], axis=0) for name in statistics})
        losses[f"step {k + 1}"] = tf.add_n(loss).numpy() / n
    return _found(losses, built)
