# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tour: from images to a network that is trained, compared and understood
#
# Fifteen minutes of reading, some three of running. `make tour` opens it as a notebook; a test executes every cell.
#
# There is one U-Net here, written three times: in raw TensorFlow operations, in `tf.layers`, and in Keras 3. We look at data, give
# all three the same weights, read the same rows three times, see that they compute the same numbers, follow one weight through a
# step, train one, look into it, predict, step into a trap, and end with the same network in forty lines of stock Keras.

# %%
import inspect
import os
import sys
import textwrap
from pathlib import Path  # noqa: F401  for images of your own

while not os.path.exists("compare.py"):  # up to the project's folder
    os.chdir("..")
sys.path.insert(0, os.getcwd())

from common.config import Config, Size
from common.device import tf
from common.losses import segmentation_loss
from common.metrics import class_scores, confusion, predicted_classes
from common.weights import assign_weights, initial_weights
from comparison import columns
from data.loader import load_examples, training_batches, validation_batches
from training.report import make_eval_step

import keras
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

keras.utils.set_random_seed(0)  # for the network at the end; the others are given their weights

# %% [markdown]
# ## 1. Data
#
# Cells as a microscope would show them, drawn with their exact masks. For your own images put them into `my_data/images/` and
# `my_data/masks/` under equal names, and say `dataset="folder", data_dir=Path("my_data"), crop_size=Size(128, 128)` in the place of
# `images` and `image_size`. For Oxford-IIIT Pet, with its three classes (background, pet, outline), it is `dataset="oxford_pet"`
# and the folder with its `images/` and `annotations/`; `classes` and `channels` are then found in the data. Section 7 is for gray
# images of one size and one class: with others stop before it.

# %%
settings = dict(filters=8, depth=3, batch_size=8, epochs=8, images=120, image_size=Size(64, 64))
config, training, validation = load_examples(Config.of(**settings))
config.network

# %%
images, masks = next(iter(training_batches(config, training)))
print(images.shape, images.dtype, float(tf.reduce_min(images)), float(tf.reduce_max(images)))
print(masks.shape, masks.dtype, np.unique(masks))


def show(columns, titles, path=None):
    """A row of pictures for each of the first images, three at most; kept as a file, too, if there is a path."""
    rows = min(3, len(columns[0]))
    figure, axes = plt.subplots(rows, len(columns), figsize=(2 * len(columns), 2 * rows), squeeze=False)
    for row, line in enumerate(axes):
        for axis, values, title in zip(line, columns, titles):
            axis.imshow(np.squeeze(values[row]), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title if row == 0 else "", fontsize=9)
            axis.set_axis_off()
    if path:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        figure.savefig(path, dpi=80, bbox_inches="tight")
    display(figure)
    plt.close(figure)


show([images, masks], ["image", "mask"])

# %% [markdown]
# ## 2. Three networks from one dictionary of weights
#
# `initial_weights` draws a value for each canonical name, with NumPy. The same seed would give other numbers in every API.

# %%
weights = initial_weights(config.network)
print(len(weights), "arrays; the first:", *[(name, value.shape) for name, value in list(weights.items())[:3]], sep="\n    ")

models = {}
for name in columns.IMPLEMENTATIONS:
    code = columns.load(name)
    models[name] = code.UNet(config.network)
    assign_weights(code.named_weights(models[name]), weights)

# %% [markdown]
# And the rows that use them: convolution, normalization, activation, twice. In the first every variable is fetched by its name, and
# `conv2d` and `batch_norm` stand below it in the file; in the second the call makes them under that name; in the third a layer
# does. Where does each of the three say whether this is training?

# %%
for name in columns.IMPLEMENTATIONS:
    code = columns.load(name)
    rows = code.UNet.double_conv if hasattr(code.UNet, "double_conv") else code.double_conv
    print(f"--- {name}/model.py\n{textwrap.dedent(inspect.getsource(rows))}\n")

# %% [markdown]
# The same images through all three. The difference is 0: not small, but 0, for the same kernels run on the same numbers.

# %%
logits = {name: tf.function(model)(images, training=False).numpy() for name, model in models.items()}
for name in columns.IMPLEMENTATIONS[1:]:
    print(f"lowlevel - {name}: largest difference of the logits {np.abs(logits['lowlevel'] - logits[name]).max():.1e}")
assert all(np.allclose(logits["lowlevel"], of, atol=1e-5) for of in logits.values())

# %% [markdown]
# ## 3. One training step, and its gradients
#
# Here rounding comes in. Keras adds the one bias of the head with another operation, so that its gradient adds up the same numbers
# in another order: its last places differ.

# %%
gradients = {}
for name, model in models.items():
    variables = {key: w for key, w in columns.load(name).named_weights(model).items() if w.trainable}
    with tf.GradientTape() as tape:
        loss = segmentation_loss(masks, model(images, training=True), config)
    gradients[name] = {key: g.numpy() for key, g in tape.gradient(loss, variables).items()}
    print(f"{name:<12} loss {float(loss):.7f}")

