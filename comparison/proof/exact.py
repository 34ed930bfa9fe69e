"""The columns without the freedoms that let them part in the last places.

As written, each column does what its users write, and the three agree within rounding. Here each of these freedoms is taken
away, and nothing else, so that what is left must agree to the last bit. docs/differences.md has a section on each:

highlevel   moving averages by Keras's formula: "How a moving average moves"; gradients from a tape and not from tf.gradients:
            "tf.gradients and the tape"; in the order of the forward pass, in which the norm for clipping adds up: "Clipping by
            the global norm"
keras_impl  the bias of a single output channel added by BiasAdd, as elsewhere: "The bias of one output channel"
constants   `ways.EXACT_CONSTANTS`, which every detour through float32 holds: "One minus beta", "Python floats in
            float64 graphs"
"""

from unittest import mock

import highlevel.model
import highlevel.train
import keras_impl.model
from common.device import tf
from common.losses import segmentation_loss
from comparison import columns


def load(implementation):
    """As `columns.load`, with these functions in the place of the column's."""
    code = columns.load(implementation)
    if implementation == "highlevel":
        code.UNet, code.make_train_step = HighlevelUNet, make_highlevel_train_step
    if implementation == "keras_impl":
        code.UNet = keras_unet
    return code


def build(implementation, case):
    """`Built` for a `ways.Case`, in its tier."""
    return columns.Built(implementation, case.config, load(implementation) if case.exact else None)


class HighlevelUNet(highlevel.model.UNet):
    """Its moving averages move as m * momentum + x * (1 - momentum), and not as m - (m - x) * (1 - momentum)."""

    def __call__(self, images, training=False):
        def move(layer, average, value, momentum, inputs_size):
            return average.assign(average * momentum + tf.cast(value, average.dtype) * (1 - momentum))

        with mock.patch.object(tf.compat.v1.layers.BatchNormalization, "_assign_moving_average", move):
            return super().__call__(images, training)


def make_highlevel_train_step(model, config, optimizer=None):
    """`highlevel.train.make_train_step`, but for where the gradients come from and in which order."""
    optimizer = optimizer or highlevel.train.make_optimizer(model, config)

    @tf.function(jit_compile=config.training.jit, autograph=False)
    def train_step(images, masks):
        weights = [weight for weight in highlevel.model.named_weights(model).values() if weight.trainable]
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = segmentation_loss(masks, logits, config)
        scale = None if optimizer.inner is optimizer else highlevel.train.named_state(model, optimizer)["loss_scale"]
        gradients = tape.gradient(loss, weights, scale)
        if scale is not None:
            gradients = [g / scale for g in gradients]
        with tf.name_scope("optimizer"):
            if config.training.clip_norm:
                gradients, _ = tf.clip_by_global_norm(gradients, config.training.clip_norm)
            optimizer.apply_gradients(zip(gradients, weights), global_step=optimizer.iterations)
        return loss

    return train_step


def keras_unet(network):
    """`keras_impl.model.UNet`, whose head adds its bias by BiasAdd; Keras takes AddV2 where there is one channel."""
    model = keras_impl.model.UNet(network)
    head = model.get_layer("head")
    head.call = lambda x: tf.nn.bias_add(head.convolution_op(x, head.kernel), head.bias)
    return model
