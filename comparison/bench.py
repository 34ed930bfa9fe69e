"""What does each level of TensorFlow cost? Images per second in training and in inference, measured side by side."""

import collections
import contextlib
import io
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import comparison
from common.cli import count
from common.config import Config, Size, UserError, flag
from common.output import write_text
from comparison import cells, process, report, roofline
from comparison.cells import LIMIT, MODES
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
    against = "another version, in the same rounds: a git revision or a folder; or an older bench.json, without a verdict"
    group.add_argument("--against", metavar="COMMIT", help=against)
    words = "training on so many devices of this host, 1 first, and what a sum over them costs"
    what.add_argument("--devices", type=_counts, metavar="1,2,4", dest="scaling", help=words)
    words = "with --data: a consumer that takes so many images per second, and for how long it waits (default: 500,1000,2000)"
    group.add_argument("--consume", type=_counts, metavar="N,N", help=words)
    parser.set_defaults(what="default", images=40, devices=1)


def _counts(text):
    """`1,2,4`"""
    return [count(number) for number in text.split(",")]


def run(config, args):
    """-> True. Raises: UserError for options that do not fit together, and what the measurements raise."""
    output, rounds = config.training.run_dir, args.rounds or ROUNDS.get(args.what)
    is_matrix = args.what in ("default", "quick", "full")
    if args.against and not is_matrix:
        raise UserError(f"--against compares images per second, and not with --{args.what}")
    if args.consume and args.what != "data":
        raise UserError("--consume goes with --data")
    if args.what == "profile" and args.rounds:
        raise UserError("--profile has no --rounds: it profiles 10 steps")
    if args.scaling and (args.against or config.training.deterministic or config.training.jit):
        raise UserError(
            "--devices times this version as training runs by default: leave --against, --deterministic and --jit out"
        )
    if args.scaling:
        from comparison import scaling

        scaling.run(config, args.scaling, args.rounds or ROUNDS["quick"], output / "scaling.json")
        return True
    if config.training.deterministic and args.what not in ("loop", "profile"):
        raise UserError("bench times what training runs by default; --deterministic goes with --loop or --profile")
    if is_matrix:
        run_matrix(config, args.given, args.what, rounds, output / "bench.json", args.against)
        return True
    from comparison import latency, pipeline, profile, training_loop

    if args.what == "latency":
        latency.run(config, rounds, output / "latency.json")
    if args.what == "data":
        pipeline.run(config, rounds, args.consume or [500, 1000, 2000], output / "pipeline.json")
    if args.what == "loop":
        training_loop.run(config, rounds, output / "loop.json")
    if args.what == "profile":
        profile.run(config, output / "profile.json")
    return True


class Workers:
    """The processes of one checkout, a cell each, all up and waiting so that they can take turns; and what they measured.

    options: as in `process.hold_cell`; unknown: those that the checkout does not have.
    first: cell -> seconds of what it did first. times: (cell, mode) -> [seconds of a step]. peaks: cell -> bytes.
    sizes: cell -> (height, width) that the network sees. failed: cell -> why it could not be measured.
    """

    def __init__(self, checkout, options):
        self.checkout, self.options, self.connections, self.processes = checkout, options, {}, {}
        self.first, self.times, self.peaks, self.sizes, self.failed = {}, collections.defaultdict(list), {}, {}, {}
        self.unknown = None

    def start(self, cell, images, masks):
        """images, masks: a batch, see `draw_batch`. `greet` waits until it is ready."""
        arguments = tuple(cell), self.options, images, masks, time.time()
        started = comparison.start_process(process.hold_cell, *arguments, checkout=self.checkout)
        self.processes[cell], self.connections[cell] = started
        self.sizes[cell] = images.shape[1:3]  # with "valid" padding the loader has mirrored a margin around it

    def greet(self, cell):
        """Waits for what the process of `cell` says first."""
        self.unknown = self._answer(cell)
        hello = None if self.unknown is None else self._answer(cell)
        if isinstance(hello, dict):
            self.first[cell] = hello
        elif cell not in self.failed:
            self._fail(cell, hello)

    def _fail(self, cell, why):
        self.failed[cell] = why
        self.connections.pop(cell).close()
        self.processes.pop(cell).wait()

    def _answer(self, cell, *request):
        """To `request`, or what the process says first; None if it has ended."""
        try:
            return comparison.ask(self.connections[cell], *request)
        except EOFError:
            killed = self.processes[cell].wait() == -signal.SIGKILL
            self._fail(cell, "was killed: too little memory?" if killed else "ended; its last words are above")

    def take_turn(self, cell, mode, steps):
        """Adds the seconds of one of so many steps to `times`, if the process is still there."""
        if cell in self.connections and (found := self._answer(cell, (mode, steps))):
            self.times[cell, mode].append(found)

    def stop(self):
        """Asks for the `peaks`, with which the processes end."""
        self.peaks |= {cell: self._answer(cell, None) for cell in list(self.connections)}
        for of_cell in self.processes.values():
            of_cell.wait()
        self.connections.clear(), self.processes.clear()

    def kill(self):
        for of_cell in self.processes.values():
            of_cell.kill()
            of_cell.wait()


