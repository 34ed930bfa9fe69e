"""What reaches over all devices of a training: sums, moments and random numbers of the whole batch.

A replica is one device's copy of the network, which sees its rows of the batch of a step. With one device, and outside of a
training step, every function here is what stands there without it. `training.replicas` starts the devices.
"""

import functools

from common.device import tf


def replicas():
    """How many devices take part in this step; 1 outside of a training step."""
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1


def total(x):
    """The sum of x over all replicas, the same in each of them. x: a tensor, or a list or dict of tensors.

    Its gradient is the sum of the gradients, since every replica's result depends on every replica's x.
    """
    return x if replicas() == 1 else tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)


def share(tensors):
    """Each of `tensors` by the number of replicas: for what adds up over them by itself."""
    return tensors if replicas() == 1 else [x / replicas() for x in tensors]


def average(tensors):
    """The mean of each of `tensors` over all replicas, the same in each of them."""
    return share(total(tensors))


def batch_mean(x):
    """A replica's share of the mean of x over the whole batch: the shares of all replicas add up to it."""
    return tf.reduce_mean(x) if replicas() == 1 else tf.reduce_mean(x) / replicas()


def moments(x):
    """Mean and variance of every channel over the whole batch, on all devices: [N, H, W, C] -> [C], [C].

    In two passes, as tf.nn.moments: the mean first, for E[x**2] - E[x]**2 loses the digits that both have in common.
    """
    axes, n = [0, 1, 2], replicas()
    if n == 1:
        return tf.nn.moments(x, axes)
    mean = total(tf.reduce_mean(x, axes) / n)
    # no gradient by way of the mean: the differences from it add up to 0
    return mean, total(tf.reduce_mean(tf.math.squared_difference(x, tf.stop_gradient(mean)), axes) / n)


def drawn_for_batch(draw, x):
    """draw(x), which takes a random number for every value of x, with the numbers that one device would take.

    x: [N, ...], this replica's rows. They are drawn for the whole batch, and the others' are thrown away.
    """
    n = replicas()
    if n == 1:
        return draw(x)
    k = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.gather(tf.split(draw(tf.concat([x] * n, axis=0)), n), k)


def on_every_replica(step):
    """Decorates step(images, masks) -> loss: every replica runs it on its rows, and the result is the sum of their losses."""

    @functools.wraps(step)
    def run(*batch):
        strategy = tf.distribute.get_strategy()
        if strategy.num_replicas_in_sync == 1:
            return step(*batch)
        losses = strategy.run(step, args=batch)
        return None if losses is None else strategy.reduce("SUM", losses, axis=None)

    return run
