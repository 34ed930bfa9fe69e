"""What does each level of TensorFlow cost? Images per second in training and in inference, measured side by side."""

import collections
import importlib
import json
import statistics
import sys
import time

from common import CORES
from common.cli import count
from common.config import Size, UserError, flag
from common.output import write_text
from comparison import columns
from comparison.benchmark import cells, roofline, scaling, speeds
from comparison.benchmark.cells import LIMIT, MODES

from tqdm import tqdm

MATRICES = {"quick": "float32 and bfloat16 without XLA, 2 minutes", "full": "other batch and image sizes too, hours on a CPU"}
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
        run_matrix(config, args.given, args.what, rounds, folder / "bench.json")
    return True


class Workers:
    """The processes, a cell each, all up and waiting so that they can take turns; and what they measured.

    first: cell -> seconds of what it did first. times: (cell, mode) -> [seconds of a step]. peaks: cell -> bytes.
    sizes: cell -> (height, width) that the network sees. failed: cell -> why it could not be measured.
    """

    def __init__(self, config):
        self.config, self.up, self.first, self.times = config, {}, {}, collections.defaultdict(list)
        self.peaks, self.sizes, self.failed = {}, {}, {}

    def start(self, cell, images, masks):
        """images, masks: a batch, see `worker.draw_batch`. `greet` waits until it is ready."""
        arguments = cell, self.config, images, masks, time.time()
        self.up[cell] = columns.Process(cell.title, "comparison.benchmark.worker.work", *arguments)
        self.sizes[cell] = images.shape[1:3]  # with "valid" padding the loader has mirrored a margin around it

    def ask(self, cell, *request):
        """The answer, or what the process says by itself; None where there is none, and `failed` says why."""
        try:
            return self.up[cell].ask(*request)
        except UserError as error:
            self.failed[cell] = str(error)
            self.up.pop(cell).end()

    def greet(self, cell):
        """Waits for what the process of `cell` says first."""
        if hello := self.ask(cell):
            self.first[cell] = hello

    def turns(self):
        """[(cell, mode, steps)]: a turn of each process in each of its modes."""
        return [
            (cell, what.removeprefix("warm "), max(2, round(TURN_SECONDS / warm)))
            for cell in self.up
            for what, warm in self.first[cell].items()
            if what.startswith("warm ")
        ]

    def take_turn(self, turn):
        """Adds the seconds of one step to `times`, if the process is still there."""
        cell, mode, steps = turn
        if cell in self.up and (found := self.ask(cell, (mode, steps))):
            self.times[cell, mode].append(found)

    def stop(self):
        """Asks for the `peaks`, with which the processes end."""
        self.peaks |= {cell: self.ask(cell, None) for cell in list(self.up)}
        for process in self.up.values():
            process.end()
        self.up.clear()


def measure(todo, config, rounds, workers):
    """Times the cells `todo` in turn, one at a time, `rounds` times, in `workers`: `Workers`, which hold the result.

    All processes of a group are up before its first round. The limits are measured in the same rounds.
    """
    from common.device import tf
    from comparison.benchmark.worker import draw_batch

    on_gpu = bool(tf.config.list_physical_devices("GPU"))  # nobody says how much memory a GPU has left
    together, too_large = cells.groups(todo, config, None if on_gpu else 0.75 * cells.available_bytes())
    workers.failed |= {cell: f"{cell.title} would not fit into memory" for cell in too_large}
    batches = {}
    for group in together:
        for k in tqdm(range(0, len(group), STARTING), desc="starting", leave=False, disable=None):
            starting = group[k : k + STARTING]
            for cell in starting:
                size = cell.batch_size, cell.image_size
                if size not in batches:
                    batches[size] = draw_batch(config, *size)
                workers.start(cell, *batches[size])
            for cell in starting:
                workers.greet(cell)
        columns.in_turns(workers.turns(), rounds, "bench", workers.take_turn)
        workers.stop()


def run_matrix(config, given, matrix, rounds, path):
    """Measures the `matrix`, prints the table, writes JSON to `path`, and a bar chart and the roofline beside it.

    given: names of the options that the user has set.

    Raises: UserError when no cell could be measured.
    """
    from comparison.benchmark.worker import peak_work
    from comparison.machine import described, environment, has_tf32
    from data.loader import load_examples

    config, training, _ = load_examples(config)
    image_size = config.data.crop_size or Size(*training.sizes[0])
    todo = cells.find_cells(config, given, matrix, image_size, has_tf32())
    what = f"{described(config)}, {config.network.activation}, batch_norm {config.network.batch_norm}"
    print(what, flush=True)
    about = environment()
    if (load := about["load_before"] or 0) > 0.5 and sys.stderr.isatty():
        print(f"note: the machine is busy (load {load:.1f}); what else runs on it changes the figures", file=sys.stderr)
    workers = Workers(config)
    measure(todo, config, rounds, workers)
    work, limits = peak_work(), {}
    for cell in todo:
        if cell.implementation == LIMIT and all(workers.times.get((cell, step)) for step in work):
            limits[cell.precision] = {step: work[step] / statistics.median(workers.times[cell, step]) for step in work}
    records = [
        speeds.record(cell, mode, workers, config, limits.get(cell.precision))
        for mode in MODES
        for cell in todo
        if (cell, mode) in workers.times
    ]
    if not records:
        raise UserError("; ".join(workers.failed.values()))
    speeds.print_table(records, limits, workers.failed)
    new = {
        **dict(what=what, environment=about, config=config.as_dict(), rounds=rounds, limits=limits),
        "not_measured": {cell.title: why for cell, why in workers.failed.items()},
        "records": records,
    }
    write_text(path, json.dumps(new, indent=2) + "\n")
    speeds.draw(records, what, path.with_suffix(".png"))
    points = [
        (MODES[r["mode"]] + (", XLA" if r["jit"] else ""), r["implementation"], r["precision"])
        + (r["flops"] / r["least_bytes"], r["flops_per_second"])
        for r in records
    ]
    roof = path.with_name("roofline.png")
    roofline.draw(points, limits, what, roof)
    print(f"\nmedians of {rounds} interleaved rounds; written to {path}, {path.with_suffix('.png')} and {roof}")
