"""What does each level of TensorFlow cost? Images per second in training and in inference, measured side by side."""

import collections
import contextlib
import io
import json
import os
import platform
import re
import resource
import signal
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import comparison
from common import shapes
from common.config import Size, UserError
from common.device import device_name, tf
from common.pictures import save_figure
from common.weights import assign_weights, fold_batch_norm, initial_weights
from comparison import roofline
from comparison.peaks import peak_steps, peak_work
from data.loader import load_examples, training_batches

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

MODES = {"train": "training", "infer": "inference", "folded": "inference, batch norm folded"}
TURN_SECONDS = 0.4  # a turn lasts about that long, and two steps at least; the clock is read before and after it
LIMITS = {"convolution": "a large convolution", "copy": "a copy"}
LIMIT = "limit"  # stands for an implementation: what the device can do at best
ROUNDS = {"quick": 5, "default": 7, "full": 9}
VARIABLES = ("TF_", "XLA_", "OMP_", "ONEDNN_", "DNNL_", "CUDA_", "NVIDIA_")  # of the environment, that change figures
SETTING = ("precision", "jit", "batch_size", "image_size")  # of a `Cell` and of a record
PROCESS_BYTES = 800 * 2**20  # of a process with TensorFlow in it, before the first image


class Cell(NamedTuple):
    """What one process measures: an implementation, or `LIMIT`, in one setting."""

    precision: str  # as in `Config`, or "tf32"
    jit: bool
    batch_size: int
    image_size: Size
    implementation: str

    def config(self, config):
        precision = "float32" if self.precision == "tf32" else self.precision
        changes = dict(precision=precision, jit=self.jit, batch_size=self.batch_size)
        return config.replace(**changes)

    @property
    def setting(self):
        return f"{self.precision}{', XLA' if self.jit else ''}, batch {self.batch_size}, {self.image_size} pixels"


def has_tf32():
    """Whether there is a GPU with TensorFloat-32: Ampere or newer."""
    gpus = tf.config.list_physical_devices("GPU")
    return any(tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0) for gpu in gpus)


def arithmetic(config):
    """The precision in which the train scripts compute: TensorFlow takes TF32 for float32 where there is some.

    Not with --deterministic: `be_deterministic` switches it off.
    """
    return (
        "tf32"
        if config.network.precision == "float32" and not config.training.deterministic and has_tf32()
        else config.network.precision
    )


def find_cells(config, given, matrix, image_size):
    """The cells of a `matrix`: "quick", "default" or "full".

    given: names of the options that the user has set. An axis of the matrix that is among them has that value alone.
    image_size: of the images that are there; only drawn ones can have another.
    """
    axes = {
        "precision": ["float32", *(["tf32"] if has_tf32() else []), "bfloat16"],
        "jit": [False] if matrix == "quick" else [False, True],
        "batch_size": sorted({1, config.training.batch_size, 4 * config.training.batch_size})
        if matrix == "full"
        else [config.training.batch_size],
        "image_size": [image_size],
    }
    if matrix == "full" and config.data.dataset == "synthetic" and not config.data.crop_size:
        axes["image_size"].append(Size(2 * image_size.height, 2 * image_size.width))
    for name in given & {"precision", "jit", "batch_size", "image_size"}:
        axes[name] = [image_size if name == "image_size" else getattr(config, name)]
    cells = [Cell(precision, False, config.training.batch_size, image_size, LIMIT) for precision in axes["precision"]]
    for image_size in axes["image_size"]:
        for batch_size in axes["batch_size"]:
            for precision in axes["precision"]:
                for jit in axes["jit"]:
                    setting = precision, jit, batch_size, image_size
                    cells += [Cell(*setting, implementation) for implementation in comparison.IMPLEMENTATIONS]
    return cells


