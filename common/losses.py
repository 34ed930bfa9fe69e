"""The one loss that all three implementations minimize, and the probabilities that it reads off the logits."""

import tensorflow as tf

VOID = 255  # the class index of pixels that nobody labelled, whatever their value is in the files


def probabilities(logits):
    """[N, H, W, classes] logits -> probabilities in 0..1, in float32 or wider: sigmoid of one class, softmax of more."""
    logits = tf.cast(logits, tf.float64 if logits.dtype == tf.float64 else tf.float32)
    return tf.sigmoid(logits) if logits.shape[-1] == 1 else tf.nn.softmax(logits)


def dice_loss(masks, logits):
    """1 - soft dice, averaged over images and classes: a scalar in 0..1, in float32 or wider.

    Milletari et al. 2016 (V-Net, arXiv 1606.04797), section 3, without the squares in the denominator and with a
    smooth term of 1, which makes the dice of an empty mask and an empty prediction 1:

        dice = (2 sum(g p) + 1) / (sum(g) + sum(p) + 1)      sums over the pixels of one image and one class

    masks: [N, H, W, 1] class indices, any dtype; with one class 0 or 1.
    logits: [N, H, W, classes].
    """
    p = probabilities(logits)
    classes = logits.shape[-1]
    if classes == 1:
        g = tf.cast(masks, p.dtype)
    else:
        g = tf.one_hot(tf.cast(masks[..., 0], tf.int32), classes, dtype=p.dtype)  # [N, H, W, classes]
    intersection = tf.reduce_sum(g * p, axis=(1, 2))  # [N, classes]
    total = tf.reduce_sum(g, axis=(1, 2)) + tf.reduce_sum(p, axis=(1, 2))
    return tf.reduce_mean(1 - (2 * intersection + 1) / (total + 1))


def segmentation_loss(masks, logits, config):
    """The loss that `config` names: a scalar in float32 or wider."""
    return dice_loss(masks, logits)
