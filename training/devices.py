"""What each column needs to train on several devices, the three side by side; docs/devices.md reads them with you.

A replica is one device's copy of the network, which sees its rows of the batch. The columns know nothing of it: here are, for
each, the parts that are others when a batch is shared, under the names that the column has for them. `training.hosts` starts
the devices.
"""

import contextlib
import functools
import importlib
import sys
from unittest import mock

from common.device import tf
from common.losses import segmentation_loss
from common.weights import assign_weights, initial_weights

# --- what reaches over all replicas: with one of them each of these is what stands in a column ---


def replicas():
    """How many replicas take part in this step; 1 outside of a training step."""
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1


def total(x):
    """The sum of x over all replicas, the same in each of them. x: a tensor, or a list or dict of tensors.

    Its gradient is the sum of the gradients, since every replica's result depends on every replica's x.
    """
    return x if replicas() == 1 else tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, x)


def share(tensors):
    """Each of `tensors` by the number of replicas: for what adds up over them by itself."""
    return [x / replicas() for x in tensors]


def moments(x):
    """Mean and variance of every channel over the whole batch, on all devices: [N, H, W, C] -> [C], [C].

    In two passes, as tf.nn.moments: the mean first, for E[x**2] - E[x]**2 loses the digits that both have in common.
    """
    axes, n = [0, 1, 2], replicas()
    mean = total(tf.reduce_mean(x, axes) / n)
    # no gradient by way of the mean: the differences from it add up to 0
    return mean, total(tf.reduce_mean(tf.math.squared_difference(x, tf.stop_gradient(mean)), axes) / n)


def drawn_for_batch(draw, x):
    """draw(x), which takes a random number for every value of x, with the numbers that one device would take.

    x: [N, ...], this replica's rows. They are drawn for the whole batch, and the others' are thrown away.
    """
    n, context = replicas(), tf.distribute.get_replica_context()
    return tf.gather(tf.split(draw(tf.concat([x] * n, axis=0)), n), context.replica_id_in_sync_group)


def share_of_mean(values, weights=None):
    """A replica's share of `losses.weighted_mean` over the whole batch: the shares of all replicas add up to it."""
    if weights is None:
        return tf.reduce_mean(values) / replicas()
    return tf.math.divide_no_nan(tf.reduce_sum(weights * values), total(tf.reduce_sum(weights)))


def share_of_loss(masks, logits, config):
    """`losses.segmentation_loss` of the whole batch, this replica's share of it."""
    return segmentation_loss(masks, logits, config, share_of_mean)


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


@contextlib.contextmanager
def scope(strategy):
    """Variables made inside are copied to every device; what the devices write to a moving statistic becomes its mean.

    So the fused normalization, which each device makes by itself, still ends with one network to save.
    """

    def creator(make, **settings):
        if "moving_" in (settings.get("name") or ""):
            settings |= {"synchronization": tf.VariableSynchronization.AUTO, "aggregation": tf.VariableAggregation.MEAN}
        return make(**settings)

    with strategy.scope(), tf.variable_creator_scope(creator):
        yield


# --- the columns: `column` is the module of a train script, and the result is what stands in the place of its names ---


def lowlevel(column):
    class UNet(column.UNet):
        def dropout(self, x, training):
            draw = super().dropout
            return drawn_for_batch(lambda x: draw(x, training), x) if training else x

    def make_train_step(model, config, optimizer):
        @tf.function(autograph=False)
        @mock.patch.object(tf.nn, "moments", lambda x, axes: moments(x))  # around all replicas, which take turns in it
        @on_every_replica
        def train_step(images, masks):
            with tf.GradientTape() as tape:
                logits = model(images, training=True)
                loss = share_of_loss(masks, logits, config)
            gradients = total(tape.gradient(loss, optimizer.weights, output_gradients=optimizer.loss_scale))
            if optimizer.loss_scale is not None:
                gradients = {name: g / optimizer.loss_scale for name, g in gradients.items()}
            if config.training.clip_norm:
                gradients = column.clip_by_global_norm(gradients, config.training.clip_norm)
            optimizer.apply(gradients)
            return loss

        return train_step

    return dict(UNet=UNet, make_train_step=make_train_step)


