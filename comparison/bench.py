"""What does each level of TensorFlow cost? Images per second in training and in inference, measured side by side."""

import json
import multiprocessing
import re
import resource
import signal
import statistics
import time
from pathlib import Path

import comparison
from common.config import UserError
from common.loop import device_name
from common.pictures import save_figure
from data.loader import load_examples, training_batches

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from tqdm import tqdm


def work(implementation, config, images, masks, connection):
    """A process that holds one implementation and times it on request, so that no other shares its memory or cache.

    Receives ("train" | "infer", number of steps), answers with the seconds of one step; receives None, answers with
    the peak memory in bytes and ends. Says hello with the seconds until the first step of either kind was done.
    """
    code = comparison.load(implementation)
    started = time.perf_counter()
    model = code.UNet(config)
    train_step = code.make_train_step(model, config)
    forward = tf.function(lambda images: model(images, training=False), jit_compile=config.jit)
    images, masks = tf.constant(images), tf.constant(masks)  # on the device before the clock starts
    steps = {"train": lambda: train_step(images, masks), "infer": lambda: forward(images)}

    def seconds(mode, count):
        tf.test.experimental.sync_devices()  # a GPU's calls return before the work is done
        begin = time.perf_counter()
        for _ in range(count):
            steps[mode]()
        tf.test.experimental.sync_devices()
        return (time.perf_counter() - begin) / count

    first = {mode: seconds(mode, 1) for mode in steps}
    first["build"] = time.perf_counter() - started - sum(first.values())
    for mode in steps:
        seconds(mode, 2)  # warm-up: caches, memory pools, the choice of algorithms
    connection.send(first)
    while request := connection.recv():
        connection.send(seconds(*request))
    gpus = tf.config.list_physical_devices("GPU")
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else 0
    connection.send(peak or peak_memory())


def peak_memory():
    """Of this process, in bytes."""
    try:  # Linux; its getrusage would count the parent's memory, from before this process had its own program
        return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def measure(config, rounds, steps):
    """Times the three implementations in turn, one at a time, `rounds` times: a list of records.

    The processes are all up before the first round and take turns, so that whatever else slows the machine down slows
    down all three.
    """
    config, training, _ = load_examples(config)
    images, masks = (tensor.numpy() for tensor in next(iter(training_batches(config, training))))
    context = multiprocessing.get_context("spawn")  # a fork would inherit TensorFlow's threads half alive
    connections, processes, first = {}, [], {}
    progress = tqdm(total=3 + rounds, desc="bench: tracing", leave=False, disable=None)
    for name in comparison.IMPLEMENTATIONS:
        connections[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(name, config, images, masks, theirs), daemon=True))
        stop = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process to answer
        processes[-1].start()
        signal.signal(signal.SIGINT, stop)
        theirs.close()  # so that recv() ends when the process does
        try:
            first[name] = connections[name].recv()
        except EOFError:
            raise UserError(f"the process of {name} ended; its last words are above") from None
        progress.update()
    seconds = {(name, mode): [] for mode in ("train", "infer") for name in comparison.IMPLEMENTATIONS}
    progress.set_description("bench")
    for k in range(rounds):
        for name, mode in list(seconds)[k % 6 :] + list(seconds)[: k % 6]:  # nobody always comes first
            connections[name].send((mode, steps[mode]))
            seconds[name, mode].append(connections[name].recv())
        progress.update()
    progress.close()
    peak = {}
    for name, connection in connections.items():
        connection.send(None)
        peak[name] = connection.recv()
    for process in processes:
        process.join()
    return [
        {
            "implementation": name,
            "mode": mode,
            "images_per_second": len(images) / statistics.median(times),
            "images_per_second_quartiles": [len(images) / q for q in np.percentile(times, [75, 25])],
            "images_per_second_best": len(images) / min(times),
            "step_seconds": times,
            "first_step_seconds": first[name][mode],  # tracing and, with --jit, compiling
            "build_seconds": first[name]["build"],
            "peak_memory_bytes": peak[name],
        }
        for (name, mode), times in seconds.items()
    ]


def print_table(records):
    print(f"\n{'':<12}{'':<7}{'images/s':>10}{'quartiles':>18}{'relative':>10}{'step':>10}{'first step':>12}", end="")
    print(f"{'peak of process':>17}")
    for record in records:
        reference = next(r for r in records if r["mode"] == record["mode"])
        low, high = record["images_per_second_quartiles"]
        print(
            f"{record['implementation']:<12}{record['mode']:<7}{record['images_per_second']:>10.1f}"
            f"{f'{low:.1f} to {high:.1f}':>18}{record['images_per_second'] / reference['images_per_second']:>10.2f}"
            f"{1000 * statistics.median(record['step_seconds']):>7.0f} ms{record['first_step_seconds']:>10.1f} s"
            f"{record['peak_memory_bytes'] / 2**20:>13.0f} MiB"
        )


def draw(records, title, path):
    """A bar for every implementation and mode: the median, with the quartiles as whiskers."""
    figure = Figure(figsize=(9, 3.4))
    for axes, mode in zip(figure.subplots(1, 2), ("train", "infer")):
        rows = [record for record in records if record["mode"] == mode]
        medians = np.array([row["images_per_second"] for row in rows])
        quartiles = np.array([row["images_per_second_quartiles"] for row in rows]).T
        names = [row["implementation"] for row in rows]
        bars = axes.bar(names, medians, yerr=np.abs(quartiles - medians), color=["C0", "C1", "C2"], capsize=4)
        axes.bar_label(bars, fmt="%.0f", label_type="center", color="white")
        axes.set(title={"train": "training", "infer": "inference"}[mode], ylabel="images per second")
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    save_figure(figure, path)


def run(config, rounds, steps, path):
    """Measures, prints the table, writes JSON to `path` and a bar chart beside it."""
    what = (
        f"{device_name()}, TensorFlow {tf.__version__}, filters {config.filters}, depth {config.depth}, "
        f"batch {config.batch_size}, {config.precision}, batch_norm {config.batch_norm}, XLA {'on' if config.jit else 'off'}"
    )
    print(what, flush=True)
    records = measure(config, rounds, steps)
    print_table(records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"what": what, "rounds": rounds, "steps": steps, "records": records}, indent=2) + "\n")
    draw(records, what, path.with_suffix(".png"))
    print(f"\nmedian of {rounds} interleaved rounds; written to {path} and {path.with_suffix('.png')}")
