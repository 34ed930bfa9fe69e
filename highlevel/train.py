"""Train the U-Net written in tf.layers, with the optimizers of tf.compat.v1.train."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `python highlevel/train.py` works too

from common.config import run_script
from common.loop import Run, start, train_folds
from common.losses import probabilities, segmentation_loss
from data.loader import load_examples
from highlevel.model import UNet, named_weights

import numpy as np
import tensorflow as tf

# --- what raw operations and Keras do in another way ---


class Adam(tf.compat.v1.train.AdamOptimizer):
    """v1 carries beta**t along as a product that rounds at every step; this takes the power, as lowlevel and Keras do.

    The kernel stays v1's, ResourceApplyAdam. Unlike the other two it computes 1 - beta in float32.
    """

    def __init__(self, config, learning_rate, iterations):
        # float64, because a Python float would pass through float32 on its way into a float64 graph
        beta_1, beta_2, epsilon = np.float64([config.beta_1, config.beta_2, config.epsilon])
        super().__init__(learning_rate, beta_1, beta_2, epsilon)
        self.config, self.iterations = config, iterations

    def _create_slots(self, weights):
        for w in weights:
            self._zeros_slot(w, "m", self._name)
            self._zeros_slot(w, "v", self._name)

    def _prepare(self):
        super()._prepare()
        t, dtype = tf.cast(self.iterations + 1, self.config.variable_dtype), self.config.variable_dtype
        self.powers = [tf.pow(tf.constant(beta, dtype), t) for beta in (self.config.beta_1, self.config.beta_2)]

    def _get_beta_accumulators(self):
        return self.powers

    def _finish(self, update_ops, name_scope):
        return tf.group(*update_ops, name=name_scope)


class SGD(tf.compat.v1.train.MomentumOptimizer):
    """v1 keeps a = momentum * a + g and takes lr * a, which is another path as soon as the learning rate changes.

    Sutskever et al. 2013, equations 1 and 2, as lowlevel and Keras have it: m = momentum * m - lr * g;  w += m
    """

    def __init__(self, config, learning_rate, iterations):
        super().__init__(learning_rate, np.float64(config.momentum))
        self.iterations = iterations

    def _resource_apply_dense(self, grad, var):
        lr, momentum = tf.cast(self._learning_rate_tensor, grad.dtype), tf.cast(self._momentum_tensor, grad.dtype)
        m = self.get_slot(var, "momentum")
        return tf.raw_ops.ResourceApplyKerasMomentum(var=var.handle, accum=m.handle, lr=lr, grad=grad, momentum=momentum)


# --- training ---


def make_optimizer(model, config):
    """The optimizer that `config` names, over the model's trainable weights; `learning_rate` is a variable."""
    learning_rate = tf.Variable(config.learning_rate, dtype=tf.float32, name="learning_rate")
    iterations = tf.Variable(0, dtype=tf.int64, name="iterations")
    optimizer = (Adam if config.optimizer == "adam" else SGD)(config, learning_rate, iterations)
    optimizer.learning_rate = learning_rate
    # v1 makes its moments in the first step: one with gradients of 0, which moves no weight
    optimizer.apply_gradients([(tf.zeros_like(w), w) for w in model.trainable_variables])
    return optimizer


def named_state(model, optimizer):
    """Canonical name of the weight and "/m" or "/v" -> variable of the optimizer; "iterations": the steps it has made."""
    state = {"iterations": optimizer.iterations}
    for name, weight in named_weights(model).items():
        for slot in optimizer.get_slot_names() if weight.trainable else ():
            state[f"{name}/{slot[0]}"] = optimizer.get_slot(weight, slot)  # "m" and "v", or "momentum"
    return state


def make_train_step(model, config, optimizer=None):
    """step(images, masks) -> scalar loss, weights updated. Images and masks as `data.loader` gives them."""
    optimizer = optimizer or make_optimizer(model, config)

    @tf.function(jit_compile=config.jit)
    def train_step(images, masks):
        # not `optimizer.minimize(loss)`: its tf.gradients adds gradients that meet in another order than a tape does
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = segmentation_loss(masks, logits, config)
        # not `model.trainable_variables`, which come sorted by name: the norm for clipping is a sum, and its order matters
        weights = [w for w in named_weights(model).values() if w.trainable]
        gradients = tape.gradient(loss, weights)
        with tf.name_scope("optimizer"):
            if config.clip_norm:
                gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm)
            optimizer.apply_gradients(zip(gradients, weights), global_step=optimizer.iterations)
        return loss

    return train_step


def make_eval_step(model, config):
    """step(images, masks) -> (scalar loss, probabilities [N, H, W, classes]), nothing updated."""

    @tf.function(jit_compile=config.jit, reduce_retracing=True)
    def eval_step(images, masks):
        logits = model(images, training=False)
        return segmentation_loss(masks, logits, config), probabilities(logits)

    return eval_step


def train(config):
    config, training, validation = load_examples(config)
    model = UNet(config)
    optimizer = make_optimizer(model, config)
    train_step, eval_step = make_train_step(model, config, optimizer), make_eval_step(model, config)
    weights, state = named_weights(model), named_state(model, optimizer)
    with Run("highlevel", config, training, validation, weights, state, optimizer, eval_step) as run:
        for images, masks in run.steps():
            run.end_step(train_step(images, masks))
        run.finish()


def main(argv=None):
    train_folds("highlevel", train, start("highlevel", argv, __doc__))


if __name__ == "__main__":
    run_script(main)
