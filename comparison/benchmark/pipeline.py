"""How fast do images reach the network, and does it ever wait for them?"""

import collections
import contextlib
import io
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import get_args

from common import CORES
from common.config import FIELDS
from common.device import device_name, tf
from common.output import write_json
from comparison import columns
from data.loader import load_examples, training_batches, validation_batches

AUGMENTATIONS = get_args(FIELDS["augment"][1].type)
READING = "first epoch"
BUFFERED = CORES + 3  # batches that gather in `training_batches` while others have their turn, and one that is on its way


def time_first_epoch(config):
    """Images per second from the files on disk until an epoch of batches to train on, and all to validate, were there."""
    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # it was said once
            config, training, validation = load_examples(config.replace(cache=Path(cache), epochs=1, augment="none"))
        both = itertools.chain(training_batches(config, training), validation_batches(config, validation))
        collections.deque(both, maxlen=0)
        return (len(training.names) + len(validation.names)) / (time.perf_counter() - begin)


def endless(config, training, kind):
    """Batches without end, augmented by `kind`; the first ones are gone, which were waiting while the threads started."""
    batches = iter(training_batches(config.replace(augment=kind, epochs=10**6), training))
    for _ in range(8):
        next(batches)
    return batches


def time_training(step, batches, batch_size):
    """(images per second, share of the time that waits for data) of a train step, for about a second."""
    for _ in range(BUFFERED):
        step(*next(batches))
    steps, waited, begin = 0, 0.0, time.perf_counter()
    while steps < 4 or time.perf_counter() - begin < 1:
        asked = time.perf_counter()
        images, masks = next(batches)
        waited += time.perf_counter() - asked
        step(images, masks)
        tf.test.experimental.sync_devices()  # so that no waiting hides behind steps that are under way
        steps += 1
    seconds = time.perf_counter() - begin
    return batch_size * steps / seconds, waited / seconds


def run(config, rounds, path):
    """Measures, prints two tables, writes JSON to `path`."""
    config, training, validation = load_examples(config)
    size, count = config.training.batch_size, len(training.names) + len(validation.names)
    print(f"{device_name()}, {CORES} threads, batch {size}, {count} images", flush=True)
    images, masks = next(endless(config, training, "none"))
    batch = tf.constant(images.numpy()), tf.constant(masks.numpy())  # on the device
    nothing = lambda *_: None  # noqa: E731

    def speed(what):
        return time_first_epoch(config) if what == READING else time_training(nothing, endless(config, training, what), size)[0]

    rates = columns.in_turns([READING, *AUGMENTATIONS], rounds, "the pipeline alone", speed)
    alone = {what if what == READING else f"later epochs, augment {what}": values for what, values in rates.items()}
    print(f"\n{'the pipeline alone':<32}{'images/s':>10}")
    for label, values in alone.items():
        print(f"{label:<32}{statistics.median(values):>10.1f}")
    lanes = {}
    for name in columns.IMPLEMENTATIONS:  # one process holds all: compared is the same step with other batches
        step = columns.Built(name, config).train_step
        step(*batch)  # traced
        lanes[name, "no input"] = step, itertools.repeat(batch), size
        lanes |= {(name, kind): (step, endless(config, training, kind), size) for kind in AUGMENTATIONS}
    trained = columns.in_turns(list(lanes), rounds, "training", lambda lane: time_training(*lanes[lane]))
    speeds, waiting = ({lane: statistics.median(of[k] for of in found) for lane, found in trained.items()} for k in (0, 1))
    print(f"\n{'training through it':<32}{'images/s':>10}{'waiting':>10}{'the step alone':>16}{'the pipeline alone':>20}")
    fed = {kind: statistics.median(rates[kind]) for kind in AUGMENTATIONS}
    for name, kind in itertools.product(columns.IMPLEMENTATIONS, AUGMENTATIONS):
        shown = (
            f"{speeds[name, kind]:>10.1f}{100 * waiting[name, kind]:>8.1f} %{speeds[name, 'no input']:>16.1f}{fed[kind]:>20.1f}"
        )
        print(f"{f'{name}, augment {kind}':<32}{shown}")
    fastest = max(speeds[name, "no input"] for name in columns.IMPLEMENTATIONS)
    for kind in AUGMENTATIONS:
        times = fed[kind] / fastest
        waits = ", so that the device waits" * (times < 1)
        print(f"augment {kind}: the input feeds the fastest step {times:.1f} times over{waits}")
    record = dict(device=device_name(), config=config.as_dict(), images=count, images_per_second=alone)
    record["training"] = {
        f"{name}, {what if what == 'no input' else f'augment {what}'}": [
            dict(images_per_second=rate, waiting=waiting) for rate, waiting in found
        ]
        for (name, what), found in trained.items()
    }
    write_json(path, record)
    print(f"\nmedians of {rounds} rounds in turns; written to {path}")
