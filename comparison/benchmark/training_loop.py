"""What does training cost besides the step? The loop of each train script, with its input pipeline, against the bare step."""

import contextlib
import importlib
import io
import tempfile
import time
from pathlib import Path

from common import CORES
from common.device import be_deterministic, tf
from common.output import write_json
from comparison import columns
from comparison.benchmark.worker import load_batch
from comparison.machine import arithmetic, described
from training.run import Run

import numpy as np

STEPS = 10  # of the loop and of the bare step in a round
LEAD = CORES + 2  # steps of the loop before its clock starts: that many batches gather while the bare step has its turn
PAUSE = 0.2  # seconds, and LEAD steps, in which the pipeline fills up, so that it does not run beside the bare step


def clock():
    """[seconds, seconds of the processor in all threads], when a GPU is done too, whose calls return before."""
    tf.test.experimental.sync_devices()
    return np.array([time.perf_counter(), time.process_time()])


def rounds_of(bare, connection):
    """A generator that goes on at the end of each step of the loop, which takes turns with the calls of `bare`.

    Sends None when the loop is traced, and {"loop", "bare": of a step, as `clock` has it} for each request from `connection`.
    It ends with an EOFError when the other side closes that.
    """
    for _ in range(LEAD):
        yield
    answer = None
    while True:
        connection.send(answer)
        connection.recv()
        for _ in range(LEAD):
            yield
        begin = clock()
        for _ in range(STEPS):
            yield
        answer = {"loop": (clock() - begin) / STEPS}
        time.sleep(PAUSE + LEAD * answer["loop"][0])
        begin = clock()
        for _ in range(STEPS):
            bare()
        answer["bare"] = (clock() - begin) / STEPS


class Screen(io.StringIO):
    """A terminal that nobody sees: the progress bar is drawn as it is for a user."""

    def isatty(self):
        return True


def work(implementation, config, images, masks, connection):
    """A process that trains as `python -m implementation.train` does, with `rounds_of` at the end of each step."""
    if config.training.deterministic:
        be_deterministic()
    script, train_step = importlib.import_module(f"{implementation}.train"), columns.Built(implementation, config).train_step
    images, masks = tf.constant(images), tf.constant(masks)  # on the device before the clock starts
    for _ in range(2):
        train_step(images, masks)  # traced and warm
    turns = rounds_of(lambda: train_step(images, masks), connection)

    class TimedRun(Run):
        def __init__(self, *of_a_run):
            super().__init__(*of_a_run)
            self.steps_per_epoch = self.all_steps  # validation and saving belong to epochs, not to steps

        def end_step(self, loss):
            super().end_step(loss)
            next(turns)

    script.Run = TimedRun
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(Screen()):
        script.train(config)


def summarize(implementation, answers):
    """One record of the report from the answers of one process."""
    record = {"implementation": implementation}
    for k, of_cpu in enumerate(("", "_cpu")):
        loop, bare = (np.array([answer[lane][k] for answer in answers]) for lane in ("loop", "bare"))
        # a round's times lie side by side: their ratio leaves out what slows the machine down
        low, cost, high = np.percentile(loop / bare - 1, [25, 50, 75])
        record |= {f"loop{of_cpu}_seconds": list(loop), f"bare{of_cpu}_seconds": list(bare)}
        record |= {f"loop_cost{of_cpu}": cost, f"loop_cost{of_cpu}_quartiles": [low, high]}
    return record


def print_table(records):
    """Of a step, in milliseconds, and what the loop adds: to the time, and to the CPU's, which other programs leave alone."""
    print(f"\n{'':<12}{'bare step':>10}{'quartiles':>17}{'in the loop':>12}{'costs':>8}{'quartiles':>16}", end="")
    print(f"{'costs, CPU':>12}{'quartiles':>16}")
    for record in records:
        bare, loop = (1000 * np.array(record[f"{lane}_seconds"]) for lane in ("bare", "loop"))
        spread = "{:.1f} to {:.1f}".format(*np.percentile(bare, [25, 75]))
        print(f"{record['implementation']:<12}{np.median(bare):>7.1f} ms{spread:>17}{np.median(loop):>9.1f} ms", end="")
        for name, width in (("loop_cost", 6), ("loop_cost_cpu", 10)):
            spread = "{:.1f} to {:.1f}".format(*(100 * share for share in record[f"{name}_quartiles"]))
            print(f"{100 * record[name]:>{width}.1f} %{spread:>16}", end="")
        print()


def run(config, rounds, path):
    """Measures, prints the table, writes JSON to `path`. Raises: UserError when a process ends, and what training raises."""
    with tempfile.TemporaryDirectory() as folder:
        # all read one cache; neither what a run saves nor how it ends has a part in this
        free = dict(cache=config.data.cache or Path(folder) / "cache", checkpoint_every=None, epochs=10**6, patience=None)
        config, images, masks = load_batch(config.replace(**free, resume=False))
        processes = {
            name: columns.Process(name, work, name, config.replace(run_dir=Path(folder) / name), images, masks)
            for name in columns.IMPLEMENTATIONS
        }
        for process in processes.values():
            process.ask()
        found = columns.in_turns(list(processes), rounds, "bench: loop", lambda name: processes[name].ask(True))
        for process in processes.values():
            process.end()
    what = (
        f"{described(config)}, batch {config.training.batch_size}, {arithmetic(config)}, augment {config.data.augment}, "
        f"XLA {'on' if config.training.jit else 'off'}"
    )
    records = [summarize(name, answers) for name, answers in found.items()]
    print(what)
    print_table(records)
    write_json(path, dict(what=what, rounds=rounds, steps=STEPS, records=records))
    print(f"\nmedians of {rounds} rounds in turns; written to {path}")
