"""The ways in which `compare.py parity` climbs: architectures, and what is varied of their training, in two tiers.

Every option that reaches a number is varied in one of them; a test says so.
"""

import dataclasses
import itertools
from pathlib import Path

from common.config import IMPLEMENTATIONS, VOID, Config, Size, Weights, marked

# Sums of few powers of two, which float32, float64 and every detour between them hold alike. The usual 0.9 and 0.999 are
# rounded by each API at another place: v1's Adam computes 1 - beta_2 in float32, 1.3e-5 beside Keras's 0.001.
EXACT_CONSTANTS = dict(learning_rate=2**-10, beta_1=0.875, beta_2=1 - 2**-10, epsilon=2**-23, momentum=0.875)
EXACT_CONSTANTS |= dict(bn_momentum=0.875, bn_epsilon=2**-10)
# and a limit for the gradients that none of them reaches
OTHER_EXACT_CONSTANTS = dict(learning_rate=2**-9, beta_1=0.75, beta_2=1 - 2**-7, epsilon=2**-20, bn_momentum=0.5)
OTHER_EXACT_CONSTANTS |= dict(bn_epsilon=2**-7, clip_norm=64.0)
OTHER_CONSTANTS = dict(learning_rate=2e-3, beta_1=0.8, beta_2=0.99, epsilon=1e-6, bn_momentum=0.98, bn_epsilon=1e-5)
OTHER_CONSTANTS |= dict(clip_norm=64.0)

ARCHITECTURES = {
    "default": {},
    # the paper's network and loss, on images that are mirrored to 208x224; SGD is climbed with below
    "paper": dict(
        **dict(padding="valid", activation="relu", batch_norm="none", dropout=0.5, classes=2),
        **dict(loss="cross_entropy", weight_map=True, image_size=Size(24, 40)),
    ),
    "multi-class": dict(channels=3, classes=3, seed=1),
    "odd-size": dict(image_size=Size(51, 77), activation="relu", depth=3, filters=6, batch_size=3),
    "no-batch-norm": dict(batch_norm="none"),
}

