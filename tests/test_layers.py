"""The table of the U: what is read off it must be what the three implementations do."""

from pathlib import Path

from common.config import Config, UserError
from common.layers import table
from common.weights import assign_weights, initial_weights
from comparison import columns
from comparison.proof import finder

import numpy as np
import pytest


def test_table_of_a_small_u():
    """Depth 1, counted by hand: 6x5 pixels are padded to 6x6, and halved once."""
    found = table(Config.of(filters=2, depth=1, channels=3, classes=4, batch_norm="none", dropout=0.5).network, (6, 5))
    block = ("conv1", "act1", "conv2", "act2")
    expected = [(f"down0/{part}", (6, 6, 2)) for part in block] + [("down0/pool", (3, 3, 2))]
    expected += [(f"down1/{part}", (3, 3, 4)) for part in block] + [("dropout", (3, 3, 4)), ("up0/deconv", (6, 6, 2))]
    expected += [("up0/concat", (6, 6, 4)), *((f"up0/{part}", (6, 6, 2)) for part in block), ("head", (6, 6, 4))]
    assert [(layer.name, layer.outputs) for layer in found] == expected
    assert all(x.kind == x.name.rpartition("/")[2].rstrip("12").replace("head", "conv") for x in found)
    assert found[0].inputs == (6, 6, 3) and all(a.outputs == b.inputs for a, b in zip(found, found[1:]))
    assert found[0].weights == {"kernel": (3, 3, 3, 2), "bias": (2,)} and found[-1].weights["kernel"] == (1, 1, 2, 4)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_shapes_are_what_the_layers_compute(implementation, padding):
    config = Config.of(filters=2, depth=2, channels=3, classes=2, padding=padding, batch_norm="explicit", dropout=0.5)
    layers = table(config.network)
    code = columns.load(implementation)
    model = code.UNet(config.network)
    assign_weights(code.named_weights(model), initial_weights(config.network))
    images = np.zeros((1, *layers[0].inputs), np.float32)
    found = finder.layers(model, config, images, training=False)[0]
    assert {name: value.shape[1:] for name, value in found} == {layer.name: layer.outputs for layer in layers}


def test_channels_and_classes_must_be_known():
    known = Config.of(channels=3, dataset="folder", data_dir=Path("."))
    with pytest.raises(UserError, match="known once the data is read, or with --classes$"):
        table(known.network)
    with pytest.raises(UserError, match="with --channels and --classes$"):
        initial_weights(known.replace(channels=None).network)