def take_round(k, rounds, versions):
    """Round number `k`: a turn for each cell that is up in each mode, in all `versions` (`Workers`) one right after the other.

    What slows the machine down slows down all of them, and versions of the same cell most alike. Nobody always comes first.
    """
    turns = [
        (cell, what.removeprefix("warm "), max(2, round(TURN_SECONDS / warm)))
        for cell in versions[0].connections
        for what, warm in versions[0].first[cell].items()
        if what.startswith("warm ")
    ]
    first = k * len(turns) // rounds
    for turn in turns[first:] + turns[:first]:
        for workers in versions if k % 2 else versions[::-1]:
            workers.take_turn(*turn)


def measure(todo, config, rounds, versions):
    """Times the cells `todo` in turn, one at a time, `rounds` times, in all `versions`: `Workers`, which hold the result.

    All processes of a group are up before its first round. The limits are measured in the same rounds, by the first version.
    """
    from common.device import tf

    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    memory = np.inf if on_gpu else 0.75 * cells.available_bytes() / len(versions)
    together, too_large = cells.groups(todo, config, memory)
    versions[0].failed |= {cell: "would not fit into memory" for cell in too_large}
    if on_gpu:  # nobody says how much memory a GPU has left: what is compared is up at a time, and no more
        limits = [cell for cell in todo if cell.implementation == LIMIT]
        rest = [cell for group in together for cell in group if cell.implementation != LIMIT]
        together = [[*limits, *rest[k : k + 3]] for k in range(0, len(rest), 3)]
    batches = {}
    with tqdm(total=sum(map(len, together)) + len(together) * rounds, desc="bench", leave=False, disable=None) as progress:
        for group in together:
            for k in range(0, len(group), STARTING):
                progress.set_postfix_str(f"starting {group[k].implementation}, {group[k].setting}")
                starting = [(w, c) for c in group[k : k + STARTING] for w in versions[: 1 if c.implementation == LIMIT else 2]]
                for workers, cell in starting:
                    size = cell.batch_size, cell.image_size
                    if size not in batches:
                        batches[size] = draw_batch(config, *size)
                    workers.start(cell, *batches[size])
                for workers, cell in starting:
                    workers.greet(cell)
                progress.update(len(group[k : k + STARTING]))
            progress.set_postfix_str("rounds")
            for k in range(rounds):
                take_round(k, rounds, versions)
                progress.update()
            for workers in versions:
                workers.stop()


def draw_batch(config, batch_size, image_size):
    """One batch: images [N, H, W, C], masks [N, H, W, 1], numpy arrays. Of fewer images some come more than once."""
    from data.loader import load_examples, training_batches

    if config.data.dataset == "synthetic" and not config.data.crop_size:
        config = config.replace(image_size=image_size)
    with contextlib.redirect_stdout(io.StringIO()):  # what the images are was said once
        config, training, _ = load_examples(config)
    images, masks = (tensor.numpy() for tensor in next(iter(training_batches(config, training))))
    numbers = np.arange(batch_size) % len(images)
    return images[numbers], masks[numbers]


def git(folder, *arguments):
    return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, errors="replace")


