"""How long does one image take, from the call to the answer? All three, folded and not, beside what users of Keras type."""

import functools

from common.device import tf
from common.output import write_json
from comparison import columns
from comparison.benchmark.worker import load_batch, seconds
from comparison.machine import arithmetic, described, environment

import numpy as np

WARM_UP, TURN = 10, 20  # calls
CALLS = {"traced": "tf.function", "folded": "tf.function, batch norm folded"}
CALLS |= {"predict": "model.predict", "predict_on_batch": "model.predict_on_batch"}  # of Keras alone


def work(implementation, config, images, connection):
    """The process of one implementation. Says which calls it has; receives one, answers with the seconds of `TURN` of them."""
    built, batch = columns.Built(implementation, config), tf.constant(images)  # on the device before the clock starts
    calls = {"traced": functools.partial(built.forward, batch)}
    if implementation == "keras_impl":
        built.model.compile(jit_compile=config.training.jit)
        calls["predict"] = functools.partial(built.model.predict, images, verbose=0)
        calls["predict_on_batch"] = functools.partial(built.model.predict_on_batch, images)
    if config.network.batch_norm != "none":
        calls["folded"] = functools.partial(built.folded().forward, batch)
    for call in calls.values():
        seconds(call, WARM_UP)
    connection.send(list(calls))
    while call := connection.recv():
        connection.send([seconds(calls[call], 1) for _ in range(TURN)])


def run(config, rounds, path):
    """Measures a batch of one image, prints the table, writes JSON to `path`."""
    config, images, _ = load_batch(config.replace(batch_size=1))
    about = environment()
    processes = {name: columns.Process(name, work, name, config, images) for name in columns.IMPLEMENTATIONS}
    turns = [(name, call) for name, process in processes.items() for call in process.ask()]
    found = columns.in_turns(turns, rounds, "bench: latency", lambda turn: processes[turn[0]].ask(turn[1]))
    for process in processes.values():
        process.end()
    height, width = images.shape[1:3]
    xla = "on" if config.training.jit else "off"
    what = f"{described(config)}, {arithmetic(config)}, one image of {width}x{height}, XLA {xla}"
    records = []
    print(f"{what}\n\n{'milliseconds of a call':<46}{'p50':>9}{'p90':>9}{'p99':>9}{'p50 to the first':>18}")
    for (name, call), times in found.items():
        times = sum(times, [])  # of all rounds
        p50, p90, p99 = np.percentile(times, [50, 90, 99])
        records.append(dict(implementation=name, call=call, p50=p50, p90=p90, p99=p99, seconds=times))
        figures = "".join(f"{1000 * p:>9.2f}" for p in (p50, p90, p99))
        print(f"{f'{name}, {CALLS[call]}':<46}{figures}{p50 / records[0]['p50']:>18.2f}")
    record = dict(what=what, environment=about, config=config.as_dict(), rounds=rounds, records=records)
    write_json(path, record)
    print(f"\n{rounds * TURN} calls each, one at a time, in {rounds} rounds in turns; written to {path}")
