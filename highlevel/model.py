"""The U-Net in tf.layers, the API of TensorFlow 1 that lives on as tf.compat.v1.layers.

Ronneberger et al. 2015, arXiv 1505.04597. Unlike the paper, the defaults pad every convolution
(logits as large as the image) and use batch normalization and ELU. The same file in
lowlevel/ and keras_impl/ holds the same network, row by row.

The API: one call of `layers.conv2d(x, filters, 3, name=...)` makes the variables and applies them.
"""

from common.device import tf  # tensorflow, started quietly
from common.shapes import min_size, missing, skip_crop
from common.weights import assign_weights, initial_weights, weight_shapes

layers = tf.compat.v1.layers


class UNet(tf.Module):
    """model(images, training=False) -> logits: [N, H, W, channels] in 0..1 -> [N, H, W, classes].

    H and W: multiples of 2**depth. With padding "valid": sizes for which `shapes.missing` is 0, and
    the logits are smaller by `shapes.margin`. Level i, padded: H, W / 2**i, C = filters * 2**i.
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
        assign_weights(named_weights(self), initial_weights(network))  # the same start in all three

    # TensorFlow 1 ran it once, to build a graph. Here every call would make new variables: the
    # decorator keeps them by name.
    @tf.compat.v1.keras.utils.track_tf1_style_variables
    def __call__(self, images, training=False):
        with tf.compat.v1.variable_scope("", custom_getter=float32_variable):
            return self.forward(images, training)

    def forward(self, images, training):
        network = self.network
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
            x = self.dropout(x, training)
        for i in reversed(range(network.depth)):
            filters = network.filters * 2**i
            x = layers.conv2d_transpose(x, filters, 2, strides=2, name=f"up{i}/deconv")
            skip, crop = skips[i], skip_crop(network, i)
            if crop:  # "valid" only
                skip = skip[:, crop:-crop, crop:-crop]
            x = tf.concat([skip, x], axis=-1)  # [N, H, W, 2C]
            x = self.double_conv(x, filters, f"up{i}", training)
        x = tf.cast(x, network.variable_dtype)  # mixed precision ends: logits need more bits
        return layers.conv2d(x, network.classes, 1, name="head")

    def double_conv(self, x, filters, name, training):
        """Twice: 3x3 convolution, batch normalization, activation."""
        network = self.network
        bias, fused = network.batch_norm == "none", network.batch_norm == "fused"
        momentum, epsilon = network.bn_momentum, network.bn_epsilon
        for k in (1, 2):
            x = layers.conv2d(
                x, filters, 3, padding=network.padding, use_bias=bias, name=f"{name}/conv{k}"
            )
            if network.batch_norm != "none":
                # moves its statistics by itself, for which TensorFlow 1 had to run UPDATE_OPS
                x = layers.batch_normalization(
                    x, momentum=momentum, epsilon=epsilon, training=training, fused=fused,
                    name=f"{name}/bn{k}",
                )  # fmt: skip
            x = getattr(tf.nn, network.activation)(x)
        return x

    # --- by hand: a dropout that can be resumed, and float32 variables in mixed precision ---
    def dropout(self, x, training):
        """Srivastava et al. 2014: in training zeroes a random share `rate`: x * mask / (1 - rate).

        The state, int64 [2], holds the seed and the number of calls so far, so that a checkpoint
        holds it too: the counter inside of layers.dropout is lost when a run resumes.
        """
        if not training:
            return x
        state = self.dropout_state
        seed = tf.cast(state, tf.int32)  # as Keras casts its own
        x = tf.nn.experimental.stateless_dropout(x, self.network.dropout, seed)
        state.assign_add([0, 1])
        return x


def float32_variable(getter, name, dtype, **kwargs):
    """layers.conv2d takes the dtype of x for its variables: for 16 bits make float32, and cast."""
    if dtype.size > 2:
        return getter(name, dtype=dtype, **kwargs)
    return tf.cast(getter(name, dtype=tf.float32, **kwargs), dtype)


def named_weights(model):
    """Canonical name, as "down0/conv1/kernel" -> variable, in the order of the forward pass."""
    variables = {variable.name.removesuffix(":0"): variable for variable in model.variables}
    # `model.variables` has another order; one that should not be there comes last
    return {name: variables.pop(name) for name in weight_shapes(model.network)} | variables