def highlevel(column):
    class UNet(column.UNet):
        def dropout(self, x, training):
            draw = super().dropout
            return drawn_for_batch(lambda x: draw(x, training), x) if training else x

    def make_train_step(model, config, optimizer):
        @on_every_replica
        def train_step(images, masks):
            weights = model.trainable_variables
            logits = model(images, training=True)
            loss = share_of_loss(masks, logits, config)
            gradients, _ = zip(*optimizer.compute_gradients(loss, weights, column.Optimizer.GATE_NONE))
            if config.training.clip_norm:
                gradients, _ = tf.clip_by_global_norm(total(gradients), config.training.clip_norm)
                gradients = share(gradients)  # for apply_gradients sums over the replicas
            optimizer.apply_gradients(zip(gradients, weights), global_step=optimizer.iterations)
            return loss

        # the store of variables opens once around all replicas, which take turns in it, and so does the other `_moments`
        @tf.compat.v1.keras.utils.track_tf1_style_variables
        def around(_, images, masks):
            with mock.patch.object(tf.compat.v1.layers.BatchNormalization, "_moments", lambda layer, x, *_, **__: moments(x)):
                return train_step(images, masks)

        return tf.function(functools.partial(around, model), autograph=False)

    return dict(UNet=UNet, make_train_step=make_train_step)


def keras_impl(column):
    import keras

    plain_unet, plain_optimizer = column.UNet, column.make_optimizer

    class BatchNormalization(keras.layers.BatchNormalization):
        """`synchronized=True` takes E[x^2] - E[x]^2, and loses what they share."""

        def _moments(self, inputs, mask):
            return moments(inputs) if replicas() > 1 else super()._moments(inputs, mask)

    class Dropout(keras.layers.Dropout):
        def call(self, inputs, training=False):
            draw = super().call
            return drawn_for_batch(lambda x: draw(x, training=training), inputs) if training else inputs

    class Model(keras.Model):
        def __init__(self, inputs, outputs):
            super().__init__(inputs, outputs)
            self._distribute_strategy = None  # or `fit` builds it anew, of a mean over hosts that fails

        def train_step(self, batch):  # on several hosts `fit` takes a mean over axis 0 of its logs
            return {name: value[None] for name, value in super().train_step(batch).items()}

    def UNet(network):
        others = {keras.layers.BatchNormalization: BatchNormalization, keras.layers.Dropout: Dropout}

        def copied(layer):
            return others.get(type(layer), type(layer)).from_config(layer.get_config())

        clone = keras.models.clone_model(plain_unet(network), clone_function=copied)
        model = Model(clone.inputs, clone.outputs)
        assign_weights(column.named_weights(model), initial_weights(network))
        return model

    class SegmentationLoss(column.SegmentationLoss):
        def call(self, masks, logits):
            return share_of_loss(masks, logits, self.config)

    def make_optimizer(model, config):
        optimizer, clip_norm = plain_optimizer(model, config), config.training.clip_norm
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        if clip_norm or inner is not optimizer:
            # Keras clips each replica's gradients and sums up what is left, and in float16 asks the first alone whether they
            # are finite: here each gets their mean, clipped to a share, so that the sum is that of all, clipped
            n = tf.distribute.get_strategy().num_replicas_in_sync
            apply, inner.global_clipnorm = optimizer.apply, clip_norm and clip_norm / n
            optimizer.apply = lambda gradients, weights: apply(share(total(gradients)), weights)
        return optimizer

    return dict(UNet=UNet, SegmentationLoss=SegmentationLoss, make_optimizer=make_optimizer)


def variants(implementation, column=None):
    """{name in the column's train script: what stands in its place on several devices}; `column`: the script's module."""
    of = {"lowlevel": lowlevel, "highlevel": highlevel, "keras_impl": keras_impl}
    return of[implementation](column or importlib.import_module(f"{implementation}.train"))


def in_place(implementation, train):
    """While this is open `train`, of the column's script, works with its `variants` if there are several devices."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return contextlib.nullcontext()
    script = sys.modules[train.__module__]  # run as a script it is "__main__"
    return mock.patch.multiple(script, **variants(implementation, script))
