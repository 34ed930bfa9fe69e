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


def begun(implementation, config):
    """An implementation in its training."""
    training = Built(implementation, config, exact.load(implementation))
    assert "iterations" in training.state
    return training


@pytest.mark.parametrize(("writer", "optimizer"), [*((name, "adam") for name in IMPLEMENTATIONS), ("highlevel", "sgd")])
def test_every_implementation_goes_on_from_every_other(writer, optimizer, tmp_path):
    config = Config.of(filters=2, depth=1, optimizer=optimizer, **EXACT_CONSTANTS)
    batches = [random_batch(config, seed=k) for k in range(4)]
    uninterrupted = begun(writer, config)
    for k, batch in enumerate(batches):
        uninterrupted.train_step(*batch)
        if k == 1:
            save_checkpoint(tmp_path / "half.safetensors", uninterrupted.weights, uninterrupted.state, step=2)
    weights, state, metadata = load_checkpoint(tmp_path / "half.safetensors", config.network)
    assert metadata == {"step": 2} and int(state["iterations"]) == 2
    for reader in IMPLEMENTATIONS:
        training = begun(reader, config)
        assert training.state.keys() == state.keys(), "the same names in all three"
        training.train_step(*batches[3])  # whatever was there before is overwritten
        assign_weights(training.weights, weights)
        assign_weights(training.state, state)
        for batch in batches[2:]:
            training.train_step(*batch)
        for name, weight in training.weights.items():
            np.testing.assert_array_equal(weight.numpy(), uninterrupted.weights[name].numpy(), err_msg=f"{reader}: {name}")


def test_a_new_optimizer_is_at_rest(implementation):
    """Making it moves no weight, even where, as in v1, its moments come from a first step."""
    config = Config.of(filters=2, depth=1)
    training = begun(implementation, config)
    for name, value in initial_weights(config.network).items():
        np.testing.assert_array_equal(training.weights[name].numpy(), value, err_msg=name)
    assert all(not value.numpy().any() for value in training.state.values())


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