@contextlib.contextmanager
def checked_out(against):
    """The folder of another version: `against` itself, or a git worktree of that revision, which is gone afterwards.

    Raises: UserError when there is neither, or no benchmark in it.
    """
    with contextlib.ExitStack() as stack:
        checkout = Path(against).resolve()
        if not checkout.is_dir():
            checkout = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))) / "checkout"
            stack.callback(git, comparison.ROOT, "worktree", "remove", "--force", checkout)
            added = git(comparison.ROOT, "worktree", "add", "--detach", checkout, against)
            if added.returncode:
                words = added.stderr.strip().splitlines()[-1]
                raise UserError(f"--against {against} is no folder, no .json file and no git revision ({words})")
        if not (checkout / "comparison" / "bench.py").exists():
            raise UserError(f"--against {against}: there is no comparison/bench.py in it to measure with")
        yield checkout


def run_matrix(config, given, matrix, rounds, path, against=None):
    """Measures the `matrix`, prints the table, writes JSON to `path`, and a bar chart and the roofline beside it.

    given: names of the options that the user has set. against: a git revision or a folder, measured too; or an older JSON.

    Raises: UserError when no cell could be measured.
    """
    from comparison.peaks import peak_work
    from comparison.worker import described, has_tf32
    from data.loader import load_examples

    is_record = against and (Path(against).is_file() or Path(against).suffix == ".json")
    old = report.read_record(against) if is_record else None
    with contextlib.ExitStack() as stack:
        checkout = stack.enter_context(checked_out(against)) if against and not is_record else None
        config, training, _ = load_examples(config)
        image_size = config.data.crop_size or Size(*training.sizes[0])
        todo = cells.find_cells(config, given, matrix, image_size, has_tf32())
        what = f"{described(config)}, {config.network.activation}, batch_norm {config.network.batch_norm}"
        print(what, flush=True)
        about = report.environment()
        if (load := about["load_before"] or 0) > 0.5 and sys.stderr.isatty():
            print(f"note: the machine is busy (load {load:.1f}); what else runs on it changes the figures", file=sys.stderr)
        commit = git(checkout, "rev-parse", "HEAD").stdout.strip() if checkout else None
        versions = [Workers(folder, config.as_dict()) for folder in (comparison.ROOT, checkout) if folder]
        for workers in versions:
            stack.callback(workers.kill)  # before the worktree goes
        measure(todo, config, rounds, versions)
    ours, work, limits = versions[0], peak_work(), {}
    for cell in todo:
        if cell.implementation == LIMIT and all(ours.times.get((cell, step)) for step in work):
            limits[cell.precision] = {step: work[step] / statistics.median(ours.times[cell, step]) for step in work}
    records, *others = (
        [
            report.record(cell, mode, workers, config, limits.get(cell.precision))
            for mode in MODES
            for cell in todo
            if (cell, mode) in workers.times
        ]
        for workers in versions
    )
    if not records:
        raise UserError("; ".join(dict.fromkeys(f"{cell.implementation} {why}" for cell, why in ours.failed.items())))
    report.print_table(records, limits, ours.failed)
    not_measured = [{f"{cell.implementation}, {cell.setting}": why for cell, why in v.failed.items()} for v in versions]
    new = {
        **dict(what=what, environment=about, config=config.as_dict(), rounds=rounds, limits=limits),
        **dict(not_measured=not_measured[0], records=records),
    }
    if checkout:
        new["against"] = dict(name=against, commit=commit, not_measured=not_measured[1], records=others[0])
    write_text(path, json.dumps(new, indent=2) + "\n")
    report.draw(records, what, path.with_suffix(".png"))
    points = [
        (MODES[r["mode"]] + (", XLA" if r["jit"] else ""), r["implementation"], r["precision"])
        + (r["flops"] / r["least_bytes"], r["flops_per_second"])
        for r in records
    ]
    roof = path.with_name("roofline.png")
    roofline.draw(points, limits, what, roof)
    print(f"\nmedians of {rounds} interleaved rounds; written to {path}, {path.with_suffix('.png')} and {roof}")
    if against:
        print(f"\nagainst {against}:")
    if old:
        report.print_changes(old, json.loads(path.read_text()))  # as the older one: a tuple has become a list
    if checkout:
        unknown = [flag(name) for name in versions[1].unknown or () if config.flat[name] != Config().flat[name]]
        if unknown:
            print(f"it does not know {', '.join(unknown)} and was measured without")
        report.print_ratios(others[0], records, same_rounds=True)
        for cell, why in versions[1].failed.items():
            print(f"{cell.implementation}, {cell.setting}: {why}")