# The losses that an architecture climbs with besides its own: (title, changes of the configuration, options of `Case`)
LOSSES = {
    "default": [
        ("cross_entropy", dict(loss="cross_entropy"), {}),
        ("dice_ce", dict(loss="dice_ce"), {}),
        ("dice_ce, weight map, void", dict(loss="dice_ce", weight_map=True), dict(void=True)),
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
    exact: bool = True  # the tier: to the last bit, with `comparison.proof.exact`; or as written
    halve_rate: bool = False  # the learning rate, half way through the steps
    void: bool = False  # some pixels of every batch are void, see `with_void`
    own: str = ""  # the folder of a column of the reader's own, which is then the one that is compared with the three
    beside: tuple = IMPLEMENTATIONS  # what it is compared with
    weights: Path | None = None  # the file of the weights to start from, if not the first ones

    @property
    def columns(self):
        return (*self.beside, self.own) if self.own else self.beside

    @property
    def pairs(self):
        """[(a, b)] of the columns that are compared."""
        return [pair for pair in itertools.combinations(self.columns, 2) if not self.own or self.own in pair]

    def loosened(self, pair, column):
        """Whether in this pair `column` takes liberties: a reader's own may be written in the API of any of the three."""
        return column in pair and not self.exact or self.own in pair and not (self.exact and column == "highlevel")


def own_cases(config, steps, precision, given):
    """The ways in which a column of the reader's own climbs: the network and the training that `config` asks for, and no other.

    precision: the only one, or None. given: names of the options on the command line, which stay as they are.
    """
    batch_norm = {} if {"batch_norm"} & given or config.network.batch_norm == "none" else {"batch_norm": "explicit"}
    config = config.replace(**batch_norm)
    ways = [(False, precision), (True, precision)] if precision else [(False, "float32"), (True, "float32"), (True, "float64")]
    for exact, of in ways:
        if of == "float64" and config.network.batch_norm == "fused":  # for which there is no kernel
            continue
        constants = {name: value for name, value in EXACT_CONSTANTS.items() if exact and name not in given}
        normalization = config.network.batch_norm.replace("none", "no batch norm")
        title = f"yours: {of}, {normalization}, {'exact constants' if exact else 'as written'}"
        yield Case(title, config.replace(precision=of, **constants), steps, exact)


def cases(name, config, steps, precision=None):
    """The ways in which the architecture `name`, made from `config`, climbs; those of one `precision` on request.

    As written with the constants of `config`, to the last bit with binary-exact ones. The default architecture climbs in every
    way. The others differ from it in the network and not in the training, so they climb with few steps, in both precisions that
    can prove something; so do the `LOSSES`, which all three share.
    """
    config = config.replace(**ARCHITECTURES[name])
    explicit = "none" if config.network.batch_norm == "none" else "explicit"
    wide, halved = dict(batch_norm=explicit, precision="float64"), dict(halve_rate=True)
    clipped = dict(dropout=0.5, clip_norm=0.1)
    # a CPU takes minutes for the filter gradients of a step of the default network in float16
    drawn = config.data.dataset == "synthetic" and not config.data.crop_size
    small = dict(filters=4, depth=2, batch_size=4) | {"image_size" if drawn else "crop_size": Size(48, 48)}

    def of_tier(other_constants, sgd, of_xla):
        """sgd: its momentum, in float32 and in float64. of_xla: the normalization under XLA."""
        narrow, in_wide = (dict(optimizer="sgd", momentum=momentum) for momentum in sgd)
        return [
            ("fused", dict(batch_norm="fused"), {}),
            ("explicit", dict(batch_norm=explicit), {}),
            ("explicit", wide, {}),
            ("fused", dict(batch_norm="fused", precision="bfloat16"), {}),
            ("explicit", dict(batch_norm=explicit, precision="bfloat16"), {}),
            ("fused", dict(batch_norm="fused", precision="float16", **small), {}),
            ("explicit, other constants", dict(batch_norm=explicit, **other_constants), {}),
            ("explicit, other constants", dict(**wide, **other_constants), {}),
            ("explicit, SGD, rate halved", dict(batch_norm=explicit, **narrow), halved),
            ("explicit, SGD, clipped, rate halved", dict(**wide, **in_wide, clip_norm=0.1), halved),
            ("explicit, dropout, clipped", dict(batch_norm=explicit, **clipped), {}),
            (f"{of_xla}, XLA", dict(batch_norm=of_xla, jit=True), {}),
        ]

    as_written = of_tier(OTHER_CONSTANTS, (0.95, 0.95), "fused")
    exact = of_tier(OTHER_EXACT_CONSTANTS, (0.875, 0.5), explicit)
    exact.insert(11, ("explicit, dropout, clipped", dict(**wide, **clipped), {}))
    if name != "default":
        as_written, exact = as_written[1:3], exact[1:3]
    for title, changes, options in LOSSES.get(name, []):
        exact += [(title, dict(batch_norm=explicit, precision=of, **changes), options) for of in ("float32", "float64")]
    for tier, chosen in (("as written", as_written), ("to the last bit", exact)):
        for title, changes, options in chosen:
            if explicit == "none":
                if "fused" in title:
                    continue
                title = title.replace("explicit", "no batch norm")
            constants = EXACT_CONSTANTS if tier == "to the last bit" else {}
            changed = config.replace(**{"precision": "float32", **constants, **changes})
            if precision in (None, changed.network.precision):
                few = steps if name == "default" and "loss" not in changes else min(steps, 10)
                title_of = f"{name}: {changed.network.precision}, {title}"
                yield Case(f"{title_of}, {tier}", changed, few, exact=tier == "to the last bit", **options)


def with_void(masks):
    """[N, H, W, 1] class indices with VOID all over the first image and in the upper quarter of the others."""
    masks = masks.copy()
    masks[0] = VOID
    masks[:, : masks.shape[1] // 4] = VOID
    return masks


def prepare(case, batches):
    """-> (the case with what its data says, [(images, masks)] as numpy arrays). `batches` keeps what was drawn before."""
    from data.loader import load_examples, training_batches

    network, training = case.config.network, case.config.training
    key = case.config.data, network.channels, network.classes, network.padding, network.depth, network.seed
    key += training.batch_size, training.weight_map
    if key not in batches:
        config, examples, _ = load_examples(case.config)
        found = {name: config.flat[name] for name in marked("found")}
        batches[key] = found, [(i.numpy(), m.numpy()) for i, m in training_batches(config, examples).take(10)]
    found, examples = batches[key]
    if training.class_weights:  # given, or of the case
        found = {**found, "class_weights": training.class_weights}
    if case.void:
        # drawn cells hold no void and `Config` would refuse it; where masks come from is all one behind the loader
        found = {**found, "void_label": VOID, "dataset": "folder", "data_dir": case.config.data.data_dir or Path()}
        examples = [(images, with_void(masks)) for images, masks in examples]
    return dataclasses.replace(case, config=case.config.replace(**found)), examples
