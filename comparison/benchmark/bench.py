"""What does each level of TensorFlow cost? Images per second in training and in inference, measured side by side."""

import collections
import importlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import CORES, asks_for_gpu
from common.cli import count
from common.config import Size, UserError, flag
from common.output import write_text
from comparison import columns
from comparison.benchmark import cells, roofline, scaling, speeds
from comparison.benchmark.cells import LIMIT, MODES

import numpy as np
from tqdm import tqdm

MATRICES = {"quick": "small images, without XLA on a CPU, 2 minutes", "full": "other batch and image sizes too, hours on a CPU"}
OTHERS = {  # option -> (module, file of the results, what it measures)
    "data": ("pipeline", "pipeline.json", "the input pipeline, and whether training waits for it"),
    "loop": ("training_loop", "loop.json", "what the training loop costs besides the step"),
    "latency": ("latency", "latency.json", "one image at a time, and beside it what Keras's predict takes"),
    "profile": ("profile", "profile.json", "where the time of a step goes, by kind of operation"),
}
ROUNDS = {"quick": 5, "default": 7, "full": 9, "data": 5, "loop": 6, "latency": 10, "profile": 10}
STARTING = max(1, CORES // 4)  # processes that start at a time: one alone on few cores, where the time of its first step counts
TURN_SECONDS = 0.4  # a turn lasts about that long, and two steps at least; the clock is read before and after it

SETS = {"epochs"}


def add_options(parser):
    group = parser.add_argument_group("what is measured")
    what = group.add_mutually_exclusive_group()
    for name, words in (MATRICES | {name: words for name, (_, _, words) in OTHERS.items()}).items():
        what.add_argument(flag(name), action="store_const", const=name, dest="what", help=words)
    group.add_argument("--gpu", action="store_true", help="the list for a GPU, which a GPU has by default")
    words = "interleaved rounds (default: 5 to 10); of --profile the steps"
    group.add_argument("--rounds", type=count, metavar="N", help=words)
    words = "training on so many devices of this host, 1 first, and what a sum over them costs"
    what.add_argument("--devices", type=_counts, metavar="1,2,4", dest="scaling", help=words)
    parser.set_defaults(what="default", images=40)


def _counts(text):
    """`1,2,4`"""
    return [count(number) for number in text.split(",")]


def run(config, args):
    """-> True. Raises: UserError for options that do not fit together, and what the measurements raise."""
    folder, rounds = config.training.run_dir, args.rounds or ROUNDS[args.what]
    if config.training.deterministic and args.what not in ("loop", "profile"):
        raise UserError("bench times what training runs by default; --deterministic goes with --loop or --profile")
    if args.scaling:
        scaling.run(config, args.scaling, rounds, folder / "scaling.json")
    elif args.what in OTHERS:
        module, file, _ = OTHERS[args.what]
        importlib.import_module(f"comparison.benchmark.{module}").run(config, rounds, folder / file)
    else:
        run_matrix(config, args.given, args.what, rounds, folder / "bench.json", args.gpu)
    return True


class Workers:
    """The processes that hold the cells, up and waiting so that they can take turns; and what they measured.

    On a CPU a cell has a process of its own. On a GPU, where starting takes longest, a column has one for all of its cells.

    first: cell -> seconds of what it did first. times: (cell, mode) -> [seconds of a step]. peaks: cell -> bytes.
    sizes: cell -> (height, width) that the network sees. failed: cell -> why it could not be measured.
    """

    def __init__(self, shared=False, modes=tuple(MODES)):
        self.config, self.shared, self.modes, self.up = None, shared, modes, {}
        self.first, self.times, self.peaks, self.sizes, self.failed = {}, collections.defaultdict(list), {}, {}, {}
        self.folder, self.files, self.batches = tempfile.TemporaryDirectory(), {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.up.values():  # nobody waits for them
            process.connection.close()
        self.folder.cleanup()

    def start(self, cell):
        """The process of `cell`; it may take a while until it answers."""
        key = cell.column if self.shared else cell
        if key not in self.up:
            work = "comparison.benchmark.worker.work"
            self.up[key] = columns.Process(cell.title, work, cell.column, time.time())
        return self.up[key]

    def ask(self, cell, *request):
        """The answer of the cell's process to `request`, if any; None where there is none, and `failed` says why."""
        process = self.start(cell)
        try:
            return process.ask(*request)
        except UserError as error:
            self.failed[cell] = f"{cell.title}: {error}"
            if not process.process.is_alive():
                self.up = {key: other for key, other in self.up.items() if other is not process}
                process.end()

    def file(self, cell):
        """Of the images and masks of `cell`, some of them: what it lacks comes more than once."""
        from comparison.benchmark.worker import draw_batch

        key, config = (cell.image_size, cell.changes), cell.config(self.config)
        if key not in self.files:
            size = dict(image_size=cell.image_size) if config.data.dataset == "synthetic" and not config.data.crop_size else {}
            images, masks = draw_batch(config.replace(batch_size=self.config.training.batch_size, **size))
            path = Path(self.folder.name) / f"{len(self.files)}.npz"
            np.savez(path, images=images, masks=masks)
            self.files[key] = path, images.shape[1:3]  # with "valid" padding the loader has mirrored a margin around it
        return self.files[key]

    def with_batch(self, group):
        """The cells of one setting with the batch that lowlevel finds, once for all arithmetic in 16 bits."""
        cell = next(cell for cell in group if cell.implementation != LIMIT)
        if cell.batch_size:
            return group
        width = "16 bits" if "16" in cell.precision else cell.precision
        key = cell.variant, cell.image_size, width
        if key not in self.batches:
            found = self.ask(cell, ("batches", cell._replace(jit=False), self.config, self.file(cell)[0])) or []
            self.batches[key] = [size for size, _ in found][-2:][:1]
            rates = ", ".join(f"{size}: {f'{rate:.0f}' if rate else 'does not fit'}" for size, rate in found)
            what = ", ".join(filter(None, [cell.variant, width, f"{cell.image_size} pixels"]))
            print(f"\nimages/s in training by batch size, lowlevel, {what}: {rates}")
        return [cell._replace(batch_size=size) for cell in group for size in self.batches[key]]

    def prepare(self, group):
        """Builds and traces the cells `group`, each in its process, some at a time: one alone on few cores of a CPU."""
        together = len(group) if self.shared else STARTING
        for k in tqdm(range(0, len(group), together), desc="starting", leave=False, disable=None):
            for cell in group[k : k + together]:
                path, self.sizes[cell] = self.file(cell)
                self.start(cell).connection.send(("prepare", cell, self.config, path, self.modes))
            for cell in group[k : k + together]:
                if first := self.ask(cell):
                    self.first[cell] = first

    def turns(self, group):
        """[(cell, mode, steps)]: a turn of each cell in each of its modes."""
        seconds = TURN_SECONDS / 2 if self.shared else TURN_SECONDS
        firsts = [(cell, what, warm) for cell in group for what, warm in self.first.get(cell, {}).items()]
        return [(cell, what[5:], max(2, round(seconds / warm))) for cell, what, warm in firsts if what.startswith("warm ")]

    def take_turn(self, turn):
        """Adds the seconds of one step to `times`, if the cell is still there."""
        cell, mode, steps = turn
        if cell not in self.failed and (found := self.ask(cell, ("time", cell, mode, steps))):
            self.times[cell, mode].append(found)

    def end(self, group):
        """Asks for the `peaks`. On a CPU the processes end."""
        for cell in group:
            if cell in self.first and cell not in self.failed:
                self.peaks[cell] = self.ask(cell, ("end", cell))
            if not self.shared and (process := self.up.pop(cell, None)):
                process.end()


def measure(todo, rounds, workers):
    """Times the cells `todo`, those of a group in turn, one at a time, `rounds` times. Yields each group, when it is done."""
    together, too_large = cells.by_setting(todo), []
    if not workers.shared:
        together, too_large = cells.groups(todo, workers.config, 0.75 * cells.available_bytes())
    workers.failed |= {cell: f"{cell.title} would not fit into memory" for cell in too_large}
    for group in together:
        group = workers.with_batch(group)
        workers.prepare(group)
        columns.in_turns(workers.turns(group), rounds, "bench", workers.take_turn)
        workers.end(group)
        yield group


def run_matrix(config, given, matrix, rounds, path, gpu=False):
    """Measures the `matrix`, that of a GPU if there is one or `gpu`; prints the table and writes JSON to `path`, a group at a
    time; at last the roofline, beside it.

    given: names of the options that the user has set.

    Raises: UserError when no cell could be measured.
    """
    shared = gpu or asks_for_gpu()
    with Workers(shared, [mode for mode in MODES if not shared or matrix != "quick" or mode != "folded"]) as workers:
        if shared:  # all at once, while this process imports TensorFlow itself
            for column in (LIMIT, *columns.IMPLEMENTATIONS):
                workers.start(cells.Cell("float32", False, None, None, column))
            from common.device import tf

            if not gpu and not tf.config.list_physical_devices("GPU"):
                raise UserError(
                    "TensorFlow finds no GPU, though there is a driver: CUDA_VISIBLE_DEVICES= in front measures the CPU"
                )
        _run_matrix(workers, config, given, matrix, rounds, path)


def _run_matrix(workers, config, given, matrix, rounds, path):
    from comparison.benchmark.worker import peak_work
    from comparison.machine import described, environment, has_tf32
    from data.loader import load_examples

    config, training, _ = load_examples(config)
    workers.config = config
    image_size = config.data.crop_size or Size(*training.sizes[0])
    todo = cells.find_cells(config, given, matrix, image_size, "GPU" if workers.shared else "CPU", has_tf32())
    what = f"{described(config)}, {config.network.activation}, batch_norm {config.network.batch_norm}"
    print(what, flush=True)
    about = environment()
    if (load := about["load_before"] or 0) > 0.5 and sys.stderr.isatty():
        print(f"note: the machine is busy (load {load:.1f}); what else runs on it changes the figures", file=sys.stderr)
    work, limits, records = peak_work(), {}, []
    for group in measure(todo, rounds, workers):
        of_group = {}
        for cell in group:
            if cell.implementation == LIMIT and all(workers.times.get((cell, step)) for step in work):
                of_group[cell.precision] = {s: work[s] / statistics.median(workers.times[cell, s]) for s in work}
        limits |= of_group
        done = [(cell, mode) for mode in MODES for cell in group if cell.implementation != LIMIT]
        done = [(cell, mode) for cell, mode in done if workers.times.get((cell, mode))]
        new = [speeds.record(cell, mode, workers, config, limits.get(cell.precision)) for cell, mode in done]
        speeds.print_table(new, of_group, first=not records)
        records += new
        whole = {
            **dict(what=what, environment=about, config=config.as_dict(), rounds=rounds, limits=limits),
            "not_measured": {cell.title: why for cell, why in workers.failed.items()},
            "records": records,
        }
        write_text(path, json.dumps(whole, indent=2) + "\n")
    if not records:
        raise UserError("; ".join(workers.failed.values()))
    for why in workers.failed.values():
        print(f"\n{why}")
    points = [
        (MODES[r["mode"]] + (", XLA" if r["jit"] else ""), r["implementation"], r["precision"])
        + (r["flops"] / r["least_bytes"], r["flops_per_second"])
        for r in records
    ]
    roof = path.with_name("roofline.png")
    roofline.draw(points, limits, what, roof)
    print(f"\nmedians of {rounds} interleaved rounds; written to {path} and {roof}")
