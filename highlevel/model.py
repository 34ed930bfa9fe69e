"""The U-Net in tf.layers, which live on as tf.compat.v1.layers.

Ronneberger, Fischer, Brox 2015: "U-Net: Convolutional Networks for Biomedical Image Segmentation", arXiv 1505.04597.
Unlike the paper the defaults pad every convolution, so that the logits are as large as the image, normalize every
batch, and use ELU. The same file in lowlevel/ and keras_impl/ holds the same network, row by row.
"""

import contextlib
import warnings

from common import shapes
from common.weights import assign_weights, initial_weights, weight_shapes

import tensorflow as tf

layers = tf.compat.v1.layers

# --- what raw operations and Keras do not need ---


def master_weights(getter, name, dtype, **kwargs):
    """A variable getter: tf.layers make their weights in the dtype of their input, training needs them in float32."""
    if dtype != tf.bfloat16:
        return getter(name, dtype=dtype, **kwargs)
    return tf.cast(getter(name, dtype=tf.float32, **kwargs), tf.bfloat16)


@contextlib.contextmanager
def v1_scope():
    """What the layers are called in. Without their warning of deprecation: known, and the reason for this column."""
    with warnings.catch_warnings(), tf.compat.v1.variable_scope("", custom_getter=master_weights):
        warnings.simplefilter("ignore")
        yield


def dropout(x, rate, state, training):
    """Srivastava et al. 2014: in training a share `rate` of x is 0 and the rest larger by 1 / (1 - rate).

    state: int64 [2], the seed and the number of calls: a variable that a checkpoint holds. layers.dropout hides its own.
    """
    if not training:
        return x
    x = tf.nn.experimental.stateless_dropout(x, rate, seed=tf.cast(state, tf.int32))
    state.assign_add([0, 1])
    return x


# --- the network ---


class UNet(tf.Module):
    """model(images, training=False) -> logits: [N, H, W, channels] in 0..1 -> [N, H, W, classes], no sigmoid.

    With padding "valid" the logits are smaller by `shapes.margin`. Images need at least `shapes.min_size` pixels.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        if config.dropout:
            self.dropout_state = tf.Variable([config.seed, 0], dtype=tf.int64, trainable=False, name="dropout/state")
        size = shapes.min_size(config)
        self(tf.zeros([1, size, size, config.channels]))  # tf.layers make their variables in the first call
        assign_weights(named_weights(self), initial_weights(config))

    @tf.compat.v1.keras.utils.track_tf1_style_variables  # without it every call would make new variables
    @v1_scope()
    def __call__(self, images, training=False):
        config = self.config
        x = shapes.pad_input(tf.cast(images, config.precision), config)
        skips = []
        for i in range(config.depth):
            x = self.double_conv(x, f"down{i}", training)  # [N, H / 2**i, W / 2**i, filters * 2**i]
            skips.append(x)
            x = layers.max_pooling2d(x, 2, strides=2, padding="valid")
        x = self.double_conv(x, f"down{config.depth}", training)
        if config.dropout:  # "at the end of the contracting path", section 3.1
            x = dropout(x, config.dropout, self.dropout_state, training)
        for i in reversed(range(config.depth)):
            filters = config.filters * 2**i
            x = layers.conv2d_transpose(x, filters, 2, strides=2, padding="valid", name=f"up{i}/deconv")
            skip, crop = skips[i], shapes.skip_crop(config, i)
            if crop:  # "valid" only
                skip = skip[:, crop:-crop, crop:-crop]
            x = tf.concat([skip, x], axis=-1)  # [N, H / 2**i, W / 2**i, 2 * filters * 2**i]
            x = self.double_conv(x, f"up{i}", training)
        logits = layers.conv2d(x, config.classes, 1, name="head")
        return shapes.crop_output(logits, images, config)

    def double_conv(self, x, name, training):
        """Twice: 3x3 convolution, batch normalization, activation."""
        config = self.config
        filters = config.filters * 2 ** int(name.strip("downup"))
        for k in (1, 2):
            use_bias = config.batch_norm == "none"
            x = layers.conv2d(x, filters, 3, padding=config.padding, use_bias=use_bias, name=f"{name}/conv{k}")
            if config.batch_norm != "none":
                x = layers.batch_normalization(
                    x,
                    training=training,
                    fused=config.batch_norm == "fused",
                    momentum=config.bn_momentum,
                    epsilon=config.bn_epsilon,
                    name=f"{name}/bn{k}",
                )
            x = getattr(tf.nn, config.activation)(x)
        return x


def named_weights(model):
    """Canonical name -> variable, in the order of the forward pass. The tracked variables come sorted by path."""
    variables = {variable.name.removesuffix(":0"): variable for variable in model.variables}
    return {name: variables.pop(name) for name in weight_shapes(model.config)} | variables
