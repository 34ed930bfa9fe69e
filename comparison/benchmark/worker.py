"""A process that holds cells and times them on request: on a CPU one cell, so that no other shares its memory or cache."""

import contextlib
import functools
import gc
import io
import re
import resource
import time
from pathlib import Path

from common.config import UserError
from common.device import tf
from comparison import columns
from comparison.benchmark.cells import LIMIT, STOCK, doubled
from comparison.benchmark.roofline import BYTES
from data.loader import load_examples, training_batches

import numpy as np


def draw_batch(config):
    """One batch: images [N, H, W, C], masks [N, H, W, 1], numpy arrays."""
    with contextlib.redirect_stdout(io.StringIO()):  # what the images are was said once
        config, training, _ = load_examples(config)
    return tuple(tensor.numpy() for tensor in next(iter(training_batches(config, training))))


def read_batch(path, size):
    """`size` images and masks on the device, of those in `path`: some come more than once."""
    with np.load(path) as found:
        return [tf.constant(np.resize(found[name], (size, *found[name].shape[1:]))) for name in ("images", "masks")]


def arithmetic_of(cell):
    tf.config.experimental.enable_tensor_float_32_execution(cell.precision == "tf32")


def work(column, started, connection):
    """Receives the name of a method of `Bench` and its arguments, sends the result, until it receives None.

    column: what it measures. started: the time at which the process was asked for.
    """
    if column != LIMIT:
        columns.load(column)
    bench = Bench(time.time() - started)
    while request := connection.recv():
        name, *arguments = request
        try:
            answer = getattr(bench, name)(*arguments)
        except tf.errors.ResourceExhaustedError:
            answer = UserError("it does not fit into memory")
        connection.send(answer)


class Bench:
    """The cells that a process holds. imported: seconds that it took to start."""

    def __init__(self, imported):
        self.imported, self.steps = imported, {}

    def prepare(self, cell, config, path, modes):
        """{what was done first: seconds}, in those of `modes` that the cell has.

        With a warm-up: caches, memory pools, the choice of algorithms.
        """
        arithmetic_of(cell)
        if tf.config.list_physical_devices("GPU"):
            tf.config.experimental.reset_memory_stats("GPU:0")
        self.steps[cell], first = prepare(cell, config, path, modes)
        first |= {f"warm {mode}": seconds(step, 2) for mode, step in self.steps[cell].items()}
        return {"import": self.imported, **first}

    def time(self, cell, mode, count):
        """Seconds of a step."""
        arithmetic_of(cell)
        return seconds(self.steps[cell][mode], count)

    def batches(self, cell, config, path):
        """`cells.doubled` of the cell in training; one graph takes batches of any size."""
        arithmetic_of(cell)
        step = columns.Built(cell.column, cell.config(config)).train_step
        any_size = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in read_batch(path, 1)]
        step = step.get_concrete_function(*any_size)

        def rate(size):
            with contextlib.suppress(tf.errors.ResourceExhaustedError):
                run = functools.partial(step, *read_batch(path, size))
                count = max(2, round(0.1 / seconds(run, 2)))
                return size / seconds(run, count)

        return doubled(rate)

    def end(self, cell):
        """Bytes of the peak memory; the cell is gone."""
        del self.steps[cell]
        gc.collect()
        gpus = tf.config.list_physical_devices("GPU")
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else 0
        return peak or peak_memory()


def prepare(cell, config, path, modes):
    """-> (mode -> function without arguments that starts a step, {what was done first: seconds})."""
    if cell.implementation == LIMIT:
        steps = peak_steps(cell.precision)
        return steps, {what: seconds(step, 1) for what, step in steps.items()}
    config = cell.config(config)
    images, masks = read_batch(path, config.training.batch_size)  # on the device before the clock starts
    first, steps = {}, {}
    no_more = config.network.batch_norm == "none" or cell.implementation == STOCK  # folded, they are what the others are
    for mode in [mode for mode in modes if mode != "folded" or not no_more]:
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
