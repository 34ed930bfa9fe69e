"""What each line does to an image: feature maps of a trained network, and one weight on its way through ten steps.

Maps are small pictures of signed numbers, drawn beside each other in one sheet for each image: white is 0, orange above it and
blue below, darker with the root of the number, so that small ones show; the page reads the numbers back from the colours.
"""

import base64
import io
import re

from common.checkpoint import load_checkpoint
from common.config import IMPLEMENTATIONS, Config
from common.device import tf
from common.layers import table
from common.losses import probabilities, segmentation_loss
from common.shapes import min_size, missing
from common.weights import fold_batch_norm
from comparison import columns
from comparison.proof import finder
from data.loader import load_examples, training_batches

import numpy as np
from PIL import Image

IMAGES, SHOWN, SIDE = 2, 2, 64  # drawn images, maps of each layer, pixels of an image
TRAINING, WATCHED = 250, 10  # steps: a minute on two quiet cores; those of one weight
WEIGHT = "down0/conv1/kernel"  # of which the number in the middle is followed
SMALL = dict(filters=4, depth=3)  # the network that the page itself runs: 30,000 weights, 80 kB of text
LEARNING = 1500  # its steps of training: a minute
STEPS = np.linspace(-1, 1, 255)[:, None]  # of colour, from -1 to 1
ENDS = np.array([[33, 102, 172], [178, 84, 0]])  # blue and orange
PALETTE = np.rint(np.where(STEPS < 0, 255 + STEPS * (255 - ENDS[0]), 255 - STEPS * (255 - ENDS[1]))).astype(np.uint8)


def trained(config, examples, checkpoint=None, steps=TRAINING):
    """lowlevel, with the weights of a checkpoint or after so many steps. Raises: UserError for one of another network."""
    built = columns.Built("lowlevel", config)
    if checkpoint:
        built.start(load_checkpoint(checkpoint, config.network)[0])
        return built
    for images, masks in training_batches(config.replace(epochs=10**6), examples).take(steps):
        built.train_step(images, masks)
    return built


