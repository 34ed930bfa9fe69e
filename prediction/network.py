"""A trained network from its checkpoint, through any of the implementations. TensorFlow is imported when one is made."""

import importlib

from common.config import UserError
from common.weights import assign_weights, fold_batch_norm


def restore(implementation, network, weights):
    """-> (model, canonical name -> variable), with the values of `weights`. network: `config.network`."""
    code = importlib.import_module(f"{implementation}.model")
    model = code.UNet(network)
    variables = code.named_weights(model)
    assign_weights(variables, weights)
    return model, variables


def make_predict(implementation, network, weights):
    """-> predict: float32 [1, h, w, channels] in 0..1 -> probabilities [1, h - margin, w - margin, classes], numpy arrays.

    h and w are sizes that fit, as `prediction.tiles` cuts them. It raises UserError when they do not fit into memory.
    """
    from common.device import tf
    from common.losses import probabilities

    model, _ = restore(implementation, *fold_batch_norm(network, weights))  # twice as fast in bfloat16

    @tf.function(reduce_retracing=True, autograph=False)  # the second size makes a graph that takes all sizes
    def graph(images):
        return probabilities(model(images, training=False))

    def predict(images):
        try:
            return graph(tf.constant(images)).numpy()
        except tf.errors.ResourceExhaustedError:
            size = f"{images.shape[1]}x{images.shape[2]}"
            raise UserError(f"{size} pixels at once do not fit into memory: use a smaller --tile") from None

    return predict
