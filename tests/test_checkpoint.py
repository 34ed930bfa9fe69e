"""Checkpoints change hands: any implementation goes on where any other stopped."""

import os

from common.checkpoint import load_checkpoint, load_metadata, read_checkpoint, save_checkpoint
from common.config import ColorTable, Config, UserError
from common.weights import assign_weights, initial_weights
from comparison.columns import Built
from comparison.proof import exact
from comparison.proof.ways import EXACT_CONSTANTS
from tests.conftest import IMPLEMENTATIONS, save_network
from tests.test_network import random_batch

import numpy as np
import pytest
import tensorflow as tf


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_implementation_goes_on_from_every_other(optimizer, tmp_path):
    config, path = Config.of(filters=2, depth=1, optimizer=optimizer, **EXACT_CONSTANTS), tmp_path / "half.safetensors"
    trainings = {name: Built(name, config, exact.load(name)) for name in IMPLEMENTATIONS}
    batches, initial = [random_batch(config, seed=k) for k in range(4)], initial_weights(config.network)
    rest = {name: np.zeros_like(value.numpy()) for name, value in trainings["lowlevel"].state.items()}
    for name, training in trainings.items():  # making an optimizer moves no weight, though in v1 its moments need a first step
        assert training.state.keys() == rest.keys() and "iterations" in rest, "the same names in all three"
        for key, value in {**initial, **rest}.items():
            np.testing.assert_array_equal({**training.weights, **training.state}[key].numpy(), value, err_msg=f"{name}: {key}")
    for writer, uninterrupted in trainings.items():
        assign_weights(uninterrupted.weights, initial)
        assign_weights(uninterrupted.state, rest)
        for k, batch in enumerate(batches):
            uninterrupted.train_step(*batch)
            if k == 1:
                save_checkpoint(path, uninterrupted.weights, uninterrupted.state, step=2)
        expected = {name: weight.numpy() for name, weight in uninterrupted.weights.items()}
        weights, state, metadata = load_checkpoint(path, config.network)
        assert metadata == {"step": 2} and int(state["iterations"]) == 2
        for reader, training in trainings.items():  # which have made other steps: whatever was there before is overwritten
            assign_weights(training.weights, weights)
            assign_weights(training.state, state)
            for batch in batches[2:]:
                training.train_step(*batch)
            for name, value in expected.items():
                np.testing.assert_array_equal(training.weights[name].numpy(), value, err_msg=f"{writer}, {reader}: {name}")


@pytest.fixture
def checkpoint(tmp_path):
    return save_network(tmp_path / "weights.safetensors", depth=1)


@pytest.mark.parametrize("read", [load_metadata, ColorTable.parse])
def test_only_files_are_read(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is no file"):
        read(tmp_path / "pipe")
    with pytest.raises(UserError, match="is no file: name best.safetensors of a run"):
        load_metadata(tmp_path)


@pytest.mark.parametrize("damaged", [lambda content: content[:-2], lambda content: b"", lambda content: b"\xff" * 100, None])
def test_damaged_checkpoint_is_named(damaged, checkpoint):
    checkpoint.write_bytes(damaged(checkpoint.read_bytes())) if damaged else checkpoint.unlink()
    with pytest.raises(UserError, match="weights.safetensors"):
        load_checkpoint(checkpoint)


def test_another_network_is_named(checkpoint):
    with pytest.raises(UserError, match=r"weights.safetensors holds another network: .*\[.*\] is"):
        load_checkpoint(checkpoint, Config.of(filters=4, depth=1).network)


@pytest.mark.parametrize(
    "weights, about, words",
    [
        ({"w": 1.0}, None, "not written by a train script"),
        ({}, {"colour": "red"}, "another version of the project .*colour"),
        ({}, {"filters": 4}, "holds another network"),
        ({"head/bias": np.nan}, {}, "is of no use: head/bias is not finite"),
        ({"down0/conv1/kernel": np.inf}, {}, "is of no use: down0/conv1/kernel is not finite"),
        (
            {"down0/bn1/moving_variance": -1},
            {},
            "is of no use: down0/bn1/moving_variance is not finite, or a negative variance",
        ),
    ],
)
def test_what_cannot_predict_is_refused(weights, about, words, checkpoint):
    """weights: name -> what its values become. about: options that become others; None: nothing is told."""
    values, _, metadata = load_checkpoint(checkpoint)
    values |= {name: np.full_like(values.get(name, np.float32(0)), value) for name, value in weights.items()}
    metadata = {} if about is None else {**metadata, "config": metadata["config"] | about}
    save_checkpoint(checkpoint, {name: tf.constant(value) for name, value in values.items()}, {}, **metadata)
    with pytest.raises(UserError, match=words):
        read_checkpoint(checkpoint)


def test_a_failed_write_keeps_the_old_file(checkpoint, monkeypatch):
    before = checkpoint.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(checkpoint, {}, {})
    assert checkpoint.read_bytes() == before
    assert [*checkpoint.parent.iterdir()] == [checkpoint], "no half file stays behind"
