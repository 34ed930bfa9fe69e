"""The losses that all three implementations minimize, and the probabilities that they read off the logits.

masks: [N, H, W, 1] class indices, any dtype: 0 and 1 with one class, 0 to classes - 1 with more; VOID where nobody labelled.
Masks [N, H, W, 2] hold a weight of every pixel behind its class, which the cross entropy takes.
logits: [N, H, W, classes]. One class stands for background and foreground, more for one class per channel.
class_weights: a number per class, two (background, foreground) with one class; None: all count the same.
void: whether the masks may hold VOID. Such pixels count nowhere; a batch of nothing else has loss 0 and gradient 0.

mean: how losses of images or pixels become one number; `training.devices` has another, for a batch that several devices share.

The losses are scalars in float32 or wider.
"""

from common.config import VOID
from common.device import tf

import numpy as np


def widen(logits):
    """bfloat16 becomes float32: a sum over thousands of pixels needs more than 8 bits."""
    return tf.cast(logits, tf.float64 if logits.dtype == tf.float64 else tf.float32)


def probabilities(logits):
    """[N, H, W, classes] logits -> probabilities in 0..1, in float32 or wider: sigmoid of one class, softmax of more."""
    logits = widen(logits)
    return tf.sigmoid(logits) if logits.shape[-1] == 1 else tf.nn.softmax(logits)


def pixel_weights(masks, dtype, class_weights, void):
    """How often every pixel counts, by its class: [N, H, W, 1], with 0 for VOID. None when all count once."""
    if class_weights is None and not void:
        return None  # the graph of the default stays as small as it can be
    weights = [1.0] * VOID if class_weights is None else class_weights
    table = np.zeros(VOID + 1)
    table[: len(weights)] = weights
    return tf.gather(tf.constant(table, dtype), tf.cast(masks[..., :1], tf.int32))


def weighted_mean(values, weights=None):
    """The mean of `values`, weighted by `weights` of the same shape; 0 where nothing weighs anything."""
    if weights is None:
        return tf.reduce_mean(values)
    return tf.math.divide_no_nan(tf.reduce_sum(weights * values), tf.reduce_sum(weights))


def dice_loss(masks, logits, class_weights=None, void=False, mean=weighted_mean):
    """1 - soft dice, averaged over classes and then images: 0..1.

    Milletari et al. 2016 (V-Net, arXiv 1606.04797), section 3, without the squares in the denominator and with a
    smooth term of 1:

        dice = (2 sum(g p) + 1) / (sum(g) + sum(p) + 1)      sums over the pixels of one image and one class

    One class: the dice of the foreground; it is 1 for an empty mask and an empty prediction. A pixel counts as often in
    all three sums as `class_weights` says for its true class, so that false alarms cost the first and misses the second
    (Salehi et al. 2017, arXiv 1706.05721, with alpha / beta = their ratio).

    More classes: the mean, weighted by `class_weights`, over the classes that the image's mask holds. An absent class
    would give P / (P + 1), where P is the sum of its probabilities: near 1 until P falls below one pixel, with a gradient of
    1 / (P + 1)**2 where a class that is there has one of the order of 1 / P. Leaving it out loses nothing, since softmax
    sums to 1: what it gets, the classes that are there lack.
    """
    p = probabilities(logits)
    classes = logits.shape[-1]
    if classes == 1:
        g = tf.cast(masks if masks.shape[-1] == 1 else masks[..., :1], p.dtype)
    else:
        g = tf.one_hot(tf.cast(masks[..., 0], tf.int32), classes, dtype=p.dtype)  # [N, H, W, classes], all 0 for VOID
    w = pixel_weights(masks, p.dtype, class_weights if classes == 1 else None, void)
    if w is not None:
        g *= w
    intersection = tf.reduce_sum(g * p, axis=(1, 2))  # [N, classes]
    size = tf.reduce_sum(g, axis=(1, 2))
    sizes = size + tf.reduce_sum(p if w is None else p * w, axis=(1, 2))
    losses = 1 - (2 * intersection + 1) / (sizes + 1)
    if classes == 1:
        return mean(losses)
    counted = tf.cast(size > 0, p.dtype)
    if class_weights is not None:
        counted *= tf.constant(class_weights, p.dtype)
    return mean(tf.math.divide_no_nan(tf.reduce_sum(counted * losses, -1), tf.reduce_sum(counted, -1)))


def cross_entropy(masks, logits, class_weights=None, void=False, mean=weighted_mean):
    """-log of the probability of the true class, averaged over the pixels of the batch: in nats, 0 or more.

    A weighted mean, where a pixel weighs what `class_weights` says for its class, times its weight in `masks`: `w` in
    Ronneberger et al. 2015, equations 1 and 2. It is divided by the sum of the weights, so their scale is of no account.
    """
    logits = widen(logits)
    w = pixel_weights(masks, logits.dtype, class_weights, void)
    if masks.shape[-1] == 2:
        given = tf.cast(masks[..., 1:], logits.dtype)
        w = given if w is None else w * given
    indices = tf.cast(masks[..., 0], tf.int32)  # [N, H, W]
    if void:
        indices = tf.where(indices == VOID, 0, indices)  # any class will do, the weight is 0
    if logits.shape[-1] == 1:
        losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(indices, logits.dtype), logits[..., 0])
    else:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(indices, logits)
    return mean(losses, None if w is None else w[..., 0])


def segmentation_loss(masks, logits, config, mean=weighted_mean):
    """The loss that `config` names, with its class weights; VOID is masked if there is a `config.data.void_label`."""
    name, weights, void = config.training.loss, config.training.class_weights, config.data.void_label is not None
    with tf.name_scope("loss"):  # so that a profile tells its operations from the network's
        if name == "dice":
            return dice_loss(masks, logits, weights, void, mean)
        # the weight map holds the class weights already
        loss = cross_entropy(masks, logits, None if config.training.weight_map else weights, void, mean)
        return loss if name == "cross_entropy" else loss + dice_loss(masks, logits, weights, void, mean)