for name in columns.IMPLEMENTATIONS[1:]:
    apart = {key: np.abs(g - gradients[name][key]).max() for key, g in gradients["lowlevel"].items()}
    worst = max(apart, key=apart.get)
    print(f"lowlevel - {name}: {sum(d > 0 for d in apart.values())} of {len(apart)} differ, most {worst}: {apart[worst]:.1e}")

# %%
steps = {}
for name, model in models.items():
    code = columns.load(name)
    assign_weights(code.named_weights(model), weights)
    steps[name] = code.make_train_step(model, config)
    print(f"{name:<12}", *[f"{float(steps[name](images, masks)):.6f}" for _ in range(3)])

# %% [markdown]
# One number of all these, followed through one step: the weight in the middle of the first 3x3 kernel. Adam's first step is as long
# as the learning rate (but for epsilon), whatever the gradient, for m / sqrt(v) is then its sign: `lowlevel/train.py`, `Adam`, has the formulas.

# %%
watched, at, settings = "down0/conv1/kernel", (1, 1, 0, 0), config.training
for name, model in models.items():
    code = columns.load(name)
    assign_weights(code.named_weights(model), weights)
    optimizer = code.make_optimizer(model, config)
    code.make_train_step(model, config, optimizer)(images, masks)
    state = code.named_state(model, optimizer)
    m, v = (float(state[f"{watched}/{slot}"].numpy()[at]) for slot in "mv")
    after = float(code.named_weights(model)[watched].numpy()[at])
    g, before = float(gradients[name][watched][at]), float(weights[watched][at])
    print(f"{name:<12} w {before:.6f}  g {g:+.6f}  m {m:+.7f}  v {v:.4e}  new w {after:.6f}  step {after - before:+.6f}")
    alpha = settings.learning_rate * (1 - settings.beta_2) ** 0.5 / (1 - settings.beta_1)
    by_hand = before - alpha * (1 - settings.beta_1) * g / (((1 - settings.beta_2) * g**2) ** 0.5 + settings.epsilon)
    assert abs(after - by_hand) < 1e-6

# %% [markdown]
# `python compare.py parity` does this for every weight, gradient and step, as written and to the last bit.
#
# ## 4. Training
#
# One of them, for some epochs: the loss of each step, and the dice on images that it does not train on. `python -m lowlevel.train`
# does the same, and keeps checkpoints, curves and pictures.

# %%
chosen = "lowlevel"
code = columns.load(chosen)
model = code.UNet(config.network)
train_step, eval_step = code.make_train_step(model, config), make_eval_step(model, config)


def validation_dice():
    """Of the foreground, over all validation images."""
    matrix = 0
    for images, masks in validation_batches(config, validation):
        _, probabilities = eval_step(images, masks)
        matrix = matrix + confusion(np.squeeze(masks, -1), predicted_classes(probabilities.numpy()), config.network.classes)
    return class_scores(matrix)[1][1]


losses, dices = [], []
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
handle = display(figure, display_id=True)
per_epoch = len(training.names) // config.training.batch_size
for step, (images, masks) in enumerate(training_batches(config, training), 1):
    losses.append(float(train_step(images, masks)))
    if step % per_epoch == 0:
        dices.append(validation_dice())
        for axis, values, x, y in ((left, losses, "step", "loss"), (right, dices, "epoch", "validation dice")):
            axis.clear()
            axis.plot(range(1, len(values) + 1), values)
            axis.set(xlabel=x, ylabel=y)
        handle.update(figure)
plt.close(figure)
print(f"validation dice {dices[-1]:.3f}")

# %% [markdown]
# What has it learnt to look for? The image is multiplied, 3x3 pixels at a time, with each of the 8 kernels of the first convolution:
# that gives 8 images, its feature maps. Here they are for one cell: some keep its brightness, others edges that run one way, or
# how rough the ground is.

# %%
images, masks = next(iter(validation_batches(config, validation)))
rows, across = np.nonzero(masks[0, :, :, 0] == 1)
top, left = (int(np.clip(np.median(of) - 16, 0, side - 32)) for of, side in zip((rows, across), masks.shape[1:3]))
cell = images[:1, top : top + 32, left : left + 32]
maps = tf.nn.conv2d(cell, code.named_weights(model)["down0/conv1/kernel"], strides=1, padding="VALID")
figure, axes = plt.subplots(1, 1 + maps.shape[-1], figsize=(12, 1.6))
titles = ["cell", *(f"map {k}" for k in range(maps.shape[-1]))]
for axis, values, title in zip(axes, [cell[0, :, :, 0], *tf.unstack(maps[0], axis=-1)], titles):
    axis.imshow(values, cmap="gray")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
display(figure)
plt.close(figure)

# %% [markdown]
# ## 5. Predicting
#
# `python predict.py` does that for images of any size, in windows if they are large.

