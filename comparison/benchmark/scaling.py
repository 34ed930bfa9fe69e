"""How much faster are several devices? Measured on this host, and a model of the cost of a step for hosts that are not at hand.

python compare.py bench --devices 1,2,4     measures
python -m comparison.benchmark.scaling                the model alone, a table
"""

import functools
import json
import statistics
import sys
import time

from common.config import Config, UserError
from common.output import write_text
from common.weights import initial_weights
from comparison import columns

# bytes per second in one direction, seconds of a message: of the makers' sheets; not measured here
LINKS = {
    "NVLink 4, 450 GB/s": (450e9, 5e-6),
    "PCIe 4 x16, 32 GB/s": (32e9, 10e-6),
    "Ethernet 100 Gb/s": (12.5e9, 50e-6),
}


def ring_seconds(size, n, bandwidth, latency):
    """Of adding up `size` bytes over a ring of n members: each sends 2 (n - 1) pieces of size / n, one after the other.

    Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations", section 3.
    """
    return 2 * (n - 1) * (size / n / bandwidth + latency)


def sum_seconds(size, devices, hosts, inside, between):
    """Of adding up the gradients over `devices` of each of `hosts`: a ring inside of every host, then one between them.

    inside, between: (bytes per second, seconds of a message) of the links. The rings between hosts share one link.
    """
    return ring_seconds(size, devices, *inside) + ring_seconds(size, hosts, *between)


def print_model():
    """From which step on 8 devices in each of 8 hosts are 90 % as fast as 64: when the step takes nine times the sum."""
    inside, between = LINKS["NVLink 4, 450 GB/s"], LINKS["Ethernet 100 Gb/s"]
    print("a step has to take so long, on one device with its share of the batch, for 90 % (sums beside nothing else):")
    print(f"{'network':<24}{'gradients':>12}{'8 NVLink':>12}{'8 PCIe':>12}{'8 x 8':>12}")
    for filters in (16, 32, 64):
        network = Config.of(filters=filters).network
        size = sum(value.nbytes for name, value in initial_weights(network).items() if "/moving_" not in name)
        seconds = [ring_seconds(size, 8, *LINKS[link]) for link in list(LINKS)[:2]] + [sum_seconds(size, 8, 8, inside, between)]
        cells = "".join(f"{9e3 * s:>9.1f} ms" for s in seconds)
        print(f"{f'{filters} filters, depth {network.depth}':<24}{size / 1e6:>9.1f} MB{cells}")


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
    write_text(path, json.dumps(rows, indent=2) + "\n")
    print(f"written to {path}\n")
    print_model()


def measure(implementation, config, counts, rounds):
    """{devices: (seconds of a step, seconds of the sum of its gradients alone, "GPU" or "CPU")}, medians of `rounds`."""
    from common.device import tf
    from comparison.proof.replicas import start, start_devices
    from data.loader import training_batches
    from training.devices import on_every_replica, scope, total

    ready = {}
    for n, strategy in start_devices(counts, deterministic=False).items():
        with scope(strategy):
            of_n = config.replace(batch_size=n * config.training.batch_size, images=2 * n * config.training.batch_size)
            built, training = start(implementation, of_n)
            step, shapes = built.train_step, [w.shape for w in built.weights.values() if w.trainable]
            batch = next(iter(training_batches(built.config, training)))

        @tf.function
        @on_every_replica
        def add_up(shapes=shapes):
            return tf.add_n([tf.reduce_sum(x) for x in total([tf.random.uniform(shape) for shape in shapes])])

        ready[n] = strategy, functools.partial(step, *batch), add_up
        with strategy.scope():
            float(step(*batch)), float(add_up())
    times = {n: ([], []) for n in ready}
    for _ in range(rounds):
        for n, (strategy, *works) in ready.items():
            with strategy.scope():
                for measured, work in zip(times[n], works):
                    begin = time.perf_counter()
                    float(work())
                    measured.append(time.perf_counter() - begin)
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    return {n: (*map(statistics.median, measured), kind) for n, measured in times.items()}


if __name__ == "__main__":
    sys.exit(print_model())
