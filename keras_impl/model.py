"""The U-Net as a functional model of Keras 3.

Ronneberger, Fischer, Brox 2015: "U-Net: Convolutional Networks for Biomedical Image Segmentation", arXiv 1505.04597.
Unlike the paper the defaults pad every convolution, so that the logits are as large as the image, normalize every
batch, and use ELU. The same file in lowlevel/ and highlevel/ holds the same network, row by row.
"""

from common import shapes
from common.weights import assign_weights, initial_weights

import keras
import tensorflow as tf
from keras import layers

keras.config.set_image_data_format("channels_last")  # whatever ~/.keras/keras.json says

# --- what Keras 3 does not have ---


class PadInput(layers.Layer):
    """[N, H, W, C] of any size -> the next size that fits through the U, reflected at the borders."""

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config

    def call(self, images):
        return shapes.pad_input(images, self.config)


class CropOutput(PadInput):
    """Cuts from the logits what `PadInput` added."""

    def call(self, logits, images):
        return shapes.crop_output(logits, images, self.config)


class FusedBatchNormalization(layers.BatchNormalization):
    """`BatchNormalization` through TensorFlow's fused kernel, which Keras 3 has no switch for.

    It stores the variance times N*H*W / (N*H*W - 1), `BatchNormalization` does not.
    """

    def call(self, x, training=False):
        x, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x,
            self.gamma,
            self.beta,
            self.moving_mean,
            self.moving_variance,
            self.epsilon,
            is_training=training,
            exponential_avg_factor=1 - self.momentum,
        )
        if training:
            self.moving_mean.assign(mean)
            self.moving_variance.assign(variance)
        return x


class Head(layers.Conv2D):
    """`Conv2D` with its bias added by BiasAdd, as tf.nn and tf.layers add it.

    Keras adds the bias of a single channel with AddV2, whose gradient sums the same numbers in another order.
    """

    def call(self, x):
        return tf.nn.bias_add(self.convolution_op(x, self.kernel), self.bias)


def dtype_policy(config):
    """Keras's name for the precision; its bfloat16 without "mixed" would keep the weights in bfloat16 too."""
    return "mixed_bfloat16" if config.precision == "bfloat16" else config.precision


# --- the network ---


def UNet(config):
    """model(images, training=False) -> logits: [N, H, W, channels] in 0..1 -> [N, H, W, classes], no sigmoid.

    With padding "valid" the logits are smaller by `shapes.margin`. Images need at least `shapes.min_size` pixels.
    """
    dtype = dtype_policy(config)
    images = keras.Input([None, None, config.channels])
    x = PadInput(config, dtype=dtype)(images)
    skips = []
    for i in range(config.depth):
        x = double_conv(x, config, f"down{i}")  # [N, H / 2**i, W / 2**i, filters * 2**i]
        skips.append(x)
        x = layers.MaxPooling2D(2, strides=2, padding="valid", dtype=dtype)(x)
    x = double_conv(x, config, f"down{config.depth}")
    if config.dropout:  # "at the end of the contracting path", section 3.1
        x = layers.Dropout(config.dropout, seed=config.seed, dtype=dtype, name="dropout")(x)
    for i in reversed(range(config.depth)):
        filters = config.filters * 2**i
        x = layers.Conv2DTranspose(filters, 2, strides=2, padding="valid", dtype=dtype, name=f"up{i}_deconv")(x)
        skip, crop = skips[i], shapes.skip_crop(config, i)
        if crop:  # "valid" only
            skip = layers.Cropping2D(crop, dtype=dtype)(skip)
        x = layers.Concatenate(axis=-1, dtype=dtype)([skip, x])  # [N, H / 2**i, W / 2**i, 2 * filters * 2**i]
        x = double_conv(x, config, f"up{i}")
    logits = Head(config.classes, 1, dtype=dtype, name="head")(x)
    model = keras.Model(images, CropOutput(config, dtype=dtype)(logits, images))
    assign_weights(named_weights(model), initial_weights(config))
    return model


def double_conv(x, config, name):
    """Twice: 3x3 convolution, batch normalization, activation."""
    dtype = dtype_policy(config)
    filters = config.filters * 2 ** int(name.strip("downup"))
    for k in (1, 2):
        use_bias = config.batch_norm == "none"
        x = layers.Conv2D(filters, 3, padding=config.padding, use_bias=use_bias, dtype=dtype, name=f"{name}_conv{k}")(x)
        if config.batch_norm != "none":
            normalization = FusedBatchNormalization if config.batch_norm == "fused" else layers.BatchNormalization
            x = normalization(
                momentum=config.bn_momentum,
                epsilon=config.bn_epsilon,
                dtype=dtype,
                name=f"{name}_bn{k}",
            )(x)
        x = layers.Activation(config.activation, dtype=dtype)(x)
    return x


def named_weights(model):
    """Canonical name -> variable, in the order of the forward pass. Keras allows no slash in a layer's name."""
    weights = {}
    for layer in model.layers:
        weights |= {weight.path.replace("_", "/", 1): weight.value for weight in layer.weights}
        if layer.name == "dropout":  # the seed and the number of calls, which Keras does not count as a weight
            weights["dropout/state"] = layer.seed_generator.state.value
    return weights
