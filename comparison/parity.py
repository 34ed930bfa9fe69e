"""Is it the same network three times? A ladder of checks, from the shapes of the weights to a hundred training steps."""

import dataclasses
import itertools
import json
from pathlib import Path

import comparison
from common.config import VOID, Config, Size, UserError, Weights
from common.device import be_deterministic, tf
from common.losses import segmentation_loss
from common.pictures import save_figure
from common.weights import assign_weights, fold_batch_norm, initial_weights, is_trainable
from comparison import finder
from data.loader import FOUND, load_examples, training_batches

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

# Sums of few powers of two, which float32, float64 and every detour between them hold alike. The usual 0.9 and 0.999 are
# rounded by each API at another place: v1's Adam computes 1 - beta_2 in float32, 1.3e-5 beside Keras's 0.001.
EXACT_CONSTANTS = dict(learning_rate=2**-10, beta_1=0.875, beta_2=1 - 2**-10, epsilon=2**-23, momentum=0.875, bn_epsilon=2**-10)
USUAL_CONSTANTS = dict(learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-7, momentum=0.9, bn_epsilon=1e-3)

ARCHITECTURES = {
    "default": {},
    # the paper's network and loss, on images that are mirrored to 208x224; SGD is climbed with below
    "paper": dict(
        **dict(padding="valid", activation="relu", batch_norm="none", dropout=0.5, classes=2),
        **dict(loss="cross_entropy", weight_map=True, image_size=Size(24, 40)),
    ),
    "multi-class": dict(channels=3, classes=3),
    "odd-size": dict(image_size=Size(51, 77), activation="relu"),
    "no-batch-norm": dict(batch_norm="none"),
}

