"""What does training cost besides the step? The loop of each train script, with its input pipeline, against the bare step."""

import contextlib
import dataclasses
import importlib
import io
import json
import tempfile
import time
from pathlib import Path

from common.device import be_deterministic, tf
from common.output import write_text
from comparison import columns
from comparison.machine import arithmetic, described
from data.loader import Stored, load_examples, steps_per_epoch, training_batches
from training.run import Run

import numpy as np

STEPS = 10  # of the loop and of the bare step in a round
LEAD = 4  # steps of the loop before its clock starts: that many batches gather while the bare step has its turn
UNROLLED = 8  # steps in one call, as Keras makes them with steps_per_execution=8
PAUSE = 0.2  # seconds, and LEAD steps, in which the pipeline fills up, so that it does not run beside the bare step


def unroll(train_step, config):
    """function(images, masks) that makes `UNROLLED` training steps in one call. `train_step`: of `make_train_step`."""

    @tf.function(jit_compile=config.training.jit)
    def train_steps(images, masks):
        for _ in tf.range(UNROLLED):
            train_step(images, masks)

    return train_steps


def clock():
    """[seconds, seconds of the processor in all threads], when a GPU is done too, whose calls return before."""
    tf.test.experimental.sync_devices()
    return np.array([time.perf_counter(), time.process_time()])


def seconds(step, count):
    """Of one call out of `count`, as `clock` has them."""
    begin = clock()
    for _ in range(count):
        step()
    return (clock() - begin) / count


def repeated(examples, times):
    numbers = times * list(range(len(examples.names)))
    stored = {name: getattr(examples, name) for name in ("images", "masks", "objects")}
    stored = {name: Stored(values.__getitem__, numbers) for name, values in stored.items() if values}
    return dataclasses.replace(examples, names=times * examples.names, sizes=times * examples.sizes, **stored)


