"""bench --loop: it measures what it says, and a loop that wastes time is seen."""

import contextlib
import importlib
import json
import time

import compare
from common.config import Config, Size
from comparison import columns
from comparison.benchmark import training_loop
from comparison.benchmark.worker import load_batch
from tests.test_training import LOOPS, no_pictures  # noqa: F401
from training.run import Run

import numpy as np
import pytest
import tensorflow as tf

TINY = "--image-size 16 --depth 1 --filters 2 --batch-size 2 --images 6".split()


@pytest.mark.slow
def test_every_loop_is_timed(tmp_path, capfd):
    assert compare.main(["bench", "--loop", *TINY, "--rounds", "2", "--run-dir", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert "epoch" not in out and err == "", "what training says is not for the reader"
    record = json.loads((tmp_path / "loop.json").read_text())
    assert [r["implementation"] for r in record["records"]] == list(columns.IMPLEMENTATIONS)
    for r in record["records"]:
        assert r["implementation"] in out
        for lane in ("bare", "loop"):
            assert len(r[f"{lane}_seconds"]) == 2 and all(0 < s < 10 for s in r[f"{lane}_seconds"])
        assert np.isfinite([r["loop_cost"], *r["loop_cost_quartiles"], r["loop_cost_cpu"]]).all()


class Requests:
    """The end of a connection that asks for `rounds` rounds, within this process."""

    def __init__(self, rounds):
        self.rounds, self.answers = rounds, []

    def send(self, answer):
        self.answers.append(answer)

    def recv(self):
        if len(self.answers) > self.rounds:
            raise EOFError


def train(implementation, rounds, folder, monkeypatch):
    """-> the answers of `training_loop.work`, in this process."""
    monkeypatch.setattr(importlib.import_module(f"{implementation}.train"), "Run", Run)  # put back after the test
    small = dict(filters=2, depth=1, batch_size=2, images=6, image_size=Size(16, 16), epochs=10**6)
    requests = Requests(rounds)
    with contextlib.suppress(EOFError):
        training_loop.work(implementation, *load_batch(Config.of(**small, run_dir=folder / "run")), requests)
    return requests.answers


@LOOPS
def test_a_planted_cost_is_seen_and_no_loop_waits_for_the_loss(implementation, tmp_path, monkeypatch):
    """A loop that idles longer than a step takes, even on a busy machine.

    A loss that arrives as a number has been waited for: on a GPU at every step. `fit` has no other for a callback.
    """
    seen, end_step = [], Run.end_step

    def slow(self, loss):
        seen.append(loss)
        end_step(self, loss)
        time.sleep(0.04)

    monkeypatch.setattr(Run, "end_step", slow)
    first, *answers = train(implementation, 2, tmp_path, monkeypatch)
    assert first is None and len(answers) == 2
    record = training_loop.summarize(implementation, answers)
    assert min(record["loop_seconds"]) > 0.04 and record["loop_cost"] > 0.5
    # the garbage collector may well take as long in a test session: no absolute bound
    cost, of_cpu = (np.median(np.subtract(record[f"loop{of}_seconds"], record[f"bare{of}_seconds"])) for of in ("", "_cpu"))
    assert of_cpu < cost / 2, "nobody computes while it sleeps"
    assert len(seen) > training_loop.STEPS
    assert all(tf.is_tensor(loss) == (implementation != "keras_impl") for loss in seen)
