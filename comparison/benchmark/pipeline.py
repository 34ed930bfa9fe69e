"""How fast do images reach the network, and does it ever wait for them?"""

import collections
import contextlib
import io
import itertools
import json
import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

from common import CORES
from common.config import FIELDS, UserError
from common.device import device_name, tf
from common.output import write_text
from comparison import columns
from data.layouts import find_layout
from data.loader import as_floats, augmented, load_examples, steps_per_epoch, training_batches, validation_batches
from data.splits import split

import numpy as np
from PIL import Image

CONSUMED = (500, 1000, 2000)  # images per second, as a GPU may take them
AUGMENTATIONS = get_args(FIELDS["augment"][1].type)


def read_with_pillow(item, config):
    """One image and its mask as a data set in a PyTorch tutorial reads them: open, resize bicubically, convert to float32."""
    size = config.data.image_size and (config.data.image_size.width, config.data.image_size.height)
    with Image.open(item.image) as image, Image.open(item.mask) as mask:
        image.seek(item.page or 0), mask.seek(item.page or 0)
        image, mask = image.convert("RGB" if config.network.channels == 3 else "L"), mask.copy()
        if size:
            image, mask = image.resize(size, Image.Resampling.BICUBIC), mask.resize(size, Image.Resampling.NEAREST)
        return np.asarray(image, np.float32) / 255, np.asarray(mask, np.float32)


