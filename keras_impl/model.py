"""The U-Net as a functional model of Keras 3.

Ronneberger et al. 2015, arXiv 1505.04597. Unlike the paper, the defaults pad every convolution
(logits as large as the image) and use batch normalization and ELU. The same file in
lowlevel/ and highlevel/ holds the same network, row by row.

The API: a layer makes its variables at its first call; calls that start at `Input` are the model.
"""

from common.device import tf  # tensorflow, started quietly
from common.shapes import skip_crop
from common.weights import assign_weights, initial_weights

import keras
from keras import layers


def UNet(network):
    """model(images, training=False) -> logits: [N, H, W, channels] in 0..1 -> [N, H, W, classes].

    H and W: multiples of 2**depth. With padding "valid": sizes for which `shapes.missing` is 0, and
    the logits are smaller by `shapes.margin`. Level i, padded: H, W / 2**i, C = filters * 2**i.
    """
    # "mixed": computes in bfloat16 or float16, and keeps the weights in float32
    dtype = f"mixed_{network.precision}" if "16" in network.precision else network.precision
    images = x = keras.Input([None, None, network.channels], dtype=network.precision)
    skips = []
    for i in range(network.depth):
        filters = network.filters * 2**i
        x = double_conv(x, filters, f"down{i}", network, dtype)  # [N, H, W, C] of level i
        skips.append(x)
        x = layers.MaxPooling2D(2, strides=2, padding="valid", dtype=dtype)(x)
    filters = network.filters * 2**network.depth
    x = double_conv(x, filters, f"down{network.depth}", network, dtype)
    if network.dropout:  # "at the end of the contracting path", section 3.1
        x = layers.Dropout(network.dropout, seed=network.seed, dtype=dtype, name="dropout")(x)
    for i in reversed(range(network.depth)):
        filters = network.filters * 2**i
        x = layers.Conv2DTranspose(filters, 2, strides=2, dtype=dtype, name=f"up{i}_deconv")(x)
        skip, crop = skips[i], skip_crop(network, i)
        if crop:  # "valid" only
            skip = layers.Cropping2D(crop, dtype=dtype)(skip)
        x = layers.Concatenate(axis=-1, dtype=dtype)([skip, x])  # [N, H, W, 2C]
        x = double_conv(x, filters, f"up{i}", network, dtype)
    dtype = network.variable_dtype  # mixed precision ends: logits need more bits
    logits = layers.Conv2D(network.classes, 1, dtype=dtype, name="head")(x)
    model = keras.Model(images, logits)
    assign_weights(named_weights(model), initial_weights(network))  # the same start in all three
    return model


def double_conv(x, filters, name, network, dtype):
    """Twice: 3x3 convolution, batch normalization, activation."""
    bias, fused = network.batch_norm == "none", network.batch_norm == "fused"
    momentum, epsilon = network.bn_momentum, network.bn_epsilon
    bn = FusedBatchNormalization if fused else layers.BatchNormalization
    for k in (1, 2):
        x = layers.Conv2D(
            filters, 3, padding=network.padding, use_bias=bias, dtype=dtype, name=f"{name}_conv{k}"
        )(x)
        if network.batch_norm != "none":
            x = bn(momentum=momentum, epsilon=epsilon, dtype=dtype, name=f"{name}_bn{k}")(x)
        x = layers.Activation(network.activation, dtype=dtype)(x)
    return x


# --- by hand: the fused kernel, which tf.layers have ---
class FusedBatchNormalization(layers.BatchNormalization):
    """`BatchNormalization` in one kernel, as tf.layers have it; docs/results.md has what it saves.

    Its variance moves towards that of the batch times M/(M-1), M = images * height * width.
    """

    def call(self, x, training=False):
        training = bool(training and self.trainable)  # frozen, as in Keras, it stands still
        x, new_mean, new_variance = tf.compat.v1.nn.fused_batch_norm(
            x, self.gamma, self.beta, self.moving_mean, self.moving_variance, self.epsilon,
            is_training=training, exponential_avg_factor=1 - self.momentum,
        )  # fmt: skip
        if training:
            self.moving_mean.assign(new_mean)
            self.moving_variance.assign(new_variance)
        return x


def named_weights(model):
    """Canonical name, as "down0/conv1/kernel" -> variable, in the order of the forward pass."""
    weights = {}
    for layer in model.layers:
        # Keras: "down0_conv1/kernel", for a layer's name has no slash; .value: the tf.Variable
        weights |= {weight.path.replace("_", "/", 1): weight.value for weight in layer.weights}
        if layer.name == "dropout":  # seed and number of calls, which Keras counts as no weight
            weights["dropout/state"] = layer.seed_generator.state.value
    return weights