# %%
images, masks = next(iter(validation_batches(config, validation)))
_, probabilities = eval_step(images, masks)
show([images, masks, probabilities.numpy(), probabilities.numpy() > 0.5], ["image", "truth", "probability", "mask"])

# %% [markdown]
# ## 6. Two traps
#
# The best-known one of tf.layers: in a graph of TensorFlow 1 nobody moves the statistics of a batch normalization unless the operations in
# the collection `UPDATE_OPS` are run, too. The training does not read them, and learns all the same; inference then normalizes with
# those of the start, a mean of 0 and a variance of 1. Here is the network that we have just trained, and the same with these:

# %%
statistics = {name: w for name, w in code.named_weights(model).items() if name.endswith(("/moving_mean", "/moving_variance"))}
moved = {name: w.numpy() for name, w in statistics.items()}
good = probabilities.numpy()
for name, w in statistics.items():
    w.assign(tf.zeros_like(w) if name.endswith("mean") else tf.ones_like(w))
ruined = eval_step(images, masks)[1].numpy()
for name, w in statistics.items():
    w.assign(moved[name])
wrong = [(p > 0.5) != (masks.numpy() > 0.5) for p in (good, ruined)]
show(
    [images, masks, good > 0.5, ruined > 0.5, wrong[1]],
    ["image", "truth", "statistics moved", "UPDATE_OPS forgotten", "what is wrong then"],
    "runs/tour/update_ops.png",
)
print(f"wrong pixels: {wrong[0].mean():.1%} and {wrong[1].mean():.1%}")

# %% [markdown]
# A quieter one. Which variance is stored? The fused kernel normalizes with the variance of the batch, sum/N, and stores sum/(N-1); Keras stores
# sum/N. Training does not notice. Inference does: by 1/N of the variance, which is most at the bottom of the U, where N is small.
# `docs/differences.md` has 40 of these, in the order of the damage.

# %%
x = np.random.default_rng(0).normal(1, 2, [4, 2, 2, 3]).astype(np.float32)
fused = tf.compat.v1.layers.BatchNormalization(momentum=0.0)  # a momentum of 0 stores the batch's own statistics
stock = keras.layers.BatchNormalization(momentum=0.0)
a, b = fused(x, training=True), stock(x, training=True)
n = 4 * 2 * 2
print("outputs in training apart by", float(np.abs(a - b).max()))
print("stored variances, ratio", fused.moving_variance.numpy() / stock.moving_variance.numpy(), "N/(N-1) =", n / (n - 1))
np.testing.assert_allclose(fused.moving_variance.numpy() / stock.moving_variance.numpy(), n / (n - 1), rtol=1e-5)

# %% [markdown]
# ## 7. The same U-Net in forty lines of stock Keras
#
# Nothing of this project is in the next cell but its images. If you only want a network, this is what you write.

# %%
from keras import callbacks, layers


def block(x, filters):
    for _ in range(2):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.Activation("elu")(x)
    return x


def stock_unet(filters, depth):
    inputs = x = keras.Input([None, None, 1])
    skips = []
    for i in range(depth):
        x = block(x, filters * 2**i)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = block(x, filters * 2**depth)
    for i in reversed(range(depth)):
        x = layers.Conv2DTranspose(filters * 2**i, 2, strides=2)(x)
        x = block(layers.Concatenate()([skips[i], x]), filters * 2**i)
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


def arrays(examples):
    return np.stack(examples.images) / np.float32(255), np.stack(examples.masks)[..., None].astype(np.float32)


stock = stock_unet(config.network.filters, config.network.depth)
stock.compile(keras.optimizers.Adam(1e-3), loss="dice", metrics=[keras.metrics.BinaryIoU([1])], jit_compile=False)
os.makedirs("runs/tour", exist_ok=True)
history = stock.fit(
    *arrays(training),
    validation_data=arrays(validation),
    batch_size=config.training.batch_size,
    epochs=config.training.epochs,
    verbose=0,
    callbacks=[
        callbacks.CSVLogger("runs/tour/history.csv"),
        callbacks.ModelCheckpoint("runs/tour/best.keras", save_best_only=True),
        callbacks.EarlyStopping(patience=5, restore_best_weights=True),
    ],
)

# %%
x, truth = arrays(validation)
predicted = predicted_classes(stock.predict(x, verbose=0))
stock_dice = class_scores(confusion(np.squeeze(truth, -1).astype(int), predicted, 1))[1][1]
print(f"validation dice: {chosen} {dices[-1]:.3f}, stock Keras {stock_dice:.3f}")

# %% [markdown]
# What these forty lines do not give: images of any size, padding at their borders, masks whose values have to be understood, more
# classes with void and weights, augmentation, a run that goes on where it stopped with the same batches and dropout masks, one
# checkpoint for three APIs, and a proof that the network is what the paper says. Keras's dice is also another loss: summed over the
# whole batch, where ours is the mean over the images.
#
# Where to go from here: `docs/study.html`, in a browser, shows what each line of the three columns becomes; `docs/anatomy.md`
# follows one image through a training step.
