"""Train the U-Net written in tf.layers, with the optimizers of tf.compat.v1.train."""

import functools
import sys
from pathlib import Path

if __name__ == "__main__":  # --help and what does not fit need no TensorFlow
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python highlevel/train.py`
    from training.options import before_tensorflow, run_script

    before_tensorflow("highlevel", __doc__)

from common.losses import probabilities, segmentation_loss
from common.padding import any_size
from common.replicas import on_every_replica, share, total
from data.loader import load_examples
from highlevel.model import UNet, named_weights
from training.run import Run
from training.start import train_as_told

import tensorflow as tf

# --- by hand: what lets a checkpoint fit the other columns, and a rate that changes ---


class Adam(tf.compat.v1.train.AdamOptimizer):
    """v1 keeps beta**t in two variables that other checkpoints lack: here it is computed from t."""

    def __init__(self, learning_rate, beta_1, beta_2, epsilon, iterations, dtype):
        super().__init__(learning_rate, beta_1, beta_2, epsilon)
        self.iterations, self.dtype = iterations, dtype

    def _prepare(self):
        super()._prepare()
        t = tf.cast(self.iterations + 1, self.dtype)
        self.powers = self._beta1**t, self._beta2**t  # once, and not for every weight

    def _get_beta_accumulators(self):
        return self.powers

    def _finish(self, update_ops, name_scope):
        return tf.group(*update_ops, name=name_scope)  # nothing to carry along


class SGD(tf.compat.v1.train.MomentumOptimizer):
    """v1: a = momentum * a + g;  w -= lr * a. The same for as long as the learning rate stays.

    Here as in the others, Sutskever et al. 2013: m = momentum * m - lr * g;  w += m
    """

    def _resource_apply_dense(self, grad, var):
        lr, m = tf.cast(self._learning_rate_tensor, grad.dtype), self.get_slot(var, "momentum")
        return tf.raw_ops.ResourceApplyKerasMomentum(  # both equations in one kernel
            var=var.handle, accum=m.handle, lr=lr, grad=grad, momentum=self._momentum
        )


def with_variables(model, step):
    """Decorates a step: opens the store of variables around all devices, which take turns in it."""
    track = tf.compat.v1.keras.utils.track_tf1_style_variables
    around = track(lambda _, *batch: step(*batch))
    return functools.partial(around, model)


# --- training ---


def make_optimizer(model, config):
    """The optimizer that `config` names; its `learning_rate` can be assigned."""
    settings, weights = config.training, model.trainable_variables
    learning_rate = tf.Variable(settings.learning_rate, dtype=tf.float32, name="learning_rate")
    iterations = tf.Variable(0, dtype=tf.int64, name="iterations")
    if settings.optimizer == "adam":
        beta_1, beta_2, epsilon = settings.beta_1, settings.beta_2, settings.epsilon
        dtype = config.network.variable_dtype
        optimizer = Adam(learning_rate, beta_1, beta_2, epsilon, iterations, dtype)
    else:
        optimizer = SGD(learning_rate, settings.momentum)
    optimizer.learning_rate, optimizer.iterations = learning_rate, iterations
    optimizer._create_slots(weights)  # now: a checkpoint may fill them before v1's first step
    return optimizer


def named_state(model, optimizer):
    """Canonical name of the weight and "/m" or "/v" -> variable; "iterations": the steps made."""
    state = {"iterations": optimizer.iterations}
    for name, weight in named_weights(model).items():
        for slot in optimizer.get_slot_names() if weight.trainable else ():
            state[f"{name}/{slot[0]}"] = optimizer.get_slot(weight, slot)  # "m", "v" or "momentum"
    return state


def make_train_step(model, config, optimizer=None):
    """step(images, masks) -> scalar loss, weights updated; both as `data.loader` gives them."""
    optimizer = optimizer or make_optimizer(model, config)

    @tf.function(jit_compile=config.training.jit, autograph=False)  # no `if` asks a tensor
    @functools.partial(with_variables, model)
    @on_every_replica
    def train_step(images, masks):
        weights = model.trainable_variables
        logits = model(images, training=True)
        loss = segmentation_loss(masks, logits, config)
        # no tape: v1 walks the graph back from the loss. 0: GATE_NONE, or threads wait for others
        gradients, _ = zip(*optimizer.compute_gradients(loss, weights, gate_gradients=0))
        with tf.name_scope("optimizer"):
            if config.training.clip_norm:
                gradients, _ = tf.clip_by_global_norm(total(gradients), config.training.clip_norm)
                gradients = share(gradients)  # for apply_gradients sums over the devices
            optimizer.apply_gradients(zip(gradients, weights), global_step=optimizer.iterations)
        return loss

    return train_step


def make_eval_step(model, config):
    """step(images, masks) -> (scalar loss, probabilities [N, H, W, classes]), for any size."""

    @tf.function(jit_compile=config.training.jit, reduce_retracing=True, autograph=False)
    def eval_step(images, masks):
        logits = any_size(model, images, config.network)
        return segmentation_loss(masks, logits, config), probabilities(logits)

    return eval_step


def train(config):
    """One run, from the files on disk to the pictures of its results."""
    config, train_set, val_set = load_examples(config)  # config: with what the data says
    model = UNet(config.network)
    optimizer = make_optimizer(model, config)
    train_step = make_train_step(model, config, optimizer)
    weights, state = named_weights(model), named_state(model, optimizer)
    eval_step = make_eval_step(model, config)
    with Run("highlevel", config, train_set, val_set, weights, state, optimizer, eval_step) as run:
        for images, masks in run.steps():
            run.end_step(train_step(images, masks))
        run.finish()


def main(argv=None):
    train_as_told("highlevel", train, argv, __doc__)


if __name__ == "__main__":
    run_script(main)
