"""Train the U-Net written in raw tf.nn operations: GradientTape, and the optimizer's update as operations."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that `python lowlevel/train.py` works too

from common.config import run_script
from common.loop import Run, start, train_folds
from common.losses import probabilities, segmentation_loss
from data.loader import load_examples
from lowlevel.model import UNet, named_weights

import tensorflow as tf

# --- what tf.layers and Keras bring along ---


class Adam(tf.Module):
    """Kingma and Ba 2015, arXiv 1412.6980: algorithm 1 in the order of the end of its section 2 ("epsilon hat").

    alpha = lr * sqrt(1 - beta_2**t) / (1 - beta_1**t)
    m += (g - m) * (1 - beta_1);  v += (g**2 - v) * (1 - beta_2);  w -= m * alpha / (sqrt(v) + epsilon)

    weights: canonical name -> variable. `state` holds m and v under the weight's name with "/m" and "/v" behind it.
    """

    def __init__(self, config, weights):
        super().__init__()
        self.config, self.weights = config, weights
        self.learning_rate = tf.Variable(config.learning_rate, dtype=tf.float32, name="learning_rate")
        self.iterations = tf.Variable(0, dtype=tf.int64, name="iterations")  # t
        self.state = {f"{name}/{slot}": tf.Variable(tf.zeros_like(w)) for name, w in weights.items() for slot in "mv"}

    def apply(self, gradients):
        """gradients: canonical name -> gradient, of every weight."""
        config, dtype = self.config, self.config.variable_dtype
        # tf.constant, because tf.cast would take a Python float through float32 on its way into a float64 graph
        beta_1, beta_2 = tf.constant(config.beta_1, dtype), tf.constant(config.beta_2, dtype)
        t = tf.cast(self.iterations.assign_add(1), dtype)
        alpha = tf.cast(self.learning_rate, dtype) * tf.sqrt(1 - tf.pow(beta_2, t)) / (1 - tf.pow(beta_1, t))
        for name, w in self.weights.items():
            g, m, v = gradients[name], self.state[f"{name}/m"], self.state[f"{name}/v"]
            m.assign_add((g - m) * (1 - config.beta_1))
            v.assign_add((tf.square(g) - v) * (1 - config.beta_2))
            w.assign_sub(m * alpha / (tf.sqrt(v) + config.epsilon))


class SGD(tf.Module):
    """Gradient descent with momentum, Sutskever et al. 2013, equations 1 and 2.

    m = momentum * m - lr * g;  w += m
    """

    def __init__(self, config, weights):
        super().__init__()
        self.config, self.weights = config, weights
        self.learning_rate = tf.Variable(config.learning_rate, dtype=tf.float32, name="learning_rate")
        self.iterations = tf.Variable(0, dtype=tf.int64, name="iterations")
        self.state = {f"{name}/m": tf.Variable(tf.zeros_like(w)) for name, w in weights.items()}

    def apply(self, gradients):
        """gradients: canonical name -> gradient, of every weight."""
        dtype = self.config.variable_dtype
        momentum, lr = tf.constant(self.config.momentum, dtype), tf.cast(self.learning_rate, dtype)
        self.iterations.assign_add(1)
        for name, w in self.weights.items():
            m = self.state[f"{name}/m"]
            m.assign(m * momentum - gradients[name] * lr)
            w.assign_add(m)


def clip_by_global_norm(gradients, clip_norm):
    """Pascanu et al. 2013, arXiv 1211.5063, algorithm 1, over all gradients at once: their directions stay.

    gradients: canonical name -> gradient; so is the result.
    """
    norm = tf.sqrt(tf.reduce_sum(tf.stack([tf.reduce_sum(tf.square(g)) for g in gradients.values()])))
    scale = clip_norm * tf.minimum(1 / norm, 1 / clip_norm)
    return {name: g * scale for name, g in gradients.items()}


# --- training ---


def make_optimizer(model, config):
    """The optimizer that `config` names, over the model's trainable weights; `learning_rate` is a variable."""
    weights = {name: w for name, w in named_weights(model).items() if w.trainable}
    return Adam(config, weights) if config.optimizer == "adam" else SGD(config, weights)


def named_state(model, optimizer):
    """Canonical name of the weight and "/m" or "/v" -> variable of the optimizer; "iterations": the steps it has made."""
    return {**optimizer.state, "iterations": optimizer.iterations}


def make_train_step(model, config, optimizer=None):
    """step(images, masks) -> scalar loss, weights updated. Images and masks as `data.loader` gives them."""
    optimizer = optimizer or make_optimizer(model, config)

    @tf.function(jit_compile=config.jit)
    def train_step(images, masks):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = segmentation_loss(masks, logits, config)
        weights = optimizer.weights
        gradients = tape.gradient(loss, weights)
        with tf.name_scope("optimizer"):
            if config.clip_norm:
                gradients = clip_by_global_norm(gradients, config.clip_norm)
            optimizer.apply(gradients)
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
    with Run("lowlevel", config, training, validation, weights, state, optimizer, eval_step) as run:
        for images, masks in run.steps():
            run.end_step(train_step(images, masks))
        run.finish()


def main(argv=None):
    train_folds("lowlevel", train, start("lowlevel", argv, __doc__))


if __name__ == "__main__":
    run_script(main)
