"""The U-Net a fourth time, in NumPy alone and in float64: what the operations of the other three mean.

Nothing here knows of TensorFlow or of the rest of this project, so that `compare.py parity` can ask not only whether the three
are equal but whether they are right. It is written from Ronneberger et al. 2015 (arXiv 1505.04597) and the papers named below.

A layer returns its output y, and a function `back`, which turns dy, the gradient of the loss by y, into the gradients by what
went in: the chain rule by hand. A test checks it by finite differences.

network: an object with depth, activation, padding, batch_norm, bn_momentum, bn_epsilon, dropout. options: one with loss,
class_weights, weight_map, optimizer and its constants, clip_norm. weights: canonical name -> float64 array, such as
"down0/conv1/kernel"; moving statistics among them.
"""

from functools import partial

import numpy as np

PIXELS = (0, 1, 2)  # the axes N, H and W of [N, H, W, C]

# --- the layers ---


def conv2d(x, kernel, bias=0.0, padding="valid"):
    """y[n, i, j, o] = bias[o] + sum over a, b, c of x[n, i + a, j + b, c] kernel[a, b, c, o]: [N, H, W, in] -> [N, H, W, out].

    A correlation by its mathematical name: the kernel is not mirrored. kernel: [k, k, in, out]. "same" puts k // 2 zeros around
    x, "valid" none, and y is k - 1 pixels smaller.
    """
    k = kernel.shape[0]
    p = k // 2 if padding == "same" else 0
    x = np.pad(x, [(0, 0), (p, p), (p, p), (0, 0)])
    h, w = x.shape[1] - k + 1, x.shape[2] - k + 1
    taps = [(a, b, np.s_[:, a : a + h, b : b + w]) for a in range(k) for b in range(k)]

    def back(dy):
        dx, dkernel = np.zeros_like(x), np.zeros_like(kernel)
        for a, b, seen in taps:
            dx[seen] += dy @ kernel[a, b].T
            dkernel[a, b] = np.tensordot(x[seen], dy, (PIXELS, PIXELS))
        return dx[:, p : x.shape[1] - p, p : x.shape[2] - p], {"kernel": dkernel, "bias": dy.sum(PIXELS)}

    return bias + sum(x[seen] @ kernel[a, b] for a, b, seen in taps), back


def conv2d_transpose(x, kernel, bias):
    """y[n, 2 i + a, 2 j + b, o] = bias[o] + sum over c of x[n, i, j, c] kernel[a, b, o, c]: [N, H, W, in] -> [N, 2H, 2W, out].

    Every pixel becomes 2 x 2, which do not overlap. kernel: [2, 2, out, in].
    """
    n, h, w, _ = x.shape
    y, corners = np.empty([n, 2 * h, 2 * w, len(bias)]), [(a, b) for a in range(2) for b in range(2)]
    for a, b in corners:
        y[:, a::2, b::2] = x @ kernel[a, b].T + bias

    def back(dy):
        dkernel = [[np.tensordot(dy[:, a::2, b::2], x, (PIXELS, PIXELS)) for b in range(2)] for a in range(2)]
        dx = sum(dy[:, a::2, b::2] @ kernel[a, b] for a, b in corners)
        return dx, {"kernel": np.array(dkernel), "bias": dy.sum(PIXELS)}

    return y, back


