"""The U-Net in raw tf.nn operations and explicit variables.

Ronneberger, Fischer, Brox 2015: "U-Net: Convolutional Networks for Biomedical Image Segmentation", arXiv 1505.04597.
Unlike the paper the defaults pad every convolution, so that the logits are as large as the image, normalize every
batch, and use ELU. The same file in highlevel/ and keras_impl/ holds the same network, row by row.
"""

from common import shapes
from common.weights import initial_weights, is_trainable

import tensorflow as tf

# --- what tf.layers and Keras bring along ---


def conv2d(x, kernel, bias=None, padding="same"):
    """x: [N, H, W, in], kernel: [h, w, in, out], bias: [out] -> [N, H, W, out], or smaller with padding "valid"."""
    x = tf.nn.conv2d(x, tf.cast(kernel, x.dtype), strides=1, padding=padding.upper())
    return x if bias is None else tf.nn.bias_add(x, tf.cast(bias, x.dtype))


def conv2d_transpose(x, kernel, bias):
    """x: [N, H, W, in], kernel: [2, 2, out, in], bias: [out] -> [N, 2H, 2W, out], the gradient of a strided convolution."""
    n, h, w, _ = tf.unstack(tf.shape(x))
    x = tf.nn.conv2d_transpose(x, tf.cast(kernel, x.dtype), [n, 2 * h, 2 * w, kernel.shape[2]], strides=2, padding="VALID")
    return tf.nn.bias_add(x, tf.cast(bias, x.dtype))


def batch_norm(x, gamma, beta, moving_mean, moving_variance, training, fused, momentum, epsilon):
    """Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1, over N, H and W. Moves the statistics when training.

    x: [N, H, W, C]; everything else: [C], in float32 or wider.
    """
    if fused:  # one kernel; it stores the variance times N*H*W / (N*H*W - 1), the explicit form and Keras 3 do not
        x, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, gamma, beta, moving_mean, moving_variance, epsilon, is_training=training, exponential_avg_factor=1 - momentum
        )
        if training:
            moving_mean.assign(mean)
            moving_variance.assign(variance)
        return x
    wide = tf.cast(x, gamma.dtype)  # the mean of thousands of bfloat16 values needs more than 8 bits
    mean, variance = tf.nn.moments(wide, axes=[0, 1, 2]) if training else (moving_mean, moving_variance)
    if training:
        moving_mean.assign(moving_mean * momentum + mean * (1 - momentum))
        moving_variance.assign(moving_variance * momentum + variance * (1 - momentum))
    return tf.cast(tf.nn.batch_normalization(wide, mean, variance, beta, gamma, epsilon), x.dtype)


def dropout(x, rate, state, training):
    """Srivastava et al. 2014: in training a share `rate` of x is 0 and the rest larger by 1 / (1 - rate).

    state: int64 [2], the seed and the number of calls: a variable that a checkpoint holds. tf.nn.dropout hides its own.
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
        self.weights = {
            name: tf.Variable(value, name=name, trainable=is_trainable(name)) for name, value in initial_weights(config).items()
        }

    def __call__(self, images, training=False):
        config, weights = self.config, self.weights
        x = shapes.pad_input(tf.cast(images, config.precision), config)
        skips = []
        for i in range(config.depth):
            x = self.double_conv(x, f"down{i}", training)  # [N, H / 2**i, W / 2**i, filters * 2**i]
            skips.append(x)
            x = tf.nn.max_pool2d(x, 2, strides=2, padding="VALID")
        x = self.double_conv(x, f"down{config.depth}", training)
        if config.dropout:  # "at the end of the contracting path", section 3.1
            x = dropout(x, config.dropout, weights["dropout/state"], training)
        for i in reversed(range(config.depth)):
            x = conv2d_transpose(x, weights[f"up{i}/deconv/kernel"], weights[f"up{i}/deconv/bias"])
            skip, crop = skips[i], shapes.skip_crop(config, i)
            if crop:  # "valid" only
                skip = skip[:, crop:-crop, crop:-crop]
            x = tf.concat([skip, x], axis=-1)  # [N, H / 2**i, W / 2**i, 2 * filters * 2**i]
            x = self.double_conv(x, f"up{i}", training)
        logits = conv2d(x, weights["head/kernel"], weights["head/bias"])
        return shapes.crop_output(logits, images, config)

    def double_conv(self, x, name, training):
        """Twice: 3x3 convolution, batch normalization, activation."""
        config, weights = self.config, self.weights
        for k in (1, 2):
            x = conv2d(x, weights[f"{name}/conv{k}/kernel"], weights.get(f"{name}/conv{k}/bias"), config.padding)
            if config.batch_norm != "none":
                x = batch_norm(
                    x,
                    **{s: weights[f"{name}/bn{k}/{s}"] for s in ("gamma", "beta", "moving_mean", "moving_variance")},
                    training=training,
                    fused=config.batch_norm == "fused",
                    momentum=config.bn_momentum,
                    epsilon=config.bn_epsilon,
                )
            x = getattr(tf.nn, config.activation)(x)
        return x


def named_weights(model):
    """Canonical name -> variable, in the order of the forward pass."""
    return model.weights
