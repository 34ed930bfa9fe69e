"""A process that holds a cell and times it on request; another one follows when that is measured."""

import contextlib
import functools
import gc
import resource
import time
from pathlib import Path

from common import found_in
from common.config import UserError
from common.device import on_gpu, tf
from comparison import columns
from comparison.benchmark.cells import LIMIT, doubled
from comparison.benchmark.roofline import BYTES
from data.loader import load_examples, training_batches

import numpy as np


def load_batch(config):
    """-> (config as the data fills it in, images [N, H, W, C], masks [N, H, W, 1]): one batch of training, numpy arrays."""
    config, training, _ = load_examples(config)
    return config, *(tensor.numpy() for tensor in next(iter(training_batches(config, training))))


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
    """The cell that a process holds. imported: seconds that it took to start."""

    def __init__(self, imported):
        self.imported, self.steps = imported, {}

    def prepare(self, cell, arrays, modes):
        """(`imported`, {each of `modes` that the cell has: {what was done first: seconds}}); arrays: images and masks.

        "warm" is the time of a step after it: caches, memory pools, the choice of algorithms.
        """
        forget_peak()
        self.steps, first = prepare(cell, arrays, modes)
        for mode, step in self.steps.items():
            first[mode]["warm"] = seconds(step, 2)
        return self.imported, first

    def time(self, mode, count):
        """Seconds of a step."""
        return seconds(self.steps[mode], count)

    def batches(self, cell, arrays):
        """`cells.doubled` of the cell in training; one graph takes batches of any size."""
        set_arithmetic(cell)
        any_size = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in arrays]
        step = columns.Built(cell.column, cell.config).train_step.get_concrete_function(*any_size)

        def rate(size):
            with contextlib.suppress(tf.errors.ResourceExhaustedError):
                run = functools.partial(step, *on_device(arrays, size))
                count = max(2, round(0.1 / seconds(run, 2)))
                return size / seconds(run, count)

        return doubled(rate)

    def end(self):
        """Bytes of the peak memory; the cell is gone."""
        peak, self.steps = peak_memory(), {}
        gc.collect()
        return peak


def set_arithmetic(cell):
    tf.config.experimental.enable_tensor_float_32_execution(cell.precision == "tf32")


def on_device(arrays, size):
    """`size` images and masks, of those in `arrays`: some come more than once."""
    return [tf.constant(np.resize(x, (size, *x.shape[1:]))) for x in arrays]


def prepare(cell, arrays, modes):
    """-> (mode -> function without arguments that starts a step, mode -> {"build", "trace", "compile": seconds})."""
    set_arithmetic(cell)
    if cell.implementation == LIMIT:
        return peak_steps(cell.precision), {step: {} for step in peak_work()}
    config, clock = cell.config, time.perf_counter
    images, masks = on_device(arrays, cell.batch_size)  # before the clock starts
    first, steps = {}, {}
    # folded, the stock one is what the others are; one of the reader's own may know no network without normalization
    no_more = config.network.batch_norm == "none" or cell.implementation not in columns.IMPLEMENTATIONS
    for mode in [mode for mode in modes if mode != "folded" or not no_more]:
        begin = clock()
        built = columns.Built(cell.column, config)
        if mode == "train" and not built.trains:
            continue
        if mode == "folded":
            built = built.folded()
        function, arguments = (built.train_step, (images, masks)) if mode == "train" else (built.forward, (images,))
        at_hand = clock()
        function.get_concrete_function(*arguments)
        first[mode] = {"build": at_hand - begin, "trace": clock() - at_hand}
        steps[mode] = functools.partial(function, *arguments)
        first[mode]["compile"] = seconds(steps[mode], 1)  # the graph optimizer, or XLA; and the first step itself
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


def forget_peak():
    """`peak_memory` begins anew."""
    if on_gpu():
        tf.config.experimental.reset_memory_stats("GPU:0")
    with contextlib.suppress(OSError):  # Linux, proc(5)
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory():
    """On the device if that is a GPU, else of this process, in bytes."""
    if on_gpu():
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    # Linux's getrusage would count the parent's memory, from before this process had its own program
    known = found_in("/proc/self/status", r"VmHWM:\s*(\d+) kB")
    return 1024 * int(known) if known else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


# --- what the device is best at: the steps whose speeds are the two roofs of `roofline` ---


def peak_steps(precision):
    """Functions without arguments: {"convolution": step, "copy": step}.

    The convolution is 3x3 from 256 to 256 channels, which every library is made for; the copy adds 64 MiB to 64 MiB in place:
    in new memory the system's page faults would be timed, which take several times as long.
    """
    dtype, side = precision.replace("tf32", "float32"), peak_side()
    rng = np.random.default_rng(0)
    images = tf.cast(tf.constant(rng.random((8, side, side, 256), np.float32)), dtype)
    kernel = tf.cast(tf.constant(rng.random((3, 3, 256, 256), np.float32)), dtype)
    numbers = tf.zeros([2**26 // BYTES[precision]], dtype)
    target = tf.Variable(numbers)

    @tf.function
    def add():
        target.assign_add(numbers, read_value=False)

    convolve = tf.function(lambda: tf.nn.conv2d(images, kernel, strides=1, padding="SAME"))
    steps = {"convolution": convolve, "copy": add}
    for step in steps.values():
        step()  # traced
    return steps


def peak_side():
    """Height and width of the images in `peak_steps`: a step takes a few hundredths of a second on a CPU."""
    return 128 if on_gpu() else 32


def peak_work():
    """Operations and bytes of the steps in `peak_steps`."""
    return {"convolution": 2 * 8 * peak_side() ** 2 * 9 * 256**2, "copy": 3 * 2**26}