def max_pool2d(x):
    """The largest of every 2 x 2 pixels, which gets the gradient: [N, H, W, C] -> [N, H/2, W/2, C]. Of equals, the first."""
    n, h, w, c = x.shape
    blocks = x.reshape(n, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, c, 4)
    largest = blocks.argmax(-1)[..., None]

    def back(dy):
        d = np.where(np.arange(4) == largest, dy[..., None], 0.0)  # [N, H/2, W/2, C, 4]
        return d.reshape(n, h // 2, w // 2, c, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(x.shape)

    return blocks.max(-1), back


def batch_norm(x, gamma, beta, moving_mean, moving_variance, epsilon, training):
    """Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1: y = gamma (x - mean) / sqrt(variance + epsilon) + beta.

    When training by mean and variance of the batch, the variance a mean of squares, over N; else by the moving ones.
    """
    mean, variance = (x.mean(PIXELS), x.var(PIXELS)) if training else (moving_mean, moving_variance)
    sigma = np.sqrt(variance + epsilon)
    normal = (x - mean) / sigma

    def back(dy):  # of the batch's own statistics, which depend on x too: section 3 of the paper, put together
        d = gamma * dy
        dx = (d - d.mean(PIXELS) - normal * (d * normal).mean(PIXELS)) / sigma
        return dx, {"gamma": (dy * normal).sum(PIXELS), "beta": dy.sum(PIXELS)}

    return gamma * normal + beta, back


def activation(x, name):
    """ReLU: max(x, 0). ELU, Clevert et al. 2016 (arXiv 1511.07289), with alpha = 1: x above 0, exp(x) - 1 below."""
    below = 0.0 * x if name == "relu" else np.expm1(np.minimum(x, 0))
    slope = np.where(x > 0, 1.0, 0.0 if name == "relu" else below + 1)
    return np.where(x > 0, x, below), lambda dy: dy * slope


def dropout(x, rate, keep):
    """Srivastava et al. 2014: what is not kept is 0, the rest times 1 / (1 - rate). keep: as x, 0 or 1."""
    scale = keep / (1 - rate)
    return x * scale, lambda dy: dy * scale


def crop_and_concat(skip, x):
    """[N, H, W, C] cut in its middle to the size of x ("valid"; with "same" nothing is cut), and x behind it."""
    h, w = x.shape[1:3]
    top, left, c = (skip.shape[1] - h) // 2, (skip.shape[2] - w) // 2, skip.shape[-1]

    def back(dy):
        dskip = np.zeros_like(skip)
        dskip[:, top : top + h, left : left + w] = dy[..., :c]
        return dskip, dy[..., c:]

    return np.concatenate([skip[:, top : top + h, left : left + w], x], axis=-1), back


# --- the network ---


def chain(x, *layers):
    """The layers one after the other; back, from the last to the first."""
    backs = []
    for layer in layers:
        x, back = layer(x)
        backs.insert(0, back)

    def back_all(dy):
        for back in backs:
            dy = back(dy)
        return dy

    return x, back_all


def forward(network, weights, images, training=False, keep=1.0):
    """-> (logits [N, H, W, classes], moving statistics as training leaves them, by name, backward).

    images: [N, H, W, channels]. keep: of the dropout in training. backward(dlogits) -> gradients by all weights, by name.
    """
    gradients, moved = {}, {}
    rate, keep = (network.dropout, keep) if training else (0.0, 1.0)

    def weighted(function, name):
        """The layer `function` with its weights, whose `back` notes their gradients."""
        own = {key.removeprefix(f"{name}/"): w for key, w in weights.items() if key.startswith(f"{name}/")}

        def layer(x):
            y, back = function(x, **own)

            def note(dy):
                dx, by_part = back(dy)
                gradients.update({f"{name}/{part}": d for part, d in by_part.items() if part in own})
                return dx

            return y, note

        return layer

    def normalize(name, x, gamma, beta, moving_mean, moving_variance):
        if training:
            mean, variance, n = x.mean(PIXELS), x.var(PIXELS), x[..., 0].size
            if network.batch_norm == "fused":  # the unbiased estimate for later, while the batch itself is divided by n
                variance = variance * n / (n - 1)
            k = network.bn_momentum
            moved[f"{name}/moving_mean"] = k * moving_mean + (1 - k) * mean
            moved[f"{name}/moving_variance"] = k * moving_variance + (1 - k) * variance
        return batch_norm(x, gamma, beta, moving_mean, moving_variance, network.bn_epsilon, training)

    def double_conv(name):
        layers = []
        for k in (1, 2):
            layers.append(weighted(partial(conv2d, padding=network.padding), f"{name}/conv{k}"))
            if network.batch_norm != "none":
                layers.append(weighted(partial(normalize, f"{name}/bn{k}"), f"{name}/bn{k}"))
            layers.append(lambda x: activation(x, network.activation))
        return layers

    def u(x, i):
        """Figure 1 of the paper from level i downward: two convolutions, the U of half the size, two convolutions."""
        if i == network.depth:
            return chain(x, *double_conv(f"down{i}"), lambda x: dropout(x, rate, keep))
        skip, back_down = chain(x, *double_conv(f"down{i}"))
        x, back_below = chain(skip, max_pool2d, lambda x: u(x, i + 1), weighted(conv2d_transpose, f"up{i}/deconv"))
        x, back_concat = crop_and_concat(skip, x)
        x, back_up = chain(x, *double_conv(f"up{i}"))

        def back(dy):
            dskip, dx = back_concat(back_up(dy))
            return back_down(dskip + back_below(dx))

        return x, back

    logits, back = chain(np.asarray(images, np.float64), lambda x: u(x, 0), weighted(conv2d, "head"))

    def backward(dlogits):
        back(dlogits)
        return gradients

    return logits, moved, backward


# --- the losses, each with its gradient by z, the logits [N, H, W, K] ---


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(z, g, weights, given):
    """-log p of the true class, a mean over the pixels of the batch weighted by their class and by `given`, [N, H, W, 1]."""
    w = (g * weights).sum(-1, keepdims=True) * given
    w = w / max(w.sum(), np.finfo(float).tiny)  # nothing counts: 0
    log_p = z - z.max(-1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))
    return -(w * g * log_p).sum(), w * (softmax(z) - g)


