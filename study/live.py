"""A small network that the page itself runs on an image of the reader's: study/live.js has its forward pass once more."""

import base64

from common.config import Config
from common.weights import fold_batch_norm
from data.loader import load_examples
from study import maps

SMALL = dict(filters=4, depth=3)  # 30,000 weights: 80 kB of text, and a fraction of a second in a browser
TRAINING = 1500  # steps: a minute


def packed():
    """{"weights": {canonical name: (shape, float16 in base64)}, "depth": poolings, "image": a PNG in base64}.

    The batch normalizations are folded into the convolutions, which leaves kernels and biases.
    """
    config, examples, validation = load_examples(Config.of(**SMALL))
    _, weights = fold_batch_norm(config.network, maps.trained(config, examples, steps=TRAINING).values())
    written = {name: (w.shape, base64.b64encode(w.astype("<f2").tobytes()).decode()) for name, w in weights.items()}
    return {"weights": written, "depth": SMALL["depth"], "image": maps.as_png(validation.images[0][..., 0], "L")}
