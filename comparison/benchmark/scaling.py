"""How much faster are several devices? The training step on each number of them, and what a sum over them costs."""

import functools
import statistics
import time

from common.config import UserError
from common.output import write_json
from comparison import columns


def run(config, counts, rounds, path):
    """Measures every implementation on each number of devices, in turns; prints a table and writes JSON to `path`.

    The batch grows with the devices, `config.training.batch_size` rows for each.
    """
    if counts[0] != 1:
        raise UserError("--devices 1,2: the first has to be 1, to which the others are compared")
    if config.training.jit:
        raise UserError("--devices times what training runs by default: leave --jit out")
    rows = []
    heads = f"{'images/s':>10}{'against 1':>11}{'efficiency':>12}{'the sum alone':>15}"
    print(f"\n{'training':<14}{'devices':>8}{heads}", flush=True)
    for name in columns.IMPLEMENTATIONS:
        found = columns.call(measure, name, name, config, counts, rounds)
        first = config.training.batch_size / found[1][0]
        for n, (step, total, kind) in found.items():
            rate = n * config.training.batch_size / step
            row = dict(implementation=name, devices=n, kind=kind, images_per_second=rate, step=step, sum=total)
            rows.append({**row, "efficiency": rate / first / n})
            shown = f"{name:<14}{n:>8}{rate:>10.1f}{rate / first:>10.2f}x{rate / first / n:>12.0%}{1e3 * total:>12.1f} ms"
            print(shown, flush=True)
    if rows[0]["kind"] == "CPU":
        print("the devices are copies of one CPU, which they share: this shows what several devices cost, not what they bring")
    write_json(path, rows)
    print(f"written to {path}")


def measure(implementation, config, counts, rounds):
    """{devices: (seconds of a step, seconds of the sum of its gradients alone, "GPU" or "CPU")}, medians of `rounds`."""
    from common.device import tf
    from comparison.proof.replicas import start, start_devices
    from data.loader import training_batches
    from training.devices import on_every_replica, scope, total

    def first_of_each(combine):
        @tf.function
        @on_every_replica
        def add_up(*gradients):
            return tf.add_n([tf.reshape(x, [-1])[0] for x in combine(list(gradients))])

        return add_up

    ready = {}
    for n, strategy in start_devices(counts, deterministic=False).items():
        with scope(strategy):
            of_n = config.replace(batch_size=n * config.training.batch_size, images=2 * n * config.training.batch_size)
            built, training = start(implementation, of_n)
            step, shapes = built.train_step, [w.shape for w in built.weights.values() if w.trainable]
            batch = next(iter(training_batches(built.config, training)))
            gradients = strategy.run(lambda shapes=shapes: [tf.random.uniform(shape) for shape in shapes])

        ready[n, strategy, "step"] = functools.partial(step, *batch)
        for what, combine in ("sum", total), ("call", list):  # a call alone takes its time, too
            ready[n, strategy, what] = functools.partial(first_of_each(combine), *gradients)

    def seconds(turn):
        with turn[1].scope():
            begin = time.perf_counter()
            float(ready[turn]())
            return time.perf_counter() - begin

    for turn in ready:
        seconds(turn)  # traced
    times = columns.in_turns(list(ready), rounds, f"bench: {implementation}", seconds)
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    found = {(n, what): statistics.median(of) for (n, _, what), of in times.items()}
    return {n: (found[n, "step"], max(found[n, "sum"] - found[n, "call"], 0.0), kind) for n in counts}