def dice(z, g, weights, sigmoid):
    """1 - (2 sum(g p) + 1) / (sum(g) + sum(p) + 1), of every image and class; a mean over classes, then over images.

    Milletari et al. 2016 (arXiv 1606.04797) without the squares. With a sigmoid: of the foreground, and a class weighs in the
    sums. Else: of the classes that the image holds, and a class weighs in the mean over them.
    """
    p, w = softmax(z), (g * weights if sigmoid else g).sum(-1, keepdims=True)  # w is 0 where nobody labelled
    overlap, size = (w * g * p).sum((1, 2), keepdims=True), (w * g).sum((1, 2), keepdims=True)  # [N, 1, 1, K]
    total = size + (w * p).sum((1, 2), keepdims=True)
    share = np.array([0.0, 1.0]) * np.ones_like(size) if sigmoid else (size > 0) * weights
    share = share / np.maximum(share.sum(-1, keepdims=True), np.finfo(float).tiny) / len(z)
    dp = share * w * ((2 * overlap + 1) / (total + 1) ** 2 - 2 * g / (total + 1))
    return (share * (1 - (2 * overlap + 1) / (total + 1))).sum(), p * (dp - (p * dp).sum(-1, keepdims=True))


def segmentation_loss(logits, masks, options):
    """-> (loss, its gradient by the logits). masks: [N, H, W, 1 or 2], a class, or 255 where nobody labelled; a weight."""
    sigmoid = logits.shape[-1] == 1  # which is a softmax over (0, z): background and foreground
    z = np.concatenate([np.zeros_like(logits), logits], axis=-1) if sigmoid else logits
    g = (masks[..., :1] == np.arange(z.shape[-1])).astype(float)  # one-hot, nothing for 255
    weights = np.array(options.class_weights or np.ones(z.shape[-1]))
    terms = []
    if options.loss in ("cross_entropy", "dice_ce"):  # a weight map holds the class weights already
        of_pixels = (np.ones_like(weights), masks[..., 1:]) if options.weight_map else (weights, 1.0)
        terms.append(cross_entropy(z, g, *of_pixels))
    if options.loss in ("dice", "dice_ce"):
        terms.append(dice(z, g, weights, sigmoid))
    return sum(loss for loss, _ in terms), sum(dz for _, dz in terms)[..., -logits.shape[-1] :]


# --- training ---


def loss_and_gradients(network, options, weights, images, masks, keep=1.0):
    """-> (loss, logits, gradients by name, moving statistics after it by name), in training."""
    logits, moved, backward = forward(network, weights, images, training=True, keep=keep)
    loss, dlogits = segmentation_loss(logits, masks, options)
    return loss, logits, backward(dlogits), moved


def clip_by_global_norm(gradients, clip_norm):
    """Pascanu et al. 2013 (arXiv 1211.5063), algorithm 1: all by one factor, where the norm of all together is larger."""
    norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
    return {name: g * min(1, clip_norm / norm) for name, g in gradients.items()} if norm else gradients


def adam(w, g, m, v, t, options):
    """Kingma and Ba 2015 (arXiv 1412.6980), as at the end of section 2: epsilon beside a root that is not bias-corrected."""
    m = options.beta_1 * m + (1 - options.beta_1) * g
    v = options.beta_2 * v + (1 - options.beta_2) * g**2
    return w - step_of_adam(m, v, t, options), m, v


def step_of_adam(m, v, t, options):
    alpha = options.learning_rate * np.sqrt(1 - options.beta_2**t) / (1 - options.beta_1**t)
    return alpha * m / (np.sqrt(v) + options.epsilon)


def sgd(w, g, m, v, t, options):
    """Sutskever et al. 2013, equations 1 and 2: m is the step, and the learning rate is inside of it."""
    m = options.momentum * m - options.learning_rate * g
    return w + m, m, v


def train(network, options, weights, batches):
    """A step for each of `batches`, (images, masks, keep). -> (weights and moving statistics after them, losses)"""
    update, losses = {"adam": adam, "sgd": sgd}[options.optimizer], []
    weights, slots = dict(weights), {name: (0.0, 0.0) for name in weights}
    for t, (images, masks, keep) in enumerate(batches, 1):
        loss, _, gradients, moved = loss_and_gradients(network, options, weights, images, masks, keep)
        if options.clip_norm:
            gradients = clip_by_global_norm(gradients, options.clip_norm)
        for name, g in gradients.items():
            weights[name], *slots[name] = update(weights[name], g, *slots[name], t, options)
        weights |= moved
        losses.append(loss)
    return weights, losses