def time_pillow(items, config):
    """Seconds for all `items`, in one thread per core."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(CORES) as pool:
        collections.deque(pool.map(lambda item: read_with_pillow(item, config), items), maxlen=0)
    return time.perf_counter() - begin


def time_first_epoch(config):
    """Seconds from the files on disk until an epoch of batches to train on, and all to validate, were there."""
    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):  # it was said once
            config, training, validation = load_examples(config.replace(cache=Path(cache), epochs=1, augment="none"))
        both = itertools.chain(training_batches(config, training), validation_batches(config, validation))
        collections.deque(both, maxlen=0)
        return time.perf_counter() - begin


def endless(config, training, kind):
    """Batches without end, augmented by `kind`; the first ones are gone, which were waiting while the threads started."""
    batches = iter(training_batches(config.replace(augment=kind, epochs=10**6), training))
    for _ in range(8):
        next(batches)
    return batches


def time_later_epochs(config, training, kind):
    """Images per second of the batches alone, for about a second."""
    batches, begin, steps = endless(config, training, kind), time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < 1:
        next(batches)
        steps += 1
    return config.training.batch_size * steps / passed


def draw_batches(config, training, seconds):
    """Images per second of one thread that draws batches for so many `seconds`, without TensorFlow."""
    begin, n = time.perf_counter(), 0
    while (passed := time.perf_counter() - begin) < seconds:
        numbers = [(n + k) % len(training.names) for k in range(config.training.batch_size)]
        as_floats(config, [augmented(config, training, n, i) for i in numbers])
        n += config.training.batch_size
    return n / passed


def in_processes(task):
    """The sum of what `draw_batches(*task)` returns in a process on each core, all at once."""
    context, ends = multiprocessing.get_context("fork"), []  # a fork sees the images
    for _ in range(CORES):
        ours, theirs = context.Pipe(duplex=False)
        context.Process(target=lambda end: end.send(draw_batches(*task)), args=[theirs]).start()
        theirs.close()  # so that receiving raises EOFError where a process died
        ends.append(ours)
    try:
        return sum(end.recv() for end in ends)
    except EOFError:
        raise UserError("a process that draws batches has ended: too little memory?") from None


def time_draws(config, training, kind, seconds=1):
    """(images per second of one thread, of a thread on each core, of a process on each core).

    What threads lack to processes is the time for which one of them holds Python's lock, and the others wait for it.
    """
    task = config.replace(augment=kind), training, seconds
    with ThreadPoolExecutor(CORES) as pool:
        threads = sum(pool.map(lambda _: draw_batches(*task), range(CORES)))
    return draw_batches(*task), threads, in_processes(task)


def time_consumer(config, training, kind, rate, seconds=2):
    """Share of the time for which a consumer waits that takes `rate` images per second: what a GPU would see.

    It asks for the next batch when the one before is used up, and is late for good when it had to wait.
    """
    batches, begin, waited = endless(config, training, kind), time.perf_counter(), 0.0
    while (asked := time.perf_counter()) - begin < seconds:
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(config.training.batch_size / rate)
    return waited / (time.perf_counter() - begin)


def time_training(step, batches, batch_size):
    """(images per second, share of the time that waits for data) of a train step, for about a second."""
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
    """Measures, prints four tables, writes JSON to `path`.

    Raises: UserError for data that does not lie on disk as images.
    """
    if config.data.dataset in ("synthetic", "nyuv2", "dsb2018"):
        raise UserError("bench --data reads pairs of image files: add --dataset carvana --data-dir DIR, or another layout")
    config, training, validation = load_examples(config)
    layout = find_layout(config)
    if odd := next((item.image for item in layout.items if item.image.suffix == ".npy"), None):
        raise UserError(f"bench --data compares with Pillow, which does not read {odd}: take a data set of image files")
    kept = {*training.names, *validation.names}  # --skip-bad leaves some out
    items = [layout.items[i] for part in split(layout.items, config).values() for i in part if layout.items[i].name in kept]
    print(f"{device_name()}, {CORES} threads, batch {config.training.batch_size}, {len(items)} images", flush=True)
    time_pillow(items, config)  # the files are in memory from here on, for both
    work = {"pillow": lambda: time_pillow(items, config), "first epoch": lambda: time_first_epoch(config)}
    seconds = columns.in_turns(list(work), rounds, "reading", lambda label: work[label]())
    rates = {label: [len(items) / s for s in values] for label, values in seconds.items()}

    def in_turns(title, measure):
        return columns.in_turns(AUGMENTATIONS, rounds, title, lambda kind: measure(config, training, kind))

    later = in_turns("later epochs", time_later_epochs)
    rates |= {f"later epochs, augment {kind}": values for kind, values in later.items()}
    base = statistics.median(rates["pillow"])
    print(f"\n{'the pipeline alone':<32}{'images/s':>10}{'to Pillow':>11}")
    for label, values in rates.items():
        label = "Pillow, bicubic, in threads" if label == "pillow" else label
        print(f"{label:<32}{statistics.median(values):>10.1f}{statistics.median(values) / base:>11.2f}")
    draws = in_turns("drawing", time_draws)
    print(f"\n{'drawing batches, images/s':<32}{'1 thread':>10}{f'{CORES} threads':>15}{f'{CORES} processes':>18}")
    for kind, found in draws.items():
        one, threads, processes = (statistics.median(values) for values in zip(*found))
        threads, processes = (f"{rate:.0f} ({rate / one:.2f})" for rate in (threads, processes))
        print(f"{f'augment {kind}':<32}{one:>10.0f}{threads:>15}{processes:>18}")
    waits = {(kind, rate): time_consumer(config, training, kind, rate) for kind in AUGMENTATIONS for rate in CONSUMED}
    print(f"\n{'a consumer waits, of its time':<32}" + "".join(f"{f'{rate} images/s':>17}" for rate in CONSUMED))
    for kind in AUGMENTATIONS:
        print(f"{f'augment {kind}':<32}" + "".join(f"{100 * waits[kind, rate]:>15.1f} %" for rate in CONSUMED))
    lanes = {}  # one process holds all: what is compared is the same step with other batches, and not one column with another
    for name in columns.IMPLEMENTATIONS:
        step = columns.Built(name, config).train_step
        lanes |= {(name, kind): (step, endless(config, training, kind), config.training.batch_size) for kind in AUGMENTATIONS}
        step(*next(lanes[name, "none"][1]))  # traced
    trained = columns.in_turns(list(lanes), rounds, "training", lambda lane: time_training(*lanes[lane]))
    print(f"\n{'training through it':<32}{'images/s':>10}{'to none':>11}{'waiting':>10}")
    for (name, kind), found in trained.items():
        speed, waiting = (statistics.median(values) for values in zip(*found))
        none = statistics.median(rate for rate, _ in trained[name, "none"])
        print(f"{f'{name}, augment {kind}':<32}{speed:>10.1f}{speed / none:>11.2f}{100 * waiting:>8.1f} %")
    record = {
        "device": device_name(),
        "config": config.as_dict(),
        "images": len(items),
        "images_per_second": rates,
        "draws_1_threads_processes": {f"augment {kind}": found for kind, found in draws.items()},
        "consumer_waits": {f"augment {kind}, {rate} images/s": share for (kind, rate), share in waits.items()},
        "training": {
            f"{name}, augment {kind}": [dict(images_per_second=rate, waiting=waiting) for rate, waiting in found]
            for (name, kind), found in trained.items()
        },
        "steps_per_epoch": steps_per_epoch(config, training),
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
    print(f"\nmedians of {rounds} rounds in turns; written to {path}")