def expected_bytes(cell, config):
    """A generous estimate of the memory that the cell needs: a number must not take the machine down."""
    if cell.implementation == LIMIT:
        return PROCESS_BYTES
    height, width = (side + shapes.margin(config.network.depth, config.network.padding) for side in cell.image_size)
    found = roofline.convolutions(config.network, height, width)
    # every number between two operations is kept for the gradient: of a convolution, a normalization and an activation
    numbers = 3 * cell.batch_size * sum(c.inputs + c.outputs for c in found) * roofline.BYTES[cell.precision]
    # in float32 or wider: weights, two moments and gradients, and what becomes of them in an update; the folded copy
    weights = 10 * sum(c.kernel for c in found) * max(4, roofline.BYTES[cell.precision])
    return PROCESS_BYTES + numbers * (2 if cell.jit else 1) + weights


def available_bytes():
    """Memory that new processes may take, or infinity where nobody says."""
    try:  # Linux
        return 1024 * int(re.search(r"MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text())[1])
    except (OSError, TypeError):
        return np.inf


# --- a process that measures one cell ---


def work(cell, config, images, masks, started, connection):
    """Holds one cell and times it on request, so that no other shares its memory or cache.

    Receives (mode, number of steps), answers with the seconds of one step; receives None, answers with the peak memory in
    bytes and ends. Says hello with the seconds until the first step of each mode was done; or with why that cannot be.

    started: the time at which the process was asked for.
    """
    if cell.implementation != LIMIT:
        comparison.load(cell.implementation)
    imported = time.time() - started
    tf.config.experimental.enable_tensor_float_32_execution(cell.precision == "tf32")
    try:
        steps, first = prepare(cell, config, images, masks)
        for mode in steps:  # warm-up: caches, memory pools, the choice of algorithms
            first[f"warm {mode}"] = seconds(steps[mode], 2)
    except tf.errors.ResourceExhaustedError:
        connection.send("does not fit into memory")
        return
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
    code = comparison.load(cell.implementation)
    images, masks = tf.constant(images), tf.constant(masks)  # on the device before the clock starts
    first, steps = {}, {}
    for mode in MODES if config.network.batch_norm != "none" else ("train", "infer"):
        begin = time.perf_counter()
        network, weights = config.network, initial_weights(config.network)
        if mode == "folded":
            network, weights = fold_batch_norm(config.network, weights)
        model = code.UNet(network)
        assign_weights(code.named_weights(model), weights)
        function = code.make_train_step(model, config) if mode == "train" else forward(model, config)
        arguments = (images, masks) if mode == "train" else (images,)
        built = time.perf_counter()
        function.get_concrete_function(*arguments)
        first[f"build {mode}"], first[f"trace {mode}"] = built - begin, time.perf_counter() - built
        steps[mode] = lambda function=function, arguments=arguments: function(*arguments)
        first[f"compile {mode}"] = seconds(steps[mode], 1)  # the graph optimizer, or XLA; and the first step itself
    return steps, first


def forward(model, config):
    @tf.function(jit_compile=config.training.jit)
    def step(images):
        return model(images, training=False)

    return step


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


# --- the matrix ---


class Processes:
    """The processes of some cells, all up and waiting, so that they can take turns.

    `failed`: cell -> why it could not be measured.
    """

    def __init__(self):
        self.connections, self.processes, self.first, self.failed = {}, {}, {}, {}

    def start(self, cell, config, images, masks):
        arguments = cell, config, images, masks, time.time()
        self.processes[cell], self.connections[cell] = comparison.start_process(work, *arguments)
        hello = self._answer(cell)
        if isinstance(hello, dict):
            self.first[cell] = hello
        elif cell not in self.failed:
            self._fail(cell, hello)

    def _fail(self, cell, why):
        self.failed[cell] = why
        self.connections.pop(cell).close()
        self.processes.pop(cell).join()

    def _answer(self, cell, *request):
        """To `request`, or what the process says first; None if it has ended."""
        try:
            connection = self.connections[cell]
            return comparison.ask(connection, *request) if request else connection.recv()
        except (EOFError, ConnectionResetError):
            process = self.processes[cell]
            process.join()
            killed = process.exitcode == -signal.SIGKILL
            self._fail(cell, "was killed: too little memory?" if killed else "ended; its last words are above")

    def seconds(self, cell, mode):
        """Of one step, or None if the process has ended."""
        return self._answer(cell, (mode, max(2, round(TURN_SECONDS / self.first[cell][f"warm {mode}"]))))

    def stop(self):
        """-> cell -> peak memory in bytes."""
        peaks = {}
        for cell in list(self.connections):
            peaks[cell] = self._answer(cell, None)
        for process in self.processes.values():
            process.join()
        return peaks


def groups(cells, config, memory):
    """Lists of cells whose processes can be up at a time; with them those that alone are too much for `memory` bytes."""
    settings = collections.defaultdict(list)
    for cell in cells:
        settings[cell[:4] if cell.implementation != LIMIT else LIMIT].append(cell)
    limits = settings.pop(LIMIT)
    need = {cell: expected_bytes(cell, cell.config(config)) for cell in cells}
    start = sum(need[cell] for cell in limits)
    too_large, found, used = [], [], start
    for of_setting in settings.values():
        together = sum(need[cell] for cell in of_setting)
        if start + together > memory:
            too_large += of_setting
            continue
        if not found or used + together > memory:
            found.append(list(limits))
            used = start
        found[-1] += of_setting
        used += together
    return found, too_large


def measure(cells, config, rounds):
    """Times the cells in turn, one at a time, `rounds` times. -> (records, limits, cell -> why it was not measured)

    All processes of a group are up before its first round and take turns, so that whatever else slows the machine down slows
    down all of them. The limits are measured in the same rounds.
    """
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    todo, too_large = groups(cells, config, np.inf if on_gpu else 0.75 * available_bytes())
    failed = {cell: "would not fit into memory" for cell in too_large}
    if on_gpu:  # nobody says how much memory a GPU has left: what is compared is up at a time, and no more
        limits = [cell for cell in cells if cell.implementation == LIMIT]
        rest = [cell for group in todo for cell in group if cell.implementation != LIMIT]
        todo = [[*limits, *rest[k : k + 3]] for k in range(0, len(rest), 3)]
    times, first, peaks = collections.defaultdict(list), {}, {}
    count = sum(map(len, todo))
    progress = tqdm(total=count + len(todo) * rounds, desc="bench", leave=False, disable=None)
    batches, sizes = {}, {}
    for group in todo:
        processes = Processes()
        for cell in group:
            progress.set_postfix_str(f"starting {cell.implementation}, {cell.setting}")
            size = cell.batch_size, cell.image_size
            if size not in batches:
                batches[size] = draw_batch(config, *size)
            sizes[cell] = batches[size][0].shape[1:3]  # with "valid" padding the loader has mirrored a margin around it
            processes.start(cell, config, *batches[size])
            progress.update()
        progress.set_postfix_str("rounds")
        for k in range(rounds):
            turns = [
                (cell, mode)
                for cell, first_of in processes.first.items()
                for mode in MODES | LIMITS
                if f"warm {mode}" in first_of
            ]
            k = k * len(turns) // rounds  # nobody always comes first
            for cell, mode in turns[k:] + turns[:k]:
                if cell not in processes.failed and (found := processes.seconds(cell, mode)):
                    times[cell, mode].append(found)
            progress.update()
        first |= processes.first
        peaks |= processes.stop()
        failed |= processes.failed
    progress.close()
    limits = {}
    for cell in cells:
        if all(times.get((cell, what)) for what in LIMITS):
            work = peak_work()
            limits[cell.precision] = {what: work[what] / statistics.median(times[cell, what]) for what in LIMITS}

    def order(item):
        (cell, mode), _ = item
        return [*MODES, *LIMITS].index(mode), cells.index(cell)

    records = [
        record(cell, mode, values, sizes[cell], config, limits.get(cell.precision), first[cell], peaks.get(cell))
        for (cell, mode), values in sorted(times.items(), key=order)
        if mode in MODES
    ]
    return records, limits, failed


def draw_batch(config, batch_size, image_size):
    """One batch: images [N, H, W, C], masks [N, H, W, 1], numpy arrays. Of fewer images some come more than once."""
    if config.data.dataset == "synthetic" and not config.data.crop_size:
        config = config.replace(image_size=image_size)
    with contextlib.redirect_stdout(io.StringIO()):  # what the images are was said once
        config, training, _ = load_examples(config)
    images, masks = (tensor.numpy() for tensor in next(iter(training_batches(config, training))))
    numbers = np.arange(batch_size) % len(images)
    return images[numbers], masks[numbers]


def record(cell, mode, times, size, config, limit, first, peak):
    """What is known of one cell in one mode, as JSON has it. size: (height, width) that the network sees."""
    height, width = size
    config = cell.config(config)
    training = mode == "train"
    flops = cell.batch_size * roofline.convolution_flops(config.network, height, width)[training]
    moved = roofline.least_bytes(config, cell.precision, cell.batch_size, height, width)[training]
    step = statistics.median(times)
    return {
        **dict(implementation=cell.implementation, mode=mode, precision=cell.precision, jit=cell.jit),
        **dict(batch_size=cell.batch_size, image_size=str(cell.image_size)),
        "images_per_second": cell.batch_size / step,
        "images_per_second_quartiles": [cell.batch_size / q for q in np.percentile(times, [75, 25])],
        "images_per_second_best": cell.batch_size / min(times),
        "step_seconds": times,
        "flops": flops,
        "least_bytes": moved,
        "flops_per_second": flops / step,
        "share_of_arithmetic_limit": limit and flops / step / limit["convolution"],
        "first_step_seconds": first["import"] + first[f"build {mode}"] + first[f"trace {mode}"] + first[f"compile {mode}"],
        "import_seconds": first["import"],
        "build_seconds": first[f"build {mode}"],
        "trace_seconds": first[f"trace {mode}"],
        "compile_seconds": first[f"compile {mode}"],
        "peak_memory_bytes": peak,
    }


def environment():
    """What the figures depend on besides the code."""
    gpus = tf.config.list_physical_devices("GPU")
    build = tf.sysconfig.get_build_info()
    cpu = platform.processor()
    with contextlib.suppress(OSError, TypeError):
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    driver = None
    with contextlib.suppress(OSError, TypeError):
        driver = re.search(r"Kernel Module\D*([\d.]+)", Path("/proc/driver/nvidia/version").read_text())[1]
    return {
        "device": device_name(),
        "gpu": [tf.config.experimental.get_device_details(gpu) for gpu in gpus],
        **dict(driver=driver, cuda=build.get("cuda_version"), cudnn=build.get("cudnn_version")),
        **dict(cpu=cpu, system=platform.platform(), python=platform.python_version()),
        "packages": {name: version(name) for name in ("tensorflow", "keras", "tf-keras", "numpy")},
        "threads": {
            "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
            "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
        },
        "variables": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(VARIABLES)},
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


# --- what is shown ---


def print_table(records, limits, failed):
    for precision, limit in limits.items():
        words = f"{limit['convolution'] / 1e9:,.0f} GFLOP/s in a large convolution, {limit['copy'] / 1e9:,.1f} GB/s in a copy"
        print(f"limit in {precision}: {words}")
    print(f"\n{'':<14}{'images/s':>9}{'quartiles':>17}{'best':>8}{'relative':>10}{'step':>11}", end="")
    print(f"{'GFLOP/s':>9}{'of limit':>9}{'trace':>8}{'compile':>9}{'first step':>12}{'peak of process':>17}")
    shown = None
    for row in records:
        cell = Cell(row["precision"], row["jit"], row["batch_size"], Size.parse(row["image_size"]), row["implementation"])
        title = f"{MODES[row['mode']]}, {cell.setting}"
        if title != shown:
            print(f"\n{title}")
            shown, reference = title, row["images_per_second"]
        low, high = row["images_per_second_quartiles"]
        share, peak = row["share_of_arithmetic_limit"], row["peak_memory_bytes"]
        print(
            f"  {row['implementation']:<12}{row['images_per_second']:>9.1f}{f'{low:.1f} to {high:.1f}':>17}"
            f"{row['images_per_second_best']:>8.1f}{row['images_per_second'] / reference:>10.2f}"
            f"{1000 * statistics.median(row['step_seconds']):>8.1f} ms{row['flops_per_second'] / 1e9:>9.0f}"
            f"{f'{100 * share:.0f} %' if share else '':>9}{row['trace_seconds']:>6.1f} s{row['compile_seconds']:>7.1f} s"
            f"{row['first_step_seconds']:>10.1f} s{f'{peak / 2**20:.0f} MiB' if peak else '':>17}"
        )
    for cell, why in failed.items():
        print(f"\n{cell.implementation}, {cell.setting}: {why}")


def draw(records, title, path):
    """A bar for every implementation, setting and mode: the median, with the quartiles as whiskers."""
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in records)]
    settings = list(dict.fromkeys(tuple(r[name] for name in SETTING) for r in records))
    figure = Figure(figsize=(4.2 * len(modes), 2 + 0.75 * len(settings)))
    for axes, mode in zip(figure.subplots(1, len(modes), squeeze=False).flat, modes):
        for k, name in enumerate(comparison.IMPLEMENTATIONS):
            for j, setting in enumerate(settings):
                for row in records:
                    key = tuple(row[name] for name in SETTING)
                    if (row["implementation"], row["mode"], key) == (name, mode, setting):
                        median, quartiles = row["images_per_second"], np.array([row["images_per_second_quartiles"]]).T
                        bar = axes.barh(
                            j + 0.27 * (k - 1), median, 0.25, xerr=np.abs(quartiles - median), color=f"C{k}", capsize=2
                        )
                        axes.bar_label(bar, fmt="%.0f", fontsize=7, padding=3)
        first = axes is figure.axes[0]
        words = [f"{p}{', XLA' if jit else ''}\nbatch {batch}, {size}" for p, jit, batch, size in settings]
        axes.set_yticks(range(len(settings)), words if first else [""] * len(settings), fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set(title=MODES[mode], xlabel="images per second")
    handles = [figure.axes[0].barh(0, 0, color=f"C{k}") for k in range(3)]
    figure.legend(handles, comparison.IMPLEMENTATIONS, loc="lower right", ncols=3, fontsize=7)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    save_figure(figure, path)


def read_record(path):
    """What `run` wrote. Raises: UserError for a file that is none."""
    try:
        found = json.loads(Path(path).read_text())
        for row in found["records"]:
            for name in ("implementation", "mode", *SETTING, "step_seconds", "images_per_second"):
                row[name]
        found["environment"]["packages"], found["config"]
        return found
    except OSError as error:
        raise UserError(f"--against {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"--against {path} was not written by this version's compare.py bench") from None


def ratio_of_medians(old, new, rng):
    """(ratio of the speeds, its 5th and 95th percentile) of two lists of step times: new speed over old.

    The percentiles come from drawing the rounds again with replacement, a thousand times (bootstrap, Efron 1979).
    """
    old, new = np.array(old), np.array(new)
    draws = [np.median(rng.choice(x, (1000, len(x))), axis=1) for x in (old, new)]
    low, high = np.percentile(draws[0] / draws[1], [5, 95])
    return np.median(old) / np.median(new), low, high


def print_changes(old, new):
    """What got faster or slower between two records, and what differs besides."""
    for name, value in new["environment"].items():
        before = old["environment"].get(name)
        if before != value and name != "load_before":
            print(f"{name} was {json.dumps(before)}, is {json.dumps(value)}")
    for name, value in new["config"].items():
        before = old["config"].get(name)
        if before != value and name not in ("run_dir", "images", "precision", "jit", "batch_size", "image_size"):
            print(f"--{name.replace('_', '-')} was {before}, is {value}")
    key = (*SETTING, "mode", "implementation")
    before = {tuple(row[name] for name in key): row for row in old["records"]}
    rng = np.random.default_rng(0)
    print(f"\n{'':<58}{'was':>9}{'is':>9}{'ratio':>8}{'90 % of draws':>17}")
    for row in new["records"]:
        of = tuple(row[name] for name in key)
        if of not in before:
            continue
        ratio, low, high = ratio_of_medians(before[of]["step_seconds"], row["step_seconds"], rng)
        # two runs differ by more than the rounds within one: what else the machine does, its clock, where memory lies
        verdict = "faster" if low > 1.03 else "slower" if high < 0.97 else "the same within the noise"
        title = f"{row['implementation']}, {MODES[row['mode']]}, {row['precision']}{', XLA' if row['jit'] else ''}"
        title += f", {row['batch_size']} x {row['image_size']}"
        speeds = [r["images_per_second"] for r in (before[of], row)]
        print(f"{title:<58}{speeds[0]:>9.1f}{speeds[1]:>9.1f}{ratio:>8.2f}{f'{low:.2f} to {high:.2f}':>17}  {verdict}")
    missing = before.keys() - {tuple(row[name] for name in key) for row in new["records"]}
    if missing:
        print(f"{len(missing)} rows of the old record were not measured now")


def run(config, given, matrix, rounds, path, against=None):
    """Measures the `matrix`, prints the table, writes JSON to `path`, and a bar chart and the roofline beside it.

    given: the options that the user has set. against: an older JSON, whose changes are printed.

    Raises: UserError when no cell could be measured.
    """
    old = read_record(against) if against else None
    config, training, _ = load_examples(config)
    if config.data.crop_size:
        image_size = config.data.crop_size
    else:
        image_size = Size(*training.sizes[0])
    cells = find_cells(config, given, matrix, image_size)
    what = (
        f"{device_name()}, TensorFlow {tf.__version__}, filters {config.network.filters}, depth {config.network.depth}, "
        f"{config.network.activation}, batch_norm {config.network.batch_norm}"
    )
    print(what, flush=True)
    about = environment()
    if (load := about["load_before"] or 0) > 0.5 and sys.stderr.isatty():
        print(f"note: the machine is busy (load {load:.1f}); what else runs on it changes the figures", file=sys.stderr)
    records, limits, failed = measure(cells, config, rounds)
    if not records:
        raise UserError("; ".join(dict.fromkeys(f"{cell.implementation} {why}" for cell, why in failed.items())))
    print_table(records, limits, failed)
    new = {
        **dict(what=what, environment=about, config=config.as_dict(), rounds=rounds, limits=limits),
        "not_measured": {f"{cell.implementation}, {cell.setting}": why for cell, why in failed.items()},
        "records": records,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(new, indent=2) + "\n")
    draw(records, what, path.with_suffix(".png"))
    points = [
        (MODES[r["mode"]] + (", XLA" if r["jit"] else ""), r["implementation"], r["precision"])
        + (r["flops"] / r["least_bytes"], r["flops_per_second"])
        for r in records
    ]
    roof = path.with_name("roofline.png")
    roofline.draw(points, limits, what, roof)
    new = json.loads(path.read_text())  # as the older one: a tuple has become a list
    print(f"\nmedians of {rounds} interleaved rounds; written to {path}, {path.with_suffix('.png')} and {roof}")
    if old:
        print(f"\nagainst {against}:")
        print_changes(old, new)