# The losses that an architecture climbs with besides its own: (title, changes of the configuration, options of `Case`)
LOSSES = {
    "default": [
        ("cross_entropy", dict(loss="cross_entropy"), {}),
        ("dice_ce", dict(loss="dice_ce"), {}),
    ],
    "multi-class": [
        ("cross_entropy", dict(loss="cross_entropy"), {}),
        ("dice_ce, weights, void", dict(loss="dice_ce", class_weights=Weights((0.5, 1.0, 2.5))), dict(void=True)),
    ],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One way to climb the ladder."""

    title: str
    config: Config
    steps: int
    halve_rate: bool = False  # the learning rate, half way through the steps
    void: bool = False  # some pixels of every batch are void, see `with_void`


@dataclasses.dataclass(frozen=True)
class Check:
    """One rung of the ladder between two implementations: equal within the tolerance, or not."""

    case: str
    rung: str  # what was compared: "gradients"
    pair: str  # "lowlevel - highlevel"
    worst: str  # the canonical name, or the step, with the largest difference
    difference: float  # the largest absolute difference; infinite where names, shapes or not-a-numbers disagree
    ulp: int  # that difference in units in the last place
    tolerance: float  # of the absolute difference
    reason: str  # for the tolerance

    @property
    def passed(self):
        return self.difference <= self.tolerance

    def as_dict(self):
        """For JSON, which knows no infinity: None where nothing can be claimed, or where nothing could be compared."""
        values = {**dataclasses.asdict(self), "passed": self.passed}
        return {name: None if value == np.inf else value for name, value in values.items()}


def cases(name, config, steps, precision=None):
    """The ways in which the architecture `name`, made from `config`, climbs the ladder; those of one `precision` on request.

    The default architecture climbs in every way. The others differ from it in the network and not in the training, so
    they climb in both precisions that can prove something, with few steps; so do the `LOSSES`, which all three share.
    """
    config = config.replace(**ARCHITECTURES[name])
    explicit = "none" if config.network.batch_norm == "none" else "explicit"
    every = [
        ("explicit", dict(batch_norm=explicit), {}),
        ("fused", dict(batch_norm="fused"), {}),
        ("explicit", dict(batch_norm=explicit, precision="float64"), {}),
        ("explicit, 0.9 and 0.999", dict(batch_norm=explicit, **USUAL_CONSTANTS), {}),
        ("explicit, 0.9 and 0.999", dict(batch_norm=explicit, precision="float64", **USUAL_CONSTANTS), {}),
        ("explicit, SGD, rate halved", dict(batch_norm=explicit, optimizer="sgd"), dict(halve_rate=True)),
        ("explicit, SGD, rate halved", dict(batch_norm=explicit, optimizer="sgd", precision="float64"), dict(halve_rate=True)),
        ("explicit, dropout, clipped", dict(batch_norm=explicit, dropout=0.5, clip_norm=0.1), {}),
        ("explicit, dropout, clipped", dict(batch_norm=explicit, dropout=0.5, clip_norm=0.1, precision="float64"), {}),
        ("fused", dict(batch_norm="fused", precision="bfloat16"), {}),
        ("explicit, XLA", dict(batch_norm=explicit, jit=True), {}),
    ]
    chosen = every if name == "default" else [every[0], every[2]]
    for title, changes, options in LOSSES.get(name, []):
        for of in ("float32", "float64"):
            chosen.append((title, dict(batch_norm=explicit, precision=of, **changes), options))
    if explicit == "none":
        chosen = [(title.replace("explicit", "no batch norm"), *rest) for title, *rest in chosen if "fused" not in title]
    for title, changes, options in chosen:
        changed = config.replace(**{"precision": "float32", **changes})
        if precision in (None, changed.precision):
            few = steps if name == "default" and "loss" not in changes else min(steps, 10)
            yield Case(f"{name}: {changed.precision}, {title}", changed, few, **options)


def with_void(masks):
    """[N, H, W, 1] class indices with VOID all over the first image and in the upper quarter of the others."""
    masks = masks.copy()
    masks[0] = VOID
    masks[:, : masks.shape[1] // 4] = VOID
    return masks


def observe(implementation, case, batches):
    """Runs one implementation up the ladder, from the canonical initial weights.

    batches: list of (images, masks), of which step k takes number k, over and over.

    Returns: rung -> {name -> array}.
    """
    config, steps = case.config, case.steps
    code = comparison.load(implementation)
    model = code.UNet(config.network)
    weights = code.named_weights(model)
    initial = initial_weights(config.network)
    trainable = {name: w for name, w in weights.items() if is_trainable(name)}
    images, masks = batches[0]

    @tf.function(jit_compile=config.training.jit)
    def forward(images):
        return model(images, training=False)

    @tf.function(jit_compile=config.training.jit)
    def forward_and_gradients(images, masks):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = segmentation_loss(masks, logits, config)
        return logits, loss, tape.gradient(loss, trainable)

    def values(trained):
        return {name: w.numpy() for name, w in weights.items() if is_trainable(name) == trained}

    rungs = {"structure": {name: np.zeros(w.shape) for name, w in weights.items()}}
    assign_weights(weights, initial)
    rungs["logits in inference"] = {"logits": forward(images).numpy()}
    logits, loss, gradients = forward_and_gradients(images, masks)
    rungs["logits in training"] = {"logits": logits.numpy()}
    rungs["loss"] = {"loss": loss.numpy()}
    rungs["gradients"] = {name: gradient.numpy() for name, gradient in gradients.items()}
    rungs["moving statistics, 1 step"] = values(trained=False)
    assign_weights(weights, initial)  # takes back the moving statistics
    optimizer = code.make_optimizer(model, config)
    train_step = code.make_train_step(model, config, optimizer)
    losses = {}
    for k in range(steps):
        if case.halve_rate and k == steps // 2:
            optimizer.learning_rate.assign(config.training.learning_rate / 2)
        losses[f"step {k + 1}"] = train_step(*batches[k % len(batches)]).numpy()
    rungs["losses, first 20 steps"] = dict(itertools.islice(losses.items(), 20))
    rungs[f"losses, {steps} steps"] = losses
    rungs[f"weights, {steps} steps"] = values(trained=True)
    rungs[f"moving statistics, {steps} steps"] = values(trained=False)
    rungs[f"inference, {steps} steps"] = {"logits": forward(images).numpy()}
    if config.network.batch_norm != "none":
        folded, values = fold_batch_norm(config.network, {name: w.numpy() for name, w in weights.items()})
        model = code.UNet(folded)
        assign_weights(code.named_weights(model), values)
        again = tf.function(lambda images: model(images, training=False), jit_compile=config.training.jit)
        rungs[f"inference, {steps} steps, folded"] = {"logits": again(images).numpy()}
    return rungs


def ulp_distance(a, b):
    """Units in the last place between two numbers of one float type: how many numbers of that type lie between them."""

    def rank(x):
        integer = int(x.view(f"i{x.dtype.itemsize}"))  # of the bits; it grows with the number, away from zero
        return integer if integer >= 0 else -(2 ** (8 * x.dtype.itemsize - 1)) - integer

    return abs(rank(a) - rank(b))


def difference(a, b):
    """(name, largest absolute difference, its ulp) of the name where `a` and `b` differ most."""
    odd = sorted(a.keys() ^ b.keys()) or [name for name in a if np.shape(a[name]) != np.shape(b[name])]
    if odd:
        return odd[0], np.inf, 0
    worst = "", 0.0, 0
    for name in a:
        x, y = np.ravel(a[name]), np.ravel(b[name])
        d = np.abs(x.astype(np.float64) - y.astype(np.float64))
        d = np.where(np.isfinite(d), d, np.inf)  # not a number equals nothing
        k = d.argmax() if d.size else None
        if k is not None and d[k] > worst[1]:
            worst = name, float(d[k]), ulp_distance(x[k], y[k])
    return worst


def is_binary_exact(config):
    """Whether float32 holds the optimizer's constants, and what they lack to 1, without rounding."""
    constants = [config.training.learning_rate, config.training.epsilon]
    for share in (config.training.beta_1, config.training.beta_2, config.training.momentum):
        constants += [share, 1 - share]
    return all(float(np.float32(x)) == x for x in constants)


def tolerance(rung, pair, case, scale):
    """(largest absolute difference, reason) that a rung may show under `be_deterministic`, or under XLA.

    Infinite where nothing can be claimed, with the reason: the rung is then shown and not counted as a check.

    pair: the two implementations. scale: the largest absolute value among the numbers compared.
    """
    config = case.config
    if rung == "structure":
        return 0.0, "names and shapes are the contract"
    if tf.config.list_physical_devices("GPU"):
        return 1e-4 * max(scale, 1), "a guess, not measured: a GPU's libraries may choose another algorithm for each graph"
    if "highlevel" not in pair or rung in ("logits in inference", "logits in training", "loss", "gradients"):
        return 0.0, "the same kernels on the same numbers in the same order"
    if config.network.precision == "float64":
        return 1e-12, "tf.layers: m - (m - x)(1 - k), Keras: m k + x (1 - k); each move rounds at 2**-53"
    if rung.startswith(("losses", "weights")) and is_binary_exact(config):
        return 0.0, "the same kernels on the same numbers in the same order; float32 holds the constants"
    if rung == "losses, first 20 steps":
        return 1e-5, "v1's Adam kernel computes 1 - beta_2 in float32, 1.3e-5 beside 0.001: its steps are 6e-6 longer"
    if not is_binary_exact(config) and rung != "moving statistics, 1 step":
        return np.inf, "v1's Adam kernel, as in the first 20 losses; training then makes any difference grow"
    if config.network.batch_norm != "explicit":
        return 0.0, "the same kernels on the same numbers in the same order"
    moves = (
        1 if rung == "moving statistics, 1 step" else min(case.steps, 1 / (1 - config.network.bn_momentum))
    )  # older ones decay
    if rung.startswith("moving"):
        return 2**-23 * moves * scale, "tf.layers: m - (m - x)(1 - k), Keras: m k + x (1 - k); each move rounds twice, apart"
    return 2**-23 * moves * scale * 100, "the moving statistics, through some 20 normalizations, each of which divides by them"


def climb(case, batches):
    """Runs the three implementations in one way and compares every pair of them.

    Returns: (list of `Check`s, {implementation: losses over the steps}, where they first differ if a check fails).
    """
    tf.get_logger().setLevel("ERROR")  # "triggered retracing": the three models are traced by the same lines
    rungs = {}
    for name in comparison.IMPLEMENTATIONS:
        try:
            rungs[name] = observe(name, case, batches)
        except ValueError as error:  # of `assign_weights`, or of operations whose shapes do not fit
            words = " ".join(str(error).split())[:300]
            failed = Check(case.title, "structure", name, words, np.inf, 0, 0.0, "names and shapes are the contract")
            return [failed], {}, f"{name}: {words}"
    checks = []
    for rung, values in rungs["lowlevel"].items():
        scale = float(max((np.abs(value.astype(np.float64)).max(initial=0) for value in values.values()), default=0))
        for a, b in itertools.combinations(comparison.IMPLEMENTATIONS, 2):
            allowed, reason = tolerance(rung, (a, b), case, scale)
            worst, d, ulp = difference(rungs[a][rung], rungs[b][rung])
            checks.append(Check(case.title, rung, f"{a} - {b}", worst, d, ulp, allowed, reason))
    losses = {name: [float(loss) for loss in rungs[name][f"losses, {case.steps} steps"].values()] for name in rungs}
    failed = [check.pair.split(" - ") for check in checks if not check.passed]
    return checks, losses, f"{' and '.join(failed[0])}: {finder.locate(*failed[0], case, batches)}" if failed else ""


def climb_apart(case, batches, connection):
    """`climb`, in a process of its own."""
    connection.send(climb(case, batches))


def print_table(checks):
    """A row for every rung: the differences of the three pairs, the tolerance, the verdict."""
    pairs = list(dict.fromkeys(check.pair for check in checks))
    print(f"\n{checks[0].case:<45}" + "".join(f"{pair:>24}" for pair in pairs) + f"{'tolerance':>11}")
    for rung, row in itertools.groupby(checks, key=lambda check: check.rung):
        row = list(row)
        cells = "".join(f"{c.difference:>12.1e} {c.ulp:>7} ulp" if c.difference else f"{'0':>24}" for c in row)
        words = {0: "0", np.inf: "none"}
        allowed = " / ".join(words.get(t, f"{t:.0e}") for t in sorted({c.tolerance for c in row}))
        failed = sorted({c.worst for c in row if not c.passed})
        verdict = f"DIFFERENT at {', '.join(failed)}" if failed else "ok"
        print(f"{rung:<45}{cells}{allowed:>11}  {verdict}", flush=True)


def draw(losses, path):
    """How far apart the losses of each pair are over the steps, on a logarithmic axis; equal losses lie on the floor.

    losses: case -> implementation -> list over the steps.
    """
    figure = Figure(figsize=(13, 3.2 * -(-len(losses) // 3)))
    floor = 1e-17  # below the last place of float64
    axes = list(figure.subplots(-(-len(losses) // 3), 3, squeeze=False).flat)
    for axis in axes[len(losses) :]:
        axis.set_axis_off()
    for axis, (title, of_case) in zip(axes, losses.items()):
        for k, (a, b) in enumerate(itertools.combinations(of_case, 2)):
            apart = np.abs(np.subtract(of_case[a], of_case[b]))
            axis.semilogy(
                range(1, len(apart) + 1), np.maximum(apart, floor), lw=3 - k, ls=("-", "--", ":")[k], label=f"{a} - {b}"
            )
        if len({tuple(values) for values in of_case.values()}) == 1:
            axis.text(0.5, 0.5, "0 at every step", transform=axis.transAxes, ha="center", color="0.4")
        axis.set(title=title, xlabel="training step", ylabel="difference of the losses", ylim=(floor / 2, 1))
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    save_figure(figure, path)


def run(todo, path):
    """Climbs the ladder in the ways `todo`, a list of `Case`s; prints it, writes it to `path` as JSON, draws it beside it.

    Returns: whether every check passed.
    """
    if not todo:
        raise UserError("nothing to compare with this --config and --precision: bfloat16 is for the default alone")
    be_deterministic()
    checks, losses, batches = [], {}, {}
    for case in tqdm(todo, desc="parity", unit="case", leave=False, disable=None):
        data = (
            case.config.network.channels,
            case.config.network.classes,
            case.config.data.image_size,
            case.config.network.padding,
            case.config.training.weight_map,
        )
        if data not in batches:
            config, training, _ = load_examples(case.config)
            found = {name: getattr(config, name) for name in FOUND}
            batches[data] = found, [(i.numpy(), m.numpy()) for i, m in training_batches(config, training).take(10)]
        found, examples = batches[data]
        if case.config.training.class_weights:  # given, or of the case
            found = {**found, "class_weights": case.config.training.class_weights}
        if case.void:
            # drawn cells hold no void and `Config` would refuse it; where masks come from is all one behind the loader
            found = {**found, "void_label": VOID, "dataset": "folder", "data_dir": case.config.data.data_dir or Path()}
            examples = [(images, with_void(masks)) for images, masks in examples]
        case = dataclasses.replace(case, config=case.config.replace(**found))
        if case.config.training.jit:  # XLA and op determinism exclude each other, and that cannot be switched off again
            process, connection = comparison.start_process(climb_apart, case, examples)
            try:
                of_case, losses[case.title], first = connection.recv()
            except (EOFError, ConnectionResetError):
                raise UserError(f"the process of {case.title!r} ended; its last words are above") from None
            process.wait()
        else:
            of_case, losses[case.title], first = climb(case, examples)
        print_table(of_case)
        checks += of_case
        if first:
            print(f"first difference between {first}", flush=True)
    failed = sum(not check.passed for check in checks)
    counted = sum(np.isfinite(check.tolerance) for check in checks)
    verdict = "the same network three times" if not failed else f"{failed} FAILED"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = [check.as_dict() for check in checks]
    path.write_text(json.dumps({"checks": record, "losses": losses}, indent=2) + "\n")
    if any(losses.values()):  # a structural fault leaves none
        draw({title: of_case for title, of_case in losses.items() if of_case}, path.with_suffix(".png"))
    print(f"\n{counted} checks, {verdict}; every name and reason in {path}, the losses in {path.with_suffix('.png')}")
    return not failed