def timed_run(bare, unrolled, rounds, connection):
    """The class `Run`, but that its loop takes turns with the calls of `bare` and `unrolled`, as `connection` asks for it.

    Sends None when the loop is traced, and {"loop", "bare", "unrolled": of a step, as `clock` has it} for each of `rounds`
    requests.
    It ends with an EOFError when the other side closes the connection.
    """

    class TimedRun(Run):
        def __init__(self, implementation, config, training, *others):
            # one epoch holds all steps: validation and saving belong to epochs, not to steps
            times = -(-(rounds + 2) * (LEAD + STEPS) // steps_per_epoch(config, training))
            super().__init__(implementation, config, repeated(training, times), *others)
            self.position, self.answer = -LEAD, None

        def __enter__(self):
            super().__enter__()
            self.handlers.close()  # Ctrl-C is for the process that asks to answer
            return self

        def end_step(self, loss):
            super().end_step(loss)
            self.position += 1
            if self.position == LEAD:
                self.begin = clock()
            if self.position == LEAD + STEPS:
                self.answer = {"loop": (clock() - self.begin) / STEPS}
                time.sleep(PAUSE + LEAD * self.answer["loop"][0])
                self.answer |= {"bare": seconds(bare, STEPS), "unrolled": seconds(unrolled, 1) / UNROLLED}
                self.position = 0
            if self.position == 0:
                connection.send(self.answer)
                connection.recv()

    return TimedRun


class Screen(io.StringIO):
    """A terminal that nobody sees: the progress bar is drawn as it is for a user."""

    def isatty(self):
        return True


def work(implementation, config, images, masks, rounds, connection):
    """A process that trains as `python -m implementation.train` does, with `timed_run` in the place of `Run`."""
    if config.training.deterministic:
        be_deterministic()
    script, train_step = importlib.import_module(f"{implementation}.train"), columns.Built(implementation, config).train_step
    train_steps = unroll(train_step, config)
    images, masks = tf.constant(images), tf.constant(masks)  # on the device before the clock starts
    bare, unrolled = lambda: train_step(images, masks), lambda: train_steps(images, masks)
    for step in (bare, unrolled):
        seconds(step, 2)  # traced and warm
    script.Run = timed_run(bare, unrolled, rounds, connection)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(Screen()):
        script.train(config)


def measure(config, rounds):
    """-> (implementation -> [what `timed_run` sends], `config` as the data has filled it in).

    The processes take turns, so that whatever else slows the machine down slows down all three.
    """
    with tempfile.TemporaryDirectory() as folder:
        # all read one cache; neither what a run saves nor how it ends has a part in this
        free = dict(cache=config.data.cache or Path(folder) / "cache", checkpoint_every=None, epochs=1, patience=None)
        config, training, _ = load_examples(config.replace(**free, resume=False))
        images, masks = (tensor.numpy() for tensor in next(iter(training_batches(config, training))))
        processes = {
            name: columns.Process(name, work, name, config.replace(run_dir=Path(folder) / name), images, masks, rounds)
            for name in columns.IMPLEMENTATIONS
        }
        for process in processes.values():
            process.ask()
        found = columns.in_turns(list(processes), rounds, "bench: loop", lambda name: processes[name].ask(True))
        for process in processes.values():
            process.end()
    return found, config


def summarize(implementation, found):
    """One record of the report from the answers of one process."""
    wall, cpu = ({lane: np.array([answer[lane][k] for answer in found]) for lane in found[0]} for k in (0, 1))
    record = {"implementation": implementation}
    for lane in wall:
        record |= {f"{lane}_seconds": list(wall[lane]), f"{lane}_cpu_seconds": list(cpu[lane])}
    # a round's times lie side by side: their ratio leaves out what slows the machine down
    for name, values in {
        "loop_cost": wall["loop"] / wall["bare"] - 1,
        "loop_cost_seconds": wall["loop"] - wall["bare"],
        "loop_cost_cpu": cpu["loop"] / cpu["bare"] - 1,
        "loop_cost_cpu_seconds": cpu["loop"] - cpu["bare"],
        "unrolled_ratio": wall["unrolled"] / wall["bare"],
    }.items():
        record |= {name: np.median(values), f"{name}_quartiles": list(np.percentile(values, [25, 75]))}
    return record


def print_table(records):
    """Of a step, in milliseconds, and what the loop adds: to the time, and to the CPU's, which other programs leave alone."""
    print(f"\n{'':<12}{'bare step':>10}{'quartiles':>17}{'in the loop':>12}{'costs':>8}{'quartiles':>16}", end="")
    print(f"{'costs, CPU':>12}{'quartiles':>16}{f'{UNROLLED} in a call':>14}{'to bare':>9}")
    for record in records:
        bare, loop, unrolled = (1000 * np.array(record[f"{lane}_seconds"]) for lane in ("bare", "loop", "unrolled"))
        spread = "{:.1f} to {:.1f}".format(*np.percentile(bare, [25, 75]))
        print(f"{record['implementation']:<12}{np.median(bare):>7.1f} ms{spread:>17}{np.median(loop):>9.1f} ms", end="")
        for name in ("loop_cost", "loop_cost_cpu"):
            spread = "{:.1f} to {:.1f}".format(*(100 * share for share in record[f"{name}_quartiles"]))
            print(f"{100 * record[name]:>{6 if name == 'loop_cost' else 10}.1f} %{spread:>16}", end="")
        print(f"{np.median(unrolled):>11.1f} ms{record['unrolled_ratio']:>9.2f}")


def run(config, rounds, path):
    """Measures, prints the table, writes JSON to `path`. Raises: UserError when a process ends, and what training raises."""
    found, config = measure(config, rounds)
    records = [summarize(name, answers) for name, answers in found.items()]
    what = (
        f"{described(config)}, batch {config.training.batch_size}, {arithmetic(config)}, augment {config.data.augment}, "
        f"XLA {'on' if config.training.jit else 'off'}"
    )
    print(what)
    print_table(records)
    steps = {"loop": STEPS, "bare": STEPS, "unrolled": UNROLLED}
    write_text(path, json.dumps({"what": what, "rounds": rounds, "steps": steps, "records": records}, indent=2) + "\n")
    print(f"\nmedians of {rounds} rounds in turns; written to {path}")
