"""The U-Net as a functional model of Keras 3.

Ronneberger, Fischer, Brox 2015: "U-Net: Convolutional Networks for Biomedical Image Segmentation",
arXiv 1505.04597. Unlike the paper the defaults pad every convolution, so that the logits are as
large as the image, normalize every batch, and use ELU. The same file in lowlevel/ and highlevel/
holds the same network, row by row.
"""

from common.padding import check_size
from common.shapes import skip_crop
from common.weights import assign_weights, initial_weights

import keras
import tensorflow as tf
from keras import layers

keras.config.set_image_data_format("channels_last")  # whatever ~/.keras/keras.json says

# --- what Keras 3 does not have ---


class FusedBatchNormalization(layers.BatchNormalization):
    """`BatchNormalization` in one kernel: on a CPU a step gains a fifth, in bfloat16 more.

    It stores the variance times N/(N-1), N = images * height * width; `BatchNormalization`: N/N.
    """

    def call(self, x, training=False):
        x, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, self.gamma, self.beta, self.moving_mean, self.moving_variance, self.epsilon,
            is_training=training, exponential_avg_factor=1 - self.momentum,
        )  # fmt: skip
        if training:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return x


class FunctionalUNet(keras.Model):
    """A functional model that names the sizes that fit, where a concatenation would only fail."""

    def __init__(self, network, **ends):
        super().__init__(**ends)
        self.network = network

    def call(self, images, training=None, mask=None):
        check_size(images, self.network)
        return super().call(images, training=training)


# --- the network ---


def UNet(network):
    """model(images, training=False) -> logits: [N, H, W, channels] in 0..1 -> [N, H, W, classes].

    Height and width are multiples of 2**depth; with padding "valid" they are what `shapes.missing`
    asks for, and the logits are smaller by `shapes.margin`. network: `config.network`.

    Level i: height H / 2**i, width W / 2**i, C = filters * 2**i.
    """
    # "mixed": the weights stay float32. Of all layers that are made from here on, as Keras has it
    policy = "mixed_bfloat16" if network.precision == "bfloat16" else network.precision
    keras.config.set_dtype_policy(policy)
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
        x = layers.Dropout(network.dropout, seed=network.seed, name="dropout")(x)
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
            bn = FusedBatchNormalization if fused else layers.BatchNormalization
            x = bn(momentum=momentum, epsilon=network.bn_epsilon, name=f"{name}_bn{k}")(x)
        x = layers.Activation(network.activation)(x)
    return x


def named_weights(model):
    """Canonical name -> variable, in the order of the forward pass; Keras names have no slash."""
    weights = {}
    for layer in model.layers:
        weights |= {weight.path.replace("_", "/", 1): weight.value for weight in layer.weights}
        if layer.name == "dropout":  # the seed and the number of calls, no weight to Keras
            weights["dropout/state"] = layer.seed_generator.state.value
    return weights
