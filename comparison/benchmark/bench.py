"""What does each level of TensorFlow cost? Images per second in training and in inference, measured side by side."""

import collections
import contextlib
import importlib
import io
import itertools
import statistics
import sys
import time
from typing import NamedTuple

from common import CORES, asks_for_gpu
from common.cli import add_format, count
from common.config import Size, UserError, flag
from common.output import write_json
from comparison import columns
from comparison.benchmark import cells, roofline, scaling, speeds
from comparison.benchmark.cells import LIMIT
from comparison.benchmark.roofline import MODES

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
    counts = lambda text: [count(number) for number in text.split(",")]  # noqa: E731
    what.add_argument("--devices", type=counts, metavar="1,2,4", dest="scaling", help=words)
    group.add_argument("--column", metavar="FOLDER", help="a column of your own beside the three: a folder with model.py")
    add_format(group)
    parser.set_defaults(what="default", images=40)


def run(config, args):
    """-> True. Raises: UserError for options that do not fit together, and what the measurements raise."""
    folder, rounds = config.training.run_dir, args.rounds or ROUNDS[args.what]
    if config.training.deterministic and args.what not in ("loop", "profile"):
        raise UserError("bench times what training runs by default; --deterministic goes with --loop or --profile")
    of_the_list = {"--column": args.column, "--format": args.format != "png", "--gpu": args.gpu}
    for name in filter(of_the_list.get, of_the_list if args.scaling or args.what in OTHERS else ()):
        raise UserError(f"{name} goes with --quick or --full, or with neither")
    if args.column:
        columns.load(args.column)  # what is wrong with it is said at once
    if args.scaling:
        scaling.run(config, args.scaling, rounds, folder / "scaling.json")
    elif args.what in OTHERS:
        module, file, _ = OTHERS[args.what]
        importlib.import_module(f"comparison.benchmark.{module}").run(config, rounds, folder / file)
    else:
        picture = folder / f"roofline.{args.format}"
        run_matrix(config, args.given, args.what, rounds, folder / "bench.json", picture, args.gpu, args.column)
    return True


class Measured(NamedTuple):
    """What is known of a cell. size: (height, width) that the network sees; imported: seconds until its process was there."""

    size: tuple
    imported: float
    first: dict  # mode -> {"build", "trace", "compile", "warm": seconds}
    times: dict  # mode -> [seconds of a step, in each round]
    peak: int | None = None  # bytes


class Workers:
    """The processes of the implementations, each with the cell of one setting, up and waiting so that they can take turns.

    A process ends when nobody holds the other end of its connection any more. failed: cell -> why it could not be measured.
    """

    def __init__(self, batch_size, modes=tuple(MODES), seconds=TURN_SECONDS):
        self.batch_size, self.modes, self.seconds, self.up, self.failed = batch_size, modes, seconds, {}, {}
        self.images, self.batches = {}, {}  # by variant and image size

    def start(self, implementation):
        """Its process; it may take a while until it answers."""
        if implementation not in self.up:
            column = implementation.partition(",")[0]
            work = columns.Process(implementation, "comparison.benchmark.worker.work", column, time.time())
            self.up[implementation] = work
        return self.up[implementation]

    def ask(self, cell, *request):
        """The answer of the cell's process to `request`, if any; None where there is none, and `failed` says why."""
        try:
            return self.start(cell.implementation).ask(*request)
        except UserError as error:
            self.failed[cell] = f"{cell.title}: {error}"
            if not self.up[cell.implementation].process.is_alive():
                self.end(cell)

    def end(self, cell):
        self.up.pop(cell.implementation).end()

    def arrays(self, cell):
        """Images and masks for `cell`, some of them: what it lacks comes more than once."""
        from comparison.benchmark.worker import load_batch

        key = cell.variant, cell.image_size
        if key not in self.images:
            with contextlib.redirect_stdout(io.StringIO()):  # what the images are was said once
                _, *self.images[key] = load_batch(cell.config.replace(batch_size=self.batch_size))
        return self.images[key]

    def with_batch(self, group):
        """The cells of one setting with the batch that lowlevel finds, once for all arithmetic in 16 bits."""
        cell = next(cell for cell in group if cell.implementation != LIMIT)
        if not cell.doubles:
            return group
        width = "16 bits" if "16" in cell.precision else cell.precision
        key = cell.variant, cell.image_size, width
        if key not in self.batches:
            searched = cell._replace(config=cell.config.replace(jit=False))
            found = self.ask(cell, ("batches", searched, self.arrays(cell))) or []
            self.batches[key] = cells.chosen(found)
            if cell.implementation in self.up and not all(rate for _, rate in found):
                self.end(cell)  # with which its memory is free for the others
            rates = ", ".join(f"{size}: {f'{rate:.0f}' if rate else 'does not fit'}" for size, rate in found)
            what = ", ".join(filter(None, [cell.variant, width, f"{cell.image_size} pixels"]))
            print(f"\nimages/s in training by batch size, lowlevel, {what}: {rates}")
        return [cell._replace(config=cell.config.replace(batch_size=n)) for n in self.batches[key] for cell in group]

    def measure(self, group, rounds):
        """{cell: `Measured`} of the cells of one setting, which are built some at a time, and timed in turns."""
        found = {}
        for k in tqdm(range(0, len(group), STARTING), desc="starting", leave=False, disable=None):
            for cell in group[k : k + STARTING]:
                self.start(cell.implementation)
            for cell in group[k : k + STARTING]:
                with contextlib.suppress(ConnectionError):  # it has died, which `ask` will say
                    self.start(cell.implementation).connection.send(("prepare", cell, self.arrays(cell), self.modes))
            for cell in group[k : k + STARTING]:
                if answer := self.ask(cell):
                    size = self.arrays(cell)[0].shape[1:3]  # with "valid" padding the loader has mirrored a margin around it
                    found[cell] = Measured(size, *answer, collections.defaultdict(list))

        def take(turn):
            """Seconds of a step are added, if the cell is still there."""
            cell, mode = turn
            steps = max(2, round(self.seconds / found[cell].first[mode]["warm"]))
            if cell not in self.failed and (second := self.ask(cell, ("time", mode, steps))):
                found[cell].times[mode].append(second)

        columns.in_turns([(cell, mode) for cell in found for mode in found[cell].first], rounds, "bench", take)
        return {
            cell: known if cell in self.failed else known._replace(peak=self.ask(cell, ("end",)))
            for cell, known in found.items()
        }


