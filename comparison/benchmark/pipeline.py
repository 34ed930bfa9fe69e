"""How fast do images reach the network, and does it ever wait for them?"""

import collections
import contextlib
import io
import itertools
import json
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
from data.loader import load_examples, steps_per_epoch, training_batches, validation_batches
from data.splits import split

import numpy as np
from PIL import Image

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
    """Measures, prints two tables, writes JSON to `path`.

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

    size, images, masks = config.training.batch_size, *next(endless(config, training, "none"))

    def alone(kind):
        return time_training(lambda *_: None, endless(config, training, kind), size)[0]

    later = columns.in_turns(AUGMENTATIONS, rounds, "later epochs", alone)
    rates |= {f"later epochs, augment {kind}": values for kind, values in later.items()}
    base = statistics.median(rates["pillow"])
    print(f"\n{'the pipeline alone':<32}{'images/s':>10}{'to Pillow':>11}")
    for label, values in rates.items():
        label = "Pillow, bicubic, in threads" if label == "pillow" else label
        print(f"{label:<32}{statistics.median(values):>10.1f}{statistics.median(values) / base:>11.2f}")
    lanes, batch = {}, [tf.constant(x.numpy()) for x in (images, masks)]  # on the device
    for name in columns.IMPLEMENTATIONS:  # one process holds all: compared is the same step with other batches
        step = columns.Built(name, config).train_step
        step(*batch)  # traced
        lanes[name, "no input"] = step, itertools.repeat(batch), size
        lanes |= {(name, f"augment {kind}"): (step, endless(config, training, kind), size) for kind in AUGMENTATIONS}
    trained = columns.in_turns(list(lanes), rounds, "training", lambda lane: time_training(*lanes[lane]))
    speeds = {lane: statistics.median(rate for rate, _ in found) for lane, found in trained.items()}
    print(f"\n{'training through it':<32}{'images/s':>10}{'waiting':>10}{'the step alone':>16}{'the pipeline alone':>20}")
    for (name, what), found in trained.items():
        if what != "no input":
            waiting, step = statistics.median(share for _, share in found), speeds[name, "no input"]
            fed = statistics.median(rates[f"later epochs, {what}"])
            print(f"{f'{name}, {what}':<32}{speeds[name, what]:>10.1f}{100 * waiting:>8.1f} %{step:>16.1f}{fed:>20.1f}")
    fastest = max(speeds[name, "no input"] for name in columns.IMPLEMENTATIONS)
    for kind in AUGMENTATIONS:
        fed = statistics.median(later[kind]) / fastest
        print(
            f"augment {kind}: the input feeds the fastest step {fed:.1f} times over" + ", so that the device waits" * (fed < 1)
        )
    record = {
        "device": device_name(),
        "config": config.as_dict(),
        "images": len(items),
        "images_per_second": rates,
        "training": {
            f"{name}, {what}": [dict(images_per_second=rate, waiting=waiting) for rate, waiting in found]
            for (name, what), found in trained.items()
        },
        "steps_per_epoch": steps_per_epoch(config, training),
    }
    write_text(path, json.dumps(record, indent=2) + "\n")
    print(f"\nmedians of {rounds} rounds in turns; written to {path}")
