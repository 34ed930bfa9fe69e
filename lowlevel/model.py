"""The U-Net in raw tf.nn operations and explicit variables.

Ronneberger et al. 2015, arXiv 1505.04597. Unlike the paper, the defaults pad every convolution
(logits as large as the image) and use batch normalization and ELU. The same file in
highlevel/ and keras_impl/ holds the same network, row by row.

The API: operations on tensors. You make, name, shape, cast and update every variable yourself.
"""

from common.device import tf  # tensorflow, started quietly
from common.shapes import skip_crop
from common.weights import initial_weights, is_trainable


class UNet(tf.Module):
    """model(images, training=False) -> logits: [N, H, W, channels] in 0..1 -> [N, H, W, classes].

    H and W: multiples of 2**depth. With padding "valid": sizes for which `shapes.missing` is 0, and
    the logits are smaller by `shapes.margin`. Level i, padded: H, W / 2**i, C = filters * 2**i.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network
        # shapes and biases come with these arrays; the other columns state them layer by layer
        self.weights = {
            name: tf.Variable(value, name=name, trainable=is_trainable(name))
            for name, value in initial_weights(network).items()
        }

    def __call__(self, images, training=False):
        network = self.network
        x = tf.cast(images, network.precision)
        skips = []
        for i in range(network.depth):
            x = self.double_conv(x, f"down{i}", training)  # [N, H, W, C] of level i
            skips.append(x)
            x = tf.nn.max_pool2d(x, 2, strides=2, padding="VALID")
        x = self.double_conv(x, f"down{network.depth}", training)
        if network.dropout:  # "at the end of the contracting path", section 3.1
            x = self.dropout(x, training)
        for i in reversed(range(network.depth)):
            x = self.conv2d_transpose(x, f"up{i}/deconv")
            skip, crop = skips[i], skip_crop(network, i)
            if crop:  # "valid" only
                skip = skip[:, crop:-crop, crop:-crop]
            x = tf.concat([skip, x], axis=-1)  # [N, H, W, 2C]
            x = self.double_conv(x, f"up{i}", training)
        x = tf.cast(x, network.variable_dtype)  # mixed precision ends: logits need more bits
        return self.conv2d(x, "head")

    def double_conv(self, x, name, training):
        """Twice: 3x3 convolution, batch normalization, activation."""
        network = self.network
        for k in (1, 2):
            x = self.conv2d(x, f"{name}/conv{k}", network.padding)
            if network.batch_norm != "none":
                x = self.batch_norm(x, f"{name}/bn{k}", training)
            x = getattr(tf.nn, network.activation)(x)
        return x

    # --- by hand: tf.layers and Keras have nearly all of it; the state of a dropout, only Keras ---
    def conv2d(self, x, name, padding="valid"):
        """[N, H, W, in] -> [N, H, W, out], or smaller with "valid"; kernel: [h, w, in, out].

        The variables stay float32 or wider: casts like these are all of "mixed precision".
        """
        kernel, bias = self.weights[f"{name}/kernel"], self.weights.get(f"{name}/bias")
        x = tf.nn.conv2d(x, tf.cast(kernel, x.dtype), strides=1, padding=padding.upper())
        return x if bias is None else tf.nn.bias_add(x, tf.cast(bias, x.dtype))

    def conv2d_transpose(self, x, name):
        """[N, H, W, in] -> [N, 2H, 2W, out]: each pixel becomes 2x2 pixels, kernel @ pixel.

        kernel: [2, 2, out, in].
        """
        kernel, bias = self.weights[f"{name}/kernel"], self.weights[f"{name}/bias"]
        n, h, w, _ = tf.unstack(tf.shape(x))
        shape = [n, 2 * h, 2 * w, kernel.shape[2]]
        x = tf.nn.conv2d_transpose(x, tf.cast(kernel, x.dtype), shape, strides=2, padding="VALID")
        return tf.nn.bias_add(x, tf.cast(bias, x.dtype))

    def batch_norm(self, x, name, training):
        """Ioffe and Szegedy 2015, arXiv 1502.03167, algorithm 1, over N, H and W of [N, H, W, C].

        Training: by the batch's statistics, which move the stored; else by the stored. Each: [C].
        """
        gamma, beta = self.weights[f"{name}/gamma"], self.weights[f"{name}/beta"]
        moving_mean = self.weights[f"{name}/moving_mean"]
        moving_variance = self.weights[f"{name}/moving_variance"]
        momentum, epsilon = self.network.bn_momentum, self.network.bn_epsilon
        if self.network.batch_norm == "fused":
            # one operation, which returns the moved statistics, not the batch's; the variance moves
            # towards that of the batch times M/(M-1), M = images * height * width
            x, new_mean, new_variance = tf.compat.v1.nn.fused_batch_norm(
                x, gamma, beta, moving_mean, moving_variance, epsilon,
                is_training=training, exponential_avg_factor=1 - momentum,
            )  # fmt: skip
            if training:
                moving_mean.assign(new_mean)
                moving_variance.assign(new_variance)
            return x
        wide = tf.cast(x, gamma.dtype)  # a mean over thousands of values needs more than bfloat16
        mean, variance = moving_mean, moving_variance
        if training:
            mean, variance = tf.nn.moments(wide, axes=[0, 1, 2])
            moving_mean.assign(moving_mean * momentum + mean * (1 - momentum))
            moving_variance.assign(moving_variance * momentum + variance * (1 - momentum))
        x = tf.nn.batch_normalization(wide, mean, variance, beta, gamma, epsilon)
        return tf.cast(x, self.network.precision)

    def dropout(self, x, training):
        """Srivastava et al. 2014: in training zeroes a random share `rate`: x * mask / (1 - rate).

        The state, int64 [2], holds the seed and the number of calls so far, so that a checkpoint
        holds it too: the counter inside of tf.nn.dropout is lost when a run resumes.
        """
        if not training:
            return x
        state = self.weights["dropout/state"]
        seed = tf.cast(state, tf.int32)  # as Keras casts its own
        x = tf.nn.experimental.stateless_dropout(x, self.network.dropout, seed)
        state.assign_add([0, 1])
        return x


def named_weights(model):
    """Canonical name, as "down0/conv1/kernel" -> variable, in the order of the forward pass."""
    return model.weights
