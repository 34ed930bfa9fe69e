"""float16: gradients below 6e-8 are 0 there, so the loss is scaled, by the same schedule in all three."""

from common.checkpoint import load_checkpoint
from common.config import Config, Size, UserError
from common.weights import assign_weights
from comparison import columns
from comparison.columns import Built
from comparison.proof import exact, ladder, replicas
from comparison.proof.ways import EXACT_CONSTANTS, Case
from tests.conftest import IMPLEMENTATIONS
from tests.test_network import random_batch
from tests.test_training import TINY, no_pictures, resume, same_weights, train  # noqa: F401
from training.devices import scope
from training.report import read_history

import numpy as np
import pytest
import tensorflow as tf

SMALL = Config.of(filters=2, depth=1, batch_size=4, precision="float16", image_size=Size(16, 16))
slow = pytest.mark.slow
SCHEDULE = ("iterations", "loss_scale", "finite_steps")


def after(built, *batch, **state):
    """The schedule after a step that begins with `state`, as the last of its numbers whether any weight or moment moved."""
    trained = {
        name: w for name, w in {**built.weights, **built.state}.items() if "moving_" not in name and name not in SCHEDULE
    }
    before = {name: w.numpy() for name, w in trained.items()}
    for name, value in state.items():
        built.state[name].assign(value)
    built.train_step(*batch)
    moved = any((w.numpy() != before[name]).any() for name, w in trained.items())
    return [float(built.state[name].numpy()) for name in SCHEDULE] + [moved]


@pytest.mark.parametrize("options", [{}, dict(optimizer="sgd", clip_norm=0.1)])
def test_the_schedule(implementation, options):
    """A step that overflows is left out, as no step that is made: weights, moments and the count of steps stay."""
    built, batch = Built(implementation, SMALL.replace(**options)), random_batch(SMALL, 16, 16)
    assert all(w.dtype == tf.float32 for name, w in built.weights.items()), "the weights that are updated"
    assert after(built, *batch) == [1, 2**15, 1, True]
    assert after(built, *batch, loss_scale=2.0**100) == [1, 2**99, 0, False]
    assert after(built, *batch, loss_scale=2.0**16) == [2, 2**16, 1, True]
    assert after(built, *batch, finite_steps=1998) == [3, 2**16, 1999, True]
    assert after(built, *batch) == [4, 2**17, 0, True]
    assert after(built, *batch, loss_scale=2.0**100, finite_steps=1999) == [4, 2**99, 0, False]


def test_without_the_scale_small_gradients_are_lost(implementation):
    """Of a loss of 1e-6: its gradients lie where float16 has none, and the scale brings them back."""
    found = {}
    for scale in (1.0, 2.0**15):
        config = SMALL.replace(optimizer="sgd", learning_rate=1e6, momentum=0.1, batch_norm="none")
        built = Built(implementation, config)
        images, masks = random_batch(config, 16, 16)
        head = built.weights["head/kernel"]
        head.assign(head * 1e-5)  # what goes back through it
        built.state["loss_scale"].assign(scale)
        kernel = built.weights["down0/conv1/kernel"]
        before = kernel.numpy()
        built.train_step(images, masks)
        found[scale] = np.count_nonzero(kernel.numpy() != before)
    assert found[1.0] < found[2.0**15] == kernel.numpy().size


def test_a_planted_fault_is_seen(monkeypatch):
    """On the ladder: a column that counts a step after which its scale has changed twice."""

    def load(implementation, load=columns.load):
        code = load(implementation)
        if implementation == "lowlevel":

            class Careless(code.LossScaled):
                def apply(self, gradients):
                    super().apply(gradients)
                    self.optimizer.iterations.assign_add(tf.cast(self.finite_steps == 0, tf.int64))

            monkeypatch.setattr("lowlevel.train.LossScaled", Careless)
        return code

    case = Case("test", SMALL.replace(**EXACT_CONSTANTS), steps=1, beside=("lowlevel", "keras_impl"))
    batches = [random_batch(SMALL, 16, 16)]
    seen = {name: ladder.observe(name, case, batches) for name in case.beside}
    checks, _, _ = ladder.climb(case, batches, seen)
    assert {*ladder.SCALES} <= {check.rung for check in checks} and all(check.passed for check in checks)
    monkeypatch.setattr(columns, "load", load)
    monkeypatch.setattr("comparison.proof.finder.locate", lambda *_: "none")  # its words are not looked at
    checks, _, _ = ladder.climb(case, batches, {"keras_impl": seen["keras_impl"]})
    assert {check.rung for check in checks if not check.passed} == {*ladder.SCALES}


