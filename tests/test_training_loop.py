"""bench --loop: it measures what it says, and a loop that wastes time is seen."""

import contextlib
import importlib
import json
import time

import compare
from common.config import Config, Size, UserError
from comparison import columns
from comparison.benchmark import training_loop
from data.loader import load_examples, training_batches
from training.run import Run

import numpy as np
import pytest
import tensorflow as tf

TINY = "--image-size 16 --depth 1 --filters 2 --batch-size 2 --images 6".split()


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr("training.run.draw_augmentations", lambda *_: None)  # seconds that prove nothing here


@pytest.mark.slow
def test_every_loop_is_timed(tmp_path, capfd):
    assert compare.main(["bench", "--loop", *TINY, "--rounds", "2", "--run-dir", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert "epoch" not in out and err == "", "what training says is not for the reader"
    record = json.loads((tmp_path / "loop.json").read_text())
    assert [r["implementation"] for r in record["records"]] == list(columns.IMPLEMENTATIONS)
    for r in record["records"]:
        assert r["implementation"] in out
        for lane in ("bare", "loop", "unrolled"):
            assert len(r[f"{lane}_seconds"]) == 2 and all(0 < s < 10 for s in r[f"{lane}_seconds"])
        assert np.isfinite([r["loop_cost"], *r["loop_cost_quartiles"], r["loop_cost_cpu"], r["unrolled_ratio"]]).all()


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
    config = Config.of(filters=2, depth=1, batch_size=2, images=6, image_size=Size(16, 16), epochs=1, run_dir=folder / "run")
    config, training, _ = load_examples(config)
    images, masks = (tensor.numpy() for tensor in next(iter(training_batches(config, training))))
    requests = Requests(rounds)
    with contextlib.suppress(EOFError):
        training_loop.work(implementation, config, images, masks, rounds, requests)
    return requests.answers


def test_a_planted_cost_is_seen(tmp_path, monkeypatch):
    """A loop that idles longer than a step takes, even on a busy machine."""
    end_step = Run.end_step

    def slow(self, loss):
        end_step(self, loss)
        time.sleep(0.1)

    monkeypatch.setattr(Run, "end_step", slow)
    first, *answers = train("lowlevel", 3, tmp_path, monkeypatch)
    assert first is None and len(answers) == 3
    record = training_loop.summarize("lowlevel", answers)
    assert min(record["loop_seconds"]) > 0.1 and record["loop_cost"] > 0.5
    # the garbage collector may well take a tenth of a second of a long test session: no absolute bound
    assert record["loop_cost_cpu_seconds"] < record["loop_cost_seconds"] / 2, "nobody computes while it sleeps"


def test_no_loop_waits_for_the_loss(implementation, tmp_path, monkeypatch):
    """A loss that arrives as a number has been waited for: on a GPU at every step. `fit` has no other for a callback."""
    seen, end_step = [], Run.end_step

    def watched(self, loss):
        seen.append(loss)
        end_step(self, loss)

    monkeypatch.setattr(Run, "end_step", watched)
    train(implementation, 1, tmp_path, monkeypatch)
    assert len(seen) > training_loop.STEPS
    assert all(tf.is_tensor(loss) == (implementation != "keras_impl") for loss in seen)


def test_the_unrolled_steps_are_the_steps(implementation):
    """The same weights, to rounding, after one call of eight steps and after eight calls."""
    code, config = (
        columns.load(implementation),
        Config.of(filters=2, depth=1, batch_size=2, images=6, image_size=Size(16, 16)),
    )
    _, training, _ = load_examples(config)
    images, masks = next(iter(training_batches(config, training)))
    found = []
    for unrolled in (False, True):
        model = code.UNet(config.network)
        step = code.make_train_step(model, config)
        if unrolled:
            training_loop.unroll(step, config)(images, masks)
        else:
            for _ in range(training_loop.UNROLLED):
                step(images, masks)
        found.append({name: weight.numpy() for name, weight in code.named_weights(model).items()})
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "0"], "--rounds"),
        (["--data"], "not allowed with argument"),
        (["--batch-size", "99"], "--batch-size is 99"),
    ],
)
def test_mistakes_are_told(arguments, words, tmp_path):
    """By `UserError`, which the script turns into one line and exit code 2."""
    with pytest.raises(UserError, match=words):
        compare.main(["bench", "--loop", *TINY, *arguments, "--run-dir", str(tmp_path)])
