"""Train the U-Net written in raw tf.nn operations: GradientTape, and the update as operations."""

import sys
from pathlib import Path

if __name__ == "__main__":  # --help and bad options need no TensorFlow
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python lowlevel/train.py`
    from training.options import before_tensorflow, run_script

    before_tensorflow("lowlevel", __doc__)

from common.device import tf  # tensorflow, started quietly
from common.losses import segmentation_loss
from data.loader import load_examples
from lowlevel.model import UNet, named_weights
from training.run import Run
from training.start import train_as_told


def make_train_step(model, config, optimizer=None):
    """step(images [N, H, W, C], masks [N, H, W, 1] of classes) -> scalar loss, weights updated."""
    optimizer = optimizer or make_optimizer(model, config)

    @tf.function(jit_compile=config.training.jit, autograph=False)  # no `if` on a tensor
    def train_step(images, masks):
        weights = optimizer.weights
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = segmentation_loss(masks, logits, config)
        gradients = tape.gradient(loss, weights, output_gradients=optimizer.loss_scale)  # None: 1
        with tf.name_scope("optimizer"):  # for profiles
            if optimizer.loss_scale is not None:  # float16
                gradients = {name: g / optimizer.loss_scale for name, g in gradients.items()}
            if config.training.clip_norm:
                gradients = clip_by_global_norm(gradients, config.training.clip_norm)
            optimizer.apply(gradients)
        return loss

    return train_step


def train(config):
    """One run, from the files on disk to the pictures of its results."""
    config, train_set, val_set = load_examples(config)  # config: completed by the data
    model = UNet(config.network)
    optimizer = make_optimizer(model, config)
    train_step = make_train_step(model, config, optimizer)
    weights, state = named_weights(model), named_state(model, optimizer)
    with Run("lowlevel", config, train_set, val_set, model, weights, state, optimizer) as run:
        for images, masks in run.steps():
            run.end_step(train_step(images, masks))
        run.finish()


def main(argv=None):
    train_as_told("lowlevel", train, argv, __doc__)


def make_optimizer(model, config):
    """The optimizer that `config` names; its `learning_rate` can be assigned."""
    settings, lr = config.training, config.training.learning_rate
    weights = {name: w for name, w in named_weights(model).items() if w.trainable}
    if settings.optimizer == "adam":
        optimizer = Adam(weights, lr, settings.beta_1, settings.beta_2, settings.epsilon)
    else:
        optimizer = SGD(weights, lr, settings.momentum)
    return LossScaled(optimizer) if config.network.precision == "float16" else optimizer


def named_state(model, optimizer):
    """A weight's name and "/m" or "/v" -> that moment of its gradient; "iterations": steps made."""
    return {"iterations": optimizer.iterations, **optimizer.state}


# --- by hand: tf.compat.v1.train, tf.clip_by_global_norm and Keras have all this ---
class Adam:
    """Kingma and Ba 2015, arXiv 1412.6980, in the faster order at the end of section 2.

    alpha = lr * sqrt(1 - beta_2**t) / (1 - beta_1**t)
    m += (1 - beta_1) * (g - m);  v += (1 - beta_2) * (g**2 - v)
    w -= alpha * m / (sqrt(v) + epsilon), the epsilon hat of section 2, as in v1 and Keras

    weights: canonical name -> variable. state: the weight's name and "/m" or "/v" -> variable.
    """

    def __init__(self, weights, learning_rate, beta_1, beta_2, epsilon):
        self.weights, self.beta_1, self.beta_2, self.epsilon = weights, beta_1, beta_2, epsilon
        self.loss_scale = None  # LossScaled has one
        self.learning_rate = tf.Variable(learning_rate, dtype=tf.float32, name="learning_rate")
        self.iterations = tf.Variable(0, dtype=tf.int64, name="iterations")  # t
        zeros = {f"{name}/{s}": tf.zeros_like(w) for name, w in weights.items() for s in ("m", "v")}
        self.state = {name: tf.Variable(zero) for name, zero in zeros.items()}

    def apply(self, gradients):
        """gradients: canonical name -> gradient, of every weight."""
        beta_1, beta_2, dtype = self.beta_1, self.beta_2, next(iter(self.weights.values())).dtype
        lr = tf.cast(self.learning_rate, dtype)
        t = tf.cast(self.iterations.assign_add(1), dtype)
        alpha = lr * tf.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        for name, w in self.weights.items():
            g, m, v = gradients[name], self.state[f"{name}/m"], self.state[f"{name}/v"]
            m.assign_add((1 - beta_1) * (g - m))
            v.assign_add((1 - beta_2) * (tf.square(g) - v))
            w.assign_sub(alpha * m / (tf.sqrt(v) + self.epsilon))


class SGD:
    """Gradient descent with momentum, Sutskever et al. 2013, equations 1 and 2.

    m = momentum * m - lr * g;  w += m
    """

    def __init__(self, weights, learning_rate, momentum):
        self.weights, self.momentum, self.loss_scale = weights, momentum, None
        self.learning_rate = tf.Variable(learning_rate, dtype=tf.float32, name="learning_rate")
        self.iterations = tf.Variable(0, dtype=tf.int64, name="iterations")
        self.state = {f"{name}/m": tf.Variable(tf.zeros_like(w)) for name, w in weights.items()}

    def apply(self, gradients):
        """gradients: canonical name -> gradient, of every weight."""
        lr = tf.cast(self.learning_rate, next(iter(self.weights.values())).dtype)
        self.iterations.assign_add(1)
        for name, w in self.weights.items():
            g, m = gradients[name], self.state[f"{name}/m"]
            m.assign(self.momentum * m - lr * g)
            w.assign_add(m)


class LossScaled:
    """Micikevicius et al. 2018, arXiv 1710.03740, section 3.2: in float16 what is below 6e-8 is 0.

    So the way back starts from `loss_scale`, not from 1. Where gradients overflow the step is left
    out and the scale halved; after 2000 steps in which none did, it is doubled.
    """

    def __init__(self, optimizer):
        self.optimizer, self.weights = optimizer, optimizer.weights
        self.learning_rate, self.iterations = optimizer.learning_rate, optimizer.iterations
        self.loss_scale = tf.Variable(2.0**15, name="loss_scale")
        self.finite_steps = tf.Variable(0, dtype=tf.int64, name="finite_steps")
        own = dict(loss_scale=self.loss_scale, finite_steps=self.finite_steps)
        self.state = optimizer.state | own

    def apply(self, gradients):
        """gradients: canonical name -> gradient, of every weight, divided by the scale."""
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients.values()])
        tf.cond(finite, lambda: self.optimizer.apply(gradients), lambda: None)
        steps = tf.where(finite, self.finite_steps + 1, 0)
        self.finite_steps.assign(steps % 2000)
        grown = tf.where(steps == 2000, 2 * self.loss_scale, self.loss_scale)
        self.loss_scale.assign(tf.where(finite, grown, self.loss_scale / 2))


def clip_by_global_norm(gradients, clip_norm):
    """Pascanu et al. 2013, arXiv 1211.5063, algorithm 1: one factor for all, the direction stays.

    gradients: canonical name -> gradient; so is the result.
    """
    norm = tf.sqrt(tf.reduce_sum([tf.reduce_sum(tf.square(g)) for g in gradients.values()]))
    scale = clip_norm * tf.minimum(1 / norm, 1 / clip_norm)  # in TensorFlow's order, to round alike
    scale += norm - norm  # an infinite norm makes it nan, and no step of 0
    return {name: g * scale for name, g in gradients.items()}


if __name__ == "__main__":
    run_script(main)