def cropped(batch, network):
    """images and masks [N, H, W, C] around the middle: `SIDE` pixels, or what fits next to that."""
    images, masks = (tensor.numpy() for tensor in batch)
    smallest = min_size(network) + missing(min_size(network), network)
    largest = max(smallest, min(SIDE, *images.shape[1:3]))
    side = max(n for n in range(smallest, largest + 1) if not missing(n, network))
    lost = images.shape[1] - masks.shape[1]

    def middle(values, side):
        top, left = ((n - side) // 2 for n in values.shape[1:3])
        return values[:, top : top + side, left : left + side]

    return middle(images, side), middle(masks, side - lost)


def gradients(model, config, images, masks):
    """{layer's name: gradient of the loss by its output}, in training."""
    names = [layer.name for layer in table(config.network) if layer.kind in finder.KINDS.values()]

    @tf.function(jit_compile=False, autograph=False)
    def back(images, masks):
        loss = segmentation_loss(masks, model(images, training=True), config)
        operations = tf.compat.v1.get_default_graph().get_operations()
        outputs = [op.outputs[0] for op in operations if op.type in finder.KINDS and op.outputs[0].shape.rank == 4]
        return tf.gradients(loss, outputs[: len(names)])

    return dict(zip(names, map(np.asarray, back(images, masks))))


def layers(built, images, masks):
    """{key: (values [N, h, w, C], name of the layer that it comes from, pixels on a side that it looks at)}."""
    config, found, before = built.config, {"image": (images, "", 0)}, "image"
    weights = built.values()
    kinds = {layer.name: layer.kind for layer in table(config.network)}
    sides = {"conv": 3, "pool": 2}
    for name, values in finder.layers(built.model, config, images, False)[0]:
        kind = kinds.get(name, "bias")
        found[name] = (values, "", 0) if kind == "concat" else (values, before, 1 if name == "head" else sides.get(kind, 1))
        before = name
    bottom = f"down{config.network.depth}/act2"
    rate = config.network.dropout or 0.5  # by default there is none; so it would be
    dropped = tf.nn.experimental.stateless_dropout(found[bottom][0], rate, seed=[config.network.seed, 0])
    found["dropout, training"] = dropped.numpy(), "", 0
    for name, values in finder.layers(built.model, config, images, True)[0]:
        if "/bn" in name or name == "head":
            found[f"{name}, training"] = values, "", 0
    p = probabilities(tf.constant(found["head"][0])).numpy()[..., -1:]
    mask = (masks[..., :1] == max(1, config.network.classes - 1)).astype(np.float32)
    found |= {"probability": (p, "head", 1), "mask": (mask, "", 0), "difference": (p - mask, "probability", 1)}
    built.start(weights)  # the statistics have moved
    back = gradients(built.model, config, images, masks)
    return found | {f"gradient of {name}": (of, "", 0) for name, of in back.items() if name == "head" or "/act2" in name}


def channels(found):
    """{key: [channels to show]}: what varies most behind an activation, and the same ones of all that leads there."""
    chosen = {}
    for key, (values, _, _) in found.items():
        name = re.sub(r"^gradient of |, training$", "", key)
        base = re.sub(r"(conv|bn|bias)(?=\d)", "act", name).replace("pool", "act2")
        spread = found.get(base, (values,))[0][:IMAGES].std((0, 1, 2))
        chosen[key] = sorted(np.argsort(-spread, kind="stable")[:SHOWN].tolist())
    return chosen


def draw(built, batch):
    """{"sheets": [PNG as base64, of each image], "maps": {key: {"at": [[x, y]], "size", "scale", ...}}}."""
    images, masks = cropped(batch, built.config.network)
    found = layers(built, images, masks)
    chosen, weights = channels(found), built.values()
    places, tall = {}, 0  # one below the other: what stays empty beside the small ones costs nothing in a PNG
    for key, (values, _, _) in found.items():
        for channel in chosen[key]:
            places[key, channel] = 0, tall
            tall += values.shape[1]
    shown = min(IMAGES, len(images))
    sheets, told = np.full([shown, tall, images.shape[2]], 127, np.uint8), {}
    for key, (values, before, side) in found.items():
        twin = key.removesuffix(", training")  # the same scale in training and inference
        keys = {key, twin, f"{twin}, training"} & set(found)
        both = np.concatenate([found[k][0][:shown, ..., c] for k in keys for c in chosen[k]])
        scale = float(np.abs(both).max()) or 1.0
        of = {"at": [places[key, c] for c in chosen[key]], "size": values.shape[1:3], "scale": float(f"{scale:.3g}")}
        of |= {"channels": chosen[key], "of": values.shape[-1], "from": before, "side": side}
        if side == 3:  # the part of the sum that comes from the first map shown of what went in
            kernel = weights[f"{key}/kernel"][:, :, chosen[before][0]]
            of["kernel"] = [[float(f"{w:.3g}") for w in kernel[:, :, c].ravel()] for c in chosen[key]]
        told[key] = of
        for channel, (left, top) in zip(chosen[key], of["at"]):
            part = np.clip(values[:shown, ..., channel] / of["scale"], -1, 1)
            colors = np.rint(127 + 127 * np.sign(part) * np.sqrt(np.abs(part)))
            sheets[:, top : top + values.shape[1], left : left + values.shape[2]] = colors
    return {"sheets": [as_png(sheet) for sheet in sheets], "maps": told}


def as_png(values, mode="P"):
    """values: uint8 [h, w], places in `PALETTE` or, with mode "L", gray."""
    picture, data = Image.fromarray(values, mode), io.BytesIO()
    if mode == "P":
        picture.putpalette(PALETTE.tobytes())
    picture.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()


def watch(config, examples):
    """{implementation: {"g", "m", "v", "w": a number for each of `WATCHED` steps}} of one weight, from the first on."""
    batches = list(training_batches(config.replace(epochs=10**6), examples).take(WATCHED))
    found = {}
    for name in IMPLEMENTATIONS:
        built = columns.Built(name, config)
        built.start()
        weight = built.weights[WEIGHT]
        at = (weight.shape[0] // 2, weight.shape[1] // 2, 0, 0)
        slots = {slot: built.state[f"{WEIGHT}/{slot}"] for slot in "mv" if f"{WEIGHT}/{slot}" in built.state}
        steps = {key: [] for key in ("g", *slots, "w")}
        steps["w"].append(float(weight.numpy()[at]))
        for images, masks in batches:
            steps["g"].append(float(built.backward(images, masks)[2][WEIGHT].numpy()[at]))
            built.train_step(images, masks)
            for key, variable in {**slots, "w": weight}.items():
                steps[key].append(float(variable.numpy()[at]))
        found[name] = {key: [float(f"{value:.7g}") for value in values] for key, values in steps.items()}
    return found


def packed():
    """{"weights": {canonical name: (shape, float16 in base64)}, "depth": poolings, "image": a PNG in base64}.

    The small network that the page runs on an image of the reader's: study/live.js has its forward pass once more. The batch
    normalizations are folded into the convolutions, which leaves kernels and biases.
    """
    config, examples, validation = load_examples(Config.of(**SMALL))
    _, weights = fold_batch_norm(config.network, trained(config, examples, steps=LEARNING).values())
    written = {name: (w.shape, base64.b64encode(w.astype("<f2").tobytes()).decode()) for name, w in weights.items()}
    return {"weights": written, "depth": SMALL["depth"], "image": as_png(validation.images[0][..., 0], "L")}
