"""`--preset paper` is the network of Ronneberger et al. 2015: figure 1 in numbers, and a training that runs."""

from common.checkpoint import load_checkpoint
from common.cli import make_parser, parse, read_config
from common.config import Config
from common.weights import is_trainable
from comparison import columns
from comparison.proof.graph import layers
from tests.conftest import IMPLEMENTATIONS
from training.report import read_history

import numpy as np
import pytest
import tensorflow as tf

# figure 1, from left to right: heights and widths of the feature maps, and their channels
FIGURE_1 = [
    *[(570, 64), (568, 64), (282, 128), (280, 128), (138, 256), (136, 256), (66, 512), (64, 512), (30, 1024), (28, 1024)],
    *[(56, 512), (54, 512), (52, 512), (104, 256), (102, 256), (100, 256), (200, 128), (198, 128), (196, 128)],
    *[(392, 64), (390, 64), (388, 64), (388, 2)],
]
# 3x3 and 2x2 kernels and biases of figure 1, added up by hand: contracting 18,842,048 (of which the bottom 14,157,824),
# up-convolutions 2,786,240, expanding 9,402,240, and 64 * 2 + 2 of the head
PARAMETERS = 18_842_048 + 2_786_240 + 9_402_240 + 130


def preset(*options):
    return read_config(parse(make_parser("test", ""), ["--preset", "paper", *options]))


@pytest.mark.parametrize(
    "implementation", ["lowlevel", *(pytest.param(name, marks=pytest.mark.slow) for name in IMPLEMENTATIONS[1:])]
)
def test_the_layers_of_figure_1(implementation):
    config = preset()
    code = columns.load(implementation)
    model = code.UNet(config.network)
    weights = code.named_weights(model)
    assert sum(w.shape.num_elements() for name, w in weights.items() if is_trainable(name)) == PARAMETERS == 31_030_658

    forward = tf.function(lambda images: model(images, training=True), jit_compile=False)
    graph = forward.get_concrete_function(tf.TensorSpec([1, 572, 572, 1])).graph  # traced, not computed
    found = [op.outputs[0].shape for op in graph.get_operations() if op.type in ("Conv2D", "Conv2DBackpropInput")]
    assert [tuple(shape) for shape in found] == [(1, size, size, channels) for size, channels in FIGURE_1]


def test_the_summary_is_figure_1():
    found = [(shape[0], shape[2]) for name, shape, count in layers(preset(), (572, 572)) if count]
    assert found == FIGURE_1
    assert sum(count for _, _, count in layers(preset(), (572, 572))) == PARAMETERS


def test_options_beside_the_preset_count():
    assert preset("--filters", "8", "--loss", "dice_ce").network.filters == 8
    config = preset()
    training = config.training
    assert (training.optimizer, training.momentum, training.loss) == ("sgd", 0.99, "cross_entropy")
    assert config.network.dropout == 0.5
    assert Config().network.filters == 16, "without the preset nothing has changed"


@pytest.mark.slow
def test_the_preset_trains_alike_in_all_three(tmp_path):
    options = "--preset paper --filters 4 --crop-size 188 --images 8 --image-size 96 --validation 0.25 --epochs 2".split()
    histories = []
    for name in IMPLEMENTATIONS:
        columns.load(name).main([*options, "--run-dir", str(tmp_path / name)])
        weights, _, metadata = load_checkpoint(tmp_path / name / "last.safetensors")
        np.testing.assert_array_equal(weights["dropout/state"], [0, 12])  # a draw in each of 12 steps
        assert metadata["config"]["class_weights"] != "balanced", "measured on the training images, and stored"
        histories.append(
            [[row[column] for column in ("loss", "val_loss", "val_dice")] for row in read_history(tmp_path / name)]
        )
    # dropout, crops, deformations and weight maps are the same; 1e-6: the constants of SGD are rounded at other places
    np.testing.assert_allclose(histories[1:], [histories[0]] * 2, atol=1e-6)
