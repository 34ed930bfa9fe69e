"""The U-Net in tf.layers, the API of TensorFlow 1 that lives on as tf.compat.v1.layers.

The API: one call of `layers.conv2d(x, filters, 3, name=...)` makes the variables and applies them.
Today's shim: TensorFlow 1 called it once, to build its graph. Called eagerly, each call would make
new variables; `track_tf1_style_variables` on a method of a `tf.Module` keeps them by name.

Ronneberger et al. 2015, arXiv 1505.04597. Unlike the paper the defaults pad every convolution, so
that the logits are as large as the image, use batch normalization, and ELU. The same file in
lowlevel/ and keras_impl/ holds the same network, row by row.
"""

import contextlib
import warnings

from common.padding import check_size
from common.replicas import drawn_for_batch, moments, replicas
from common.shapes import min_size, missing, skip_crop
from common.weights import assign_weights, initial_weights, weight_shapes

import tensorflow as tf

layers = tf.compat.v1.layers
warnings.filterwarnings("ignore", r"`(tf\.layers|layer\.updates)")  # "is deprecated": as wanted

# --- by hand: float32 variables in mixed precision, and a dropout that can be resumed ---


@contextlib.contextmanager
def float32_variables():
    """tf.layers give variables the dtype of x: for bfloat16 make float32, and cast at each use."""

    def master_weights(getter, name, dtype, trainable, **kwargs):
        # what several devices write to a moving statistic becomes their mean (by default it is
        # made at each read instead, for which all devices have to come)
        mean = tf.VariableAggregation.NONE if trainable else tf.VariableAggregation.MEAN
        kwargs |= {"synchronization": tf.VariableSynchronization.AUTO, "aggregation": mean}
        if dtype != tf.bfloat16:
            return getter(name, dtype=dtype, trainable=trainable, **kwargs)
        return tf.cast(getter(name, dtype=tf.float32, trainable=trainable, **kwargs), tf.bfloat16)

    with tf.compat.v1.variable_scope("", custom_getter=master_weights):
        yield


def global_batch_norm(x, training, name, **settings):
    """layers.batch_normalization; without `fused` by the moments of the batch on all devices."""
    layer = layers.BatchNormalization(name=name, _scope=name, **settings)
    layer._moments = lambda x, *_, **__: moments(x)
    return layer(x, training=training)


def dropout(x, rate, state, training):
    """Srivastava et al. 2014, but scaled in training and not in testing: x * mask / (1 - rate).

    state: int64 [2], the seed and the number of calls so far, in a variable, so that a checkpoint
    holds it: the counter in the kernel of layers.dropout is lost when a run goes on.
    """
    if not training:
        return x
    seed = tf.cast(state, tf.int32)
    x = drawn_for_batch(lambda x: tf.nn.experimental.stateless_dropout(x, rate, seed), x)
    state.assign_add([0, 1])
    return x


# --- the network ---


class UNet(tf.Module):
    """model(images, training=False) -> logits: [N, H, W, channels] in 0..1 -> [N, H, W, classes].

    Height and width are multiples of 2**depth; with padding "valid" they are what `shapes.missing`
    asks for, and the logits are smaller by `shapes.margin`. network: `config.network`.

    Level i: height H / 2**i, width W / 2**i, C = filters * 2**i.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network
        if network.dropout:
            state = tf.constant([network.seed, 0], tf.int64)
            self.dropout_state = tf.Variable(state, trainable=False, name="dropout/state")
        size = min_size(network)
        size += missing(size, network)  # up to the next that fits
        self(tf.zeros([1, size, size, network.channels]))  # the first call makes the variables
        # the same start in all three, in the place of what the layers have drawn
        assign_weights(named_weights(self), initial_weights(network))

    @tf.compat.v1.keras.utils.track_tf1_style_variables  # outside of the scope, which it opens
    @float32_variables()
    def __call__(self, images, training=False):
        network = self.network
        check_size(images, network)
        x = tf.cast(images, network.precision)
        skips = []
        for i in range(network.depth):
            filters = network.filters * 2**i
            x = self.double_conv(x, filters, f"down{i}", training)  # [N, H, W, C] of level i
            skips.append(x)
            x = layers.max_pooling2d(x, 2, strides=2, padding="valid")
        filters = network.filters * 2**network.depth
        x = self.double_conv(x, filters, f"down{network.depth}", training)
        if network.dropout:  # "at the end of the contracting path", section 3.1
            x = dropout(x, network.dropout, self.dropout_state, training)
        for i in reversed(range(network.depth)):
            filters = network.filters * 2**i
            x = layers.conv2d_transpose(
                x, filters, 2, strides=2, padding="valid", name=f"up{i}/deconv"
            )
            skip, crop = skips[i], skip_crop(network, i)
            if crop:  # "valid" only
                skip = skip[:, crop:-crop, crop:-crop]
            x = tf.concat([skip, x], axis=-1)  # [N, H, W, 2C]
            x = self.double_conv(x, filters, f"up{i}", training)
        x = tf.cast(x, network.variable_dtype)  # bfloat16 ends here: logits need more than 8 bits
        return layers.conv2d(x, network.classes, 1, name="head")

    def double_conv(self, x, filters, name, training):
        """Twice: 3x3 convolution, batch normalization, activation."""
        network = self.network
        use_bias = network.batch_norm == "none"
        for k in (1, 2):
            x = layers.conv2d(
                x, filters, 3, padding=network.padding, use_bias=use_bias, name=f"{name}/conv{k}"
            )
            if network.batch_norm != "none":
                fused, momentum = network.batch_norm == "fused", network.bn_momentum
                normalize = layers.batch_normalization if replicas() == 1 else global_batch_norm
                # in a tf.function it moves its statistics by itself, without UPDATE_OPS
                x = normalize(
                    x, training=training, fused=fused, momentum=momentum,
                    epsilon=network.bn_epsilon, name=f"{name}/bn{k}",
                )  # fmt: skip
            x = getattr(tf.nn, network.activation)(x)
        return x


def named_weights(model):
    """Canonical name, as "down0/conv1/kernel" -> variable, in the order of the forward pass.

    `model.variables` is sorted by name. What is not in the table of the U comes last, to be seen.
    """
    variables = {variable.name.removesuffix(":0"): variable for variable in model.variables}
    return {name: variables.pop(name) for name in weight_shapes(model.network)} | variables