def run_matrix(config, given, matrix, rounds, path, picture, gpu=False, own=None):
    """Measures the `matrix`, that of a GPU if there is one or `gpu`; prints the table and writes JSON to `path`, a setting at a
    time; at last the roofline to `picture`.

    given: names of the options that the user has set. own: the folder of a column of the reader's own.

    Raises: UserError when no cell could be measured.
    """
    on_gpu = gpu or asks_for_gpu()
    modes = [mode for mode in MODES if not (on_gpu and matrix == "quick" and mode == "folded")]
    workers = Workers(config.training.batch_size, modes, TURN_SECONDS / 2 if on_gpu else TURN_SECONDS)
    if on_gpu:  # where starting takes longest: all at once, while TensorFlow is imported here too
        for implementation in (LIMIT, *columns.IMPLEMENTATIONS):
            workers.start(implementation)
    from common.device import tf
    from comparison.benchmark.worker import peak_work
    from comparison.machine import described, environment, precisions
    from data.loader import load_examples

    if on_gpu and not gpu and not tf.config.list_physical_devices("GPU"):
        raise UserError("there is a driver, but TensorFlow finds no GPU: CUDA_VISIBLE_DEVICES= in front measures the CPU")
    config, training, _ = load_examples(config)
    image_size = config.data.crop_size or Size(*training.sizes[0])
    of_device = precisions(on_gpu)
    todo = cells.find_cells(config, given, matrix, image_size, "GPU" if on_gpu else "CPU", of_device, own)
    what = f"{described(config)}, {config.network.activation}, batch_norm {config.network.batch_norm}"
    print(what, flush=True)
    if "precision" not in given and "bfloat16" not in of_device:
        print("bfloat16 is left out: without AVX-512 training takes ten times as long in it; --precision bfloat16 measures it")
    about = environment()
    if (load := about["load_before"] or 0) > 0.5 and sys.stderr.isatty():
        print(f"note: the machine is busy (load {load:.1f}); what else runs on it changes the figures", file=sys.stderr)
    work, limits, records = peak_work(), {}, []
    for _, group in itertools.groupby(todo, lambda cell: (cell.setting, cell.doubles)):
        if not (group := workers.with_batch(list(group))):
            continue  # no batch fits, which has been said
        if not on_gpu and sum(map(cells.expected_bytes, group)) > 0.75 * cells.available_bytes():
            workers.failed |= {cell: f"{cell.title} would not fit into memory" for cell in group}
            continue
        found, limit = workers.measure(group, rounds), None
        for cell, known in found.items():
            if cell.implementation == LIMIT and known.times.keys() == work.keys():
                limit = limits[cell.precision] = {step: work[step] / statistics.median(known.times[step]) for step in work}
        new = [speeds.record(cell, mode, found[cell], limit) for mode in MODES for cell in found if found[cell].times[mode]]
        speeds.print_table(group, new, limit, first=not records)
        records += new
        whole = {
            **dict(what=what, environment=about, config=config.as_dict(), rounds=rounds, limits=limits),
            "not_measured": {cell.title: why for cell, why in workers.failed.items()},
            "records": records,
        }
        write_json(path, whole)
    if not records:
        raise UserError("; ".join(workers.failed.values()))
    for why in workers.failed.values():
        print(f"\n{why}")
    roofline.draw(records, limits, what, picture)
    print(f"\nmedians of {rounds} interleaved rounds; written to {path} and {picture}")
