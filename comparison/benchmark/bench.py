"""What does each level of TensorFlow cost? Images per second in training and in inference, measured side by side."""

import collections
import json
import signal
import statistics
import sys
import time

from common.cli import count
from common.config import Size, UserError, flag
from common.output import write_text
from comparison import columns
from comparison.benchmark import cells, roofline, speeds
from comparison.benchmark.cells import LIMIT, MODES
from data.cache import CORES

import numpy as np
from tqdm import tqdm

WHAT = {
    "quick": "float32 and bfloat16 without XLA, 2 minutes",
    "full": "other batch and image sizes too, hours on a CPU",
    "data": "the input pipeline, and whether training waits for it",
    "loop": "what the training loop costs besides the step",
    "latency": "one image at a time, and beside it what Keras's predict takes",
    "profile": "where the time of a step goes, by kind of operation",
}
ROUNDS = {"quick": 5, "default": 7, "full": 9, "data": 5, "loop": 6, "latency": 10}
STARTING = max(1, CORES // 4)  # processes that start at a time: one alone on few cores, where the time of its first step counts
TURN_SECONDS = 0.4  # a turn lasts about that long, and two steps at least; the clock is read before and after it


def add_options(parser):
    group = parser.add_argument_group("what is measured")
    what = group.add_mutually_exclusive_group()
    for name, words in WHAT.items():
        what.add_argument(flag(name), action="store_const", const=name, dest="what", help=words)
    group.add_argument("--rounds", type=count, metavar="N", help="interleaved rounds (default: 5 to 10)")
    words = "training on so many devices of this host, 1 first, and what a sum over them costs"
    what.add_argument("--devices", type=_counts, metavar="1,2,4", dest="scaling", help=words)
    parser.set_defaults(what="default", images=40, devices=1)


def _counts(text):
    """`1,2,4`"""
    return [count(number) for number in text.split(",")]


def run(config, args):
    """-> True. Raises: UserError for options that do not fit together, and what the measurements raise."""
    output, rounds = config.training.run_dir, args.rounds or ROUNDS.get(args.what)
    is_matrix = args.what in ("default", "quick", "full")
    if args.what == "profile" and args.rounds:
        raise UserError("--profile has no --rounds: it profiles 10 steps")
    if args.scaling and (config.training.deterministic or config.training.jit):
        raise UserError("--devices times what training runs by default: leave --deterministic and --jit out")
    if args.scaling:
        from comparison.benchmark import scaling

        scaling.run(config, args.scaling, args.rounds or ROUNDS["quick"], output / "scaling.json")
        return True
    if config.training.deterministic and args.what not in ("loop", "profile"):
        raise UserError("bench times what training runs by default; --deterministic goes with --loop or --profile")
    if is_matrix:
        run_matrix(config, args.given, args.what, rounds, output / "bench.json")
        return True
    from comparison.benchmark import latency, pipeline, profile, training_loop

    if args.what == "latency":
        latency.run(config, rounds, output / "latency.json")
    if args.what == "data":
        pipeline.run(config, rounds, output / "pipeline.json")
    if args.what == "loop":
        training_loop.run(config, rounds, output / "loop.json")
    if args.what == "profile":
        profile.run(config, output / "profile.json")
    return True


class Workers:
    """The processes, a cell each, all up and waiting so that they can take turns; and what they measured.

    first: cell -> seconds of what it did first. times: (cell, mode) -> [seconds of a step]. peaks: cell -> bytes.
    sizes: cell -> (height, width) that the network sees. failed: cell -> why it could not be measured.
    """

    def __init__(self, config):
        self.config, self.connections, self.processes = config, {}, {}
        self.first, self.times, self.peaks, self.sizes, self.failed = {}, collections.defaultdict(list), {}, {}, {}

    def start(self, cell, images, masks):
        """images, masks: a batch, see `draw_batch`. `greet` waits until it is ready."""
        started = columns.start_process("comparison.benchmark.worker.work", cell, self.config, images, masks, time.time())
        self.processes[cell], self.connections[cell] = started
        self.sizes[cell] = images.shape[1:3]  # with "valid" padding the loader has mirrored a margin around it

    def greet(self, cell):
        """Waits for what the process of `cell` says first."""
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
            return columns.ask(self.connections[cell], *request)
        except EOFError:
            self.processes[cell].join()
            killed = self.processes[cell].exitcode == -signal.SIGKILL
            self._fail(cell, "was killed: too little memory?" if killed else "ended; its last words are above")

    def take_turn(self, cell, mode, steps):
        """Adds the seconds of one of so many steps to `times`, if the process is still there."""
        if cell in self.connections and (found := self._answer(cell, (mode, steps))):
            self.times[cell, mode].append(found)

    def stop(self):
        """Asks for the `peaks`, with which the processes end."""
        self.peaks |= {cell: self._answer(cell, None) for cell in list(self.connections)}
        for of_cell in self.processes.values():
            of_cell.join()
        self.connections.clear(), self.processes.clear()

    def kill(self):
        for of_cell in self.processes.values():
            of_cell.kill()
            of_cell.join()


def take_round(k, rounds, workers):
    """Round number `k`: a turn for each cell that is up in each mode, one right after the other; nobody always comes first."""
    turns = [
        (cell, what.removeprefix("warm "), max(2, round(TURN_SECONDS / warm)))
        for cell in workers.connections
        for what, warm in workers.first[cell].items()
        if what.startswith("warm ")
    ]
    first = k * len(turns) // rounds
    for turn in turns[first:] + turns[:first]:
        workers.take_turn(*turn)


def measure(todo, config, rounds, workers):
    """Times the cells `todo` in turn, one at a time, `rounds` times, in `workers`: `Workers`, which hold the result.

    All processes of a group are up before its first round. The limits are measured in the same rounds.
    """
    from common.device import tf
    from comparison.benchmark.worker import draw_batch

    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    memory = np.inf if on_gpu else 0.75 * cells.available_bytes()
    together, too_large = cells.groups(todo, config, memory)
    workers.failed |= {cell: "would not fit into memory" for cell in too_large}
    if on_gpu:  # nobody says how much memory a GPU has left: what is compared is up at a time, and no more
        limits = [cell for cell in todo if cell.implementation == LIMIT]
        rest = [cell for group in together for cell in group if cell.implementation != LIMIT]
        together = [[*limits, *rest[k : k + 3]] for k in range(0, len(rest), 3)]
    batches = {}
    with tqdm(total=sum(map(len, together)) + len(together) * rounds, desc="bench", leave=False, disable=None) as progress:
        for group in together:
            for k in range(0, len(group), STARTING):
                progress.set_postfix_str(f"starting {group[k].implementation}, {group[k].setting}")
                starting = group[k : k + STARTING]
                for cell in starting:
                    size = cell.batch_size, cell.image_size
                    if size not in batches:
                        batches[size] = draw_batch(config, *size)
                    workers.start(cell, *batches[size])
                for cell in starting:
                    workers.greet(cell)
                progress.update(len(starting))
            progress.set_postfix_str("rounds")
            for k in range(rounds):
                take_round(k, rounds, workers)
                progress.update()
            workers.stop()


def run_matrix(config, given, matrix, rounds, path):
    """Measures the `matrix`, prints the table, writes JSON to `path`, and a bar chart and the roofline beside it.

    given: names of the options that the user has set.

    Raises: UserError when no cell could be measured.
    """
    from comparison.benchmark.peaks import peak_work
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
    try:
        measure(todo, config, rounds, workers)
    finally:
        workers.kill()
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
        raise UserError("; ".join(dict.fromkeys(f"{cell.implementation} {why}" for cell, why in workers.failed.items())))
    speeds.print_table(records, limits, workers.failed)
    new = {
        **dict(what=what, environment=about, config=config.as_dict(), rounds=rounds, limits=limits),
        "not_measured": {f"{cell.implementation}, {cell.setting}": why for cell, why in workers.failed.items()},
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
