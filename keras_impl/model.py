"""The U-Net as a functional model of Keras 3.

Ronneberger et al. 2015, arXiv 1505.04597. Unlike the paper the defaults pad every convolution, so
that the logits are as large as the image, use batch normalization, and ELU. The same file in
lowlevel/ and highlevel/ holds the same network, row by row.

The API: a layer makes its variables when it is first called; calls on a symbolic tensor form a
graph, and that is the model.
"""

from common.padding import check_size
from common.replicas import average, drawn_for_batch, moments
from common.shapes import skip_crop
from common.weights import assign_weights, initial_weights

import keras
import tensorflow as tf
from keras import layers

keras.config.set_image_data_format("channels_last")  # whatever ~/.keras/keras.json says

# --- by hand: the fused kernel, which tf.layers have, and words for a size that does not fit ---


class FusedBatchNormalization(layers.BatchNormalization):
    """`BatchNormalization` in one kernel: on a CPU a step takes a fifth less, in bfloat16 a third.

    It moves towards the variance times M/(M-1), M = images * height * width, as tf.layers do.
    """

    def call(self, x, training=False):
        training = bool(training and self.trainable)  # frozen, its statistics stand still
        x, new_mean, new_variance = tf.compat.v1.nn.fused_batch_norm(
            x, scale=self.gamma, offset=self.beta, mean=self.moving_mean,
            variance=self.moving_variance, epsilon=self.epsilon, is_training=training,
            exponential_avg_factor=1 - self.momentum,
        )  # fmt: skip
        if training:  # each device has normalized by itself: the mean of their statistics stays
            new_mean, new_variance = average([new_mean, new_variance])
            self.moving_mean.assign(new_mean)
            self.moving_variance.assign(new_variance)
        return x


class GlobalBatchNormalization(layers.BatchNormalization):
    """On several devices: `synchronized=True` takes E[x^2] - E[x]^2, and loses what they share."""

    def _moments(self, inputs, mask):
        return moments(inputs)


class GlobalDropout(layers.Dropout):
    """On several devices: all would drop the same values, each of its own images."""

    def call(self, inputs, training=False):
        call = super().call
        return drawn_for_batch(lambda x: call(x, training=training), inputs)


class FunctionalUNet(keras.Model):
    """A functional model that names the sizes that fit, where a concatenation would only fail."""

    def __init__(self, network, inputs, outputs):
        super().__init__(inputs=inputs, outputs=outputs)
        self.network = network
        self._distribute_strategy = None  # or `fit` builds it anew, of a mean over hosts that fails

    def call(self, images, training=None, mask=None):
        check_size(images, self.network)
        return super().call(images, training=training)

    def train_step(self, batch):  # on several hosts `fit` takes a mean over axis 0 of its logs
        logs = super().train_step(batch)
        several = tf.distribute.has_strategy()
        return {name: value[None] if several else value for name, value in logs.items()}


# --- the network ---


def UNet(network):
    """model(images, training=False) -> logits: [N, H, W, channels] in 0..1 -> [N, H, W, classes].

    Height and width are multiples of 2**depth; with padding "valid" they are what `shapes.missing`
    asks for, and the logits are smaller by `shapes.margin`. network: `config.network`.

    Level i: height H / 2**i, width W / 2**i, C = filters * 2**i.
    """
    # "mixed": computes in bfloat16, and keeps the weights in float32
    policy = "mixed_bfloat16" if network.precision == "bfloat16" else network.precision
    keras.config.set_dtype_policy(policy)  # global: for every layer made from here on
    images = x = keras.Input([None, None, network.channels], dtype=network.precision)
    skips = []
    for i in range(network.depth):
        filters = network.filters * 2**i
        x = double_conv(x, filters, f"down{i}", network)  # [N, H, W, C] of level i
        skips.append(x)
        x = layers.MaxPooling2D(2, strides=2, padding="valid")(x)
    filters = network.filters * 2**network.depth
    x = double_conv(x, filters, f"down{network.depth}", network)
    if network.dropout:  # "at the end of the contracting path", section 3.1
        dropout = GlobalDropout if tf.distribute.has_strategy() else layers.Dropout
        x = dropout(network.dropout, seed=network.seed, name="dropout")(x)
    for i in reversed(range(network.depth)):
        filters = network.filters * 2**i
        x = layers.Conv2DTranspose(filters, 2, strides=2, padding="valid", name=f"up{i}_deconv")(x)
        skip, crop = skips[i], skip_crop(network, i)
        if crop:  # "valid" only
            skip = layers.Cropping2D(crop)(skip)
        x = layers.Concatenate(axis=-1)([skip, x])  # [N, H, W, 2C]
        x = double_conv(x, filters, f"up{i}", network)
    dtype = network.variable_dtype  # bfloat16 ends here: logits need more than 8 bits
    logits = layers.Conv2D(network.classes, 1, dtype=dtype, name="head")(x)
    model = FunctionalUNet(network, inputs=images, outputs=logits)
    # the same start in all three, in the place of what the layers have drawn
    assign_weights(named_weights(model), initial_weights(network))
    return model


def double_conv(x, filters, name, network):
    """Twice: 3x3 convolution, batch normalization, activation."""
    use_bias = network.batch_norm == "none"
    for k in (1, 2):
        x = layers.Conv2D(
            filters, 3, padding=network.padding, use_bias=use_bias, name=f"{name}_conv{k}"
        )(x)
        if network.batch_norm != "none":
            fused, momentum = network.batch_norm == "fused", network.bn_momentum
            several = tf.distribute.has_strategy()
            stock = GlobalBatchNormalization if several else layers.BatchNormalization
            bn = FusedBatchNormalization if fused else stock
            x = bn(momentum=momentum, epsilon=network.bn_epsilon, name=f"{name}_bn{k}")(x)
        x = layers.Activation(network.activation)(x)
    return x


def named_weights(model):
    """Canonical name, as "down0/conv1/kernel" -> variable, in the order of the forward pass."""
    weights = {}
    for layer in model.layers:
        # Keras: "down0_conv1/kernel", for a layer's name has no slash; .value: the tf.Variable
        weights |= {weight.path.replace("_", "/", 1): weight.value for weight in layer.weights}
        if layer.name == "dropout":  # the seed and the number of calls, no weight to Keras
            weights["dropout/state"] = layer.seed_generator.state.value
    return weights