def test_a_checkpoint_holds_the_schedule(tmp_path):
    """Saved two steps before the scale grows, any of the three goes on from it, to the last bit."""
    config = SMALL.replace(**EXACT_CONSTANTS)
    batches = [random_batch(config, 16, 16, seed=k) for k in range(4)]
    built = {name: Built(name, config, exact.load(name)) for name in IMPLEMENTATIONS}
    fresh = {name: each.moments() for name, each in built.items()}
    for writer, whole in built.items():
        whole.start()
        assign_weights(whole.state, fresh[writer] | {"finite_steps": np.int64(1996)})
        whole.carry_on(batches[:2], path := tmp_path / f"{writer}.safetensors")
        whole.carry_on(batches[2:])
        ended = whole.values() | whole.moments()
        assert float(ended["loss_scale"]) == 2**16
        for reader in built.values():
            saved = path.read_bytes()
            reader.carry_on(batches[2:], path)
            path.write_bytes(saved)
            for name, value in (reader.values() | reader.moments()).items():
                np.testing.assert_array_equal(value, ended[name], err_msg=name)


@pytest.mark.parametrize("implementation", [*(pytest.param(name, marks=slow) for name in IMPLEMENTATIONS[:2]), "keras_impl"])
def test_a_run_goes_on(implementation, tmp_path):
    """By `fit`, whose optimizer is wrapped once more; the others' state is in the test above."""
    options = ["--precision", "float16", "--dropout", "0.3"]
    train(tmp_path / "whole", *options, implementation=implementation)
    train(tmp_path / "half", *options, "--epochs", "1", implementation=implementation)
    resume(tmp_path / "half", "--epochs", "3", implementation=implementation)
    same_weights(tmp_path / "whole", tmp_path / "half")
    _, state, _ = load_checkpoint(tmp_path / "half" / "last.safetensors")
    assert int(state["finite_steps"]) == 12 and float(state["loss_scale"]) == 2**15
    with pytest.raises(UserError, match="use the --optimizer and --precision of its training"):
        last = tmp_path / "whole" / "last.safetensors"
        train(tmp_path / "other", "--checkpoint", last, "--dropout", "0.3", implementation=implementation)


@slow
def test_the_curves_lie_on_each_other(tmp_path):
    """The default training, made small: what 16 bits leave out does not decide what is learnt."""
    losses = {}
    for precision in ("float32", "bfloat16", "float16"):
        few = "--images 20 --image-size 32 --filters 4 --epochs 6 --batch-size 4".split()
        train(tmp_path / precision, "--precision", precision, *few)
        losses[precision] = np.array([row["loss"] for row in read_history(tmp_path / precision)])
    assert losses["float32"][0] - losses["float32"][-1] > 0.05, "something is learnt"
    for precision in ("bfloat16", "float16"):
        np.testing.assert_allclose(losses[precision], losses["float32"], atol=0.02, err_msg=precision)


def on_two_devices(implementation):
    """{devices: [schedule and whether all weights are finite]} of steps from ever larger scales; half of the rows are empty."""
    strategies, rng, found = replicas.start_devices((1, 2)), np.random.default_rng(0), {}
    images = rng.random((4, 16, 16, 1), np.float32)
    images[:2] = 0  # the gradients of the first device are the last that overflow
    masks = (images > 0.7).astype(np.float32)
    for n, strategy in strategies.items():
        with scope(strategy):
            built = Built(implementation, Config.of(**SMALL.flat | dict(batch_norm="explicit", channels=1, classes=1)))
            data = tf.data.Dataset.from_tensors((images, masks)).repeat()
            batch = next(iter(strategy.experimental_distribute_dataset(data.unbatch().batch(4)) if n > 1 else data))
            found[n] = [after(built, *batch, loss_scale=2.0**k)[:3] for k in range(14, 30)]
            found[n].append(all(np.isfinite(w.numpy()).all() for w in built.weights.values()))
    return found


@slow
def test_devices_leave_a_step_out_together(implementation):
    """Keras's LossScaleOptimizer asks the first replica alone: a weight would become infinite."""
    found = columns.call(on_two_devices, implementation, implementation)
    assert found[1] == found[2] and found[2][-1]
    assert 0 < found[2][-2][0] < 16, "some steps are made, some left out"
