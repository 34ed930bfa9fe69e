"""The process that holds one cell and times it on request, so that no other shares its memory or cache."""

import contextlib
import functools
import io
import re
import resource
import time
from pathlib import Path

from common.config import UserError
from common.device import tf
from comparison import columns
from comparison.benchmark.cells import LIMIT, MODES, STOCK
from comparison.benchmark.roofline import BYTES
from data.loader import load_examples, training_batches

import numpy as np


def draw_batch(config, batch_size, image_size):
    """One batch: images [N, H, W, C], masks [N, H, W, 1], numpy arrays. Of fewer images some come more than once."""
    if config.data.dataset == "synthetic" and not config.data.crop_size:
        config = config.replace(image_size=image_size)
    with contextlib.redirect_stdout(io.StringIO()):  # what the images are was said once
        config, training, _ = load_examples(config)
    images, masks = (tensor.numpy() for tensor in next(iter(training_batches(config, training))))
    numbers = np.arange(batch_size) % len(images)
    return images[numbers], masks[numbers]


def work(cell, config, images, masks, started, connection):
    """Receives (mode, number of steps), answers with the seconds of one step; receives None, answers with the peak memory in
    bytes and ends. Says hello with the seconds until the first step of each mode was done.

    started: the time at which the process was asked for.
    """
    if cell.implementation != LIMIT:
        columns.load(cell.column)
    imported = time.time() - started
    tf.config.experimental.enable_tensor_float_32_execution(cell.precision == "tf32")
    try:
        steps, first = prepare(cell, config, images, masks)
        for mode in steps:  # warm-up: caches, memory pools, the choice of algorithms
            first[f"warm {mode}"] = seconds(steps[mode], 2)
    except tf.errors.ResourceExhaustedError:
        raise UserError(f"{cell.title} does not fit into memory") from None
    connection.send({"import": imported, **first})
    while request := connection.recv():
        mode, count = request
        connection.send(seconds(steps[mode], count))
    gpus = tf.config.list_physical_devices("GPU")
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else 0
    connection.send(peak or peak_memory())


def prepare(cell, config, images, masks):
    """-> (mode -> function without arguments that starts a step, {what was done first: seconds})."""
    if cell.implementation == LIMIT:
        steps = peak_steps(cell.precision)
        return steps, {what: seconds(step, 1) for what, step in steps.items()}
    config = cell.config(config)
    images, masks = tf.constant(images), tf.constant(masks)  # on the device before the clock starts
    first, steps = {}, {}
    no_more = config.network.batch_norm == "none" or cell.implementation == STOCK  # folded, they are what the others are
    for mode in ("train", "infer") if no_more else MODES:
        begin = time.perf_counter()
        built = columns.Built(cell.column, config)
        if mode == "folded":
            built = built.folded()
        function, arguments = (built.train_step, (images, masks)) if mode == "train" else (built.forward, (images,))
        at_hand = time.perf_counter()
        function.get_concrete_function(*arguments)
        first[f"build {mode}"], first[f"trace {mode}"] = at_hand - begin, time.perf_counter() - at_hand
        steps[mode] = functools.partial(function, *arguments)
        first[f"compile {mode}"] = seconds(steps[mode], 1)  # the graph optimizer, or XLA; and the first step itself
    return steps, first


def seconds(step, count):
    """Of one step, on average over `count` with one synchronization: a GPU's calls return before the work is done."""
    tf.test.experimental.sync_devices()
    begin = time.perf_counter()
    for _ in range(count):
        result = step()
    tf.test.experimental.sync_devices()
    del result
    return (time.perf_counter() - begin) / count


def peak_memory():
    """Of this process, in bytes."""
    try:  # Linux; its getrusage would count the parent's memory, from before this process had its own program
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


# --- what the device is best at: the steps whose speeds are the two roofs of `roofline` ---


def peak_steps(precision):
    """Functions without arguments: {"convolution": step, "copy": step}.

    The convolution is 3x3 from 256 to 256 channels, which every library is made for; the copy changes the sign of 64 MiB.
    """
    dtype, side = "float32" if precision == "tf32" else precision, peak_side()
    rng = np.random.default_rng(0)
    images = tf.cast(tf.constant(rng.random((8, side, side, 256), np.float32)), dtype)
    kernel = tf.cast(tf.constant(rng.random((3, 3, 256, 256), np.float32)), dtype)
    numbers = tf.zeros([2**26 // BYTES[precision]], dtype)
    convolve = tf.function(lambda: tf.nn.conv2d(images, kernel, strides=1, padding="SAME"))
    return {"convolution": convolve, "copy": tf.function(lambda: -numbers)}


def peak_side():
    """Height and width of the images in `peak_steps`: a step takes some 10 ms."""
    return 128 if tf.config.list_physical_devices("GPU") else 32


def peak_work():
    """Operations and bytes of the steps in `peak_steps`."""
    return {"convolution": 2 * 8 * peak_side() ** 2 * 9 * 256**2, "copy": 2 * 2**26}
