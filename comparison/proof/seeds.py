"""Where bits cannot agree, do results? Each implementation is trained with several seeds, and the final dice are compared.

Under XLA, on a GPU, or in bfloat16 on two machines, rounding differs and training makes any difference grow, so that equal bits
cannot be asked for. What can be claimed is statistical, as in MLPerf's convergence checks: the three end in the same place, but
for the scatter that rounding makes. A permutation test says whether they do, and its power what it would have noticed.
"""

import itertools

from common.cli import count
from common.config import Size, UserError
from common.output import write_json
from comparison import columns

import numpy as np
from tqdm import tqdm

SMALL = dict(filters=4, depth=2, batch_size=4, images=60, image_size=Size(48, 48), epochs=10, learning_rate=0.01)
LEVEL = 0.01  # how often the test finds a difference where there is none
POWER = 0.9  # how often it finds one of the size that is stated
SHUFFLES, EXPERIMENTS = 1000, 100

SETS = set()


def add_options(parser):
    group = parser.add_argument_group("seeds")
    group.add_argument(
        "--seeds", type=count, default=8, metavar="N", help="trainings of each (default: %(default)s, at least 6)"
    )


def run(config, args):
    """Trains, prints a table and the verdict, writes seeds.json. Returns: whether the three agree.

    Raises: UserError for so few seeds that no difference could be found.
    """
    from data.loader import load_examples

    if 3.0 ** (1 - args.seeds) > LEVEL:  # so often chance gives the best of every seed to one implementation
        raise UserError(f"--seeds {args.seeds} are too few to tell a difference from chance: 6 or more")
    config, training, validation = load_examples(columns.shrunk(config, SMALL, args.given))
    names, seeds = columns.IMPLEMENTATIONS, range(config.network.seed, config.network.seed + args.seeds)
    print(f"\n{'dice at the end':<16}" + "".join(f"{name:>12}" for name in names), flush=True)
    trainers = [make_trainer(name, config, training, validation) for name in names]
    dice, todo = np.zeros((args.seeds, 3)), itertools.product(range(args.seeds), range(3))
    for n, k in tqdm(list(todo), desc="seeds", unit="training", leave=False, disable=None):
        dice[n, k] = trainers[k](seeds[n])
        if k == 2:
            print(f"{f'seed {seeds[n]}':<16}" + "".join(f"{value:>12.5f}" for value in dice[n]), flush=True)
    for title, values in (("mean", dice.mean(0)), ("deviation", dice.std(0, ddof=1))):
        print(f"{title:<16}" + "".join(f"{value:>12.5f}" for value in values))
    difference, p = permutation_test(dice)
    smallest = detectable(dice)
    print(f"\n{verdict(difference, p, smallest)}")
    result = dict(difference=difference, p=p, level=LEVEL, power=POWER, detectable=smallest)
    path = config.training.run_dir / "seeds.json"
    record = {"config": config.as_dict(), "seeds": [*seeds], "dice": dict(zip(names, dice.T.tolist())), **result}
    write_json(path, record)
    print(f"written to {path}")
    return p > LEVEL


def make_trainer(implementation, config, training, validation):
    """-> function(seed) -> dice on the validation images after all epochs; traced once, whatever the seed.

    The seed decides weights, order and augmentation; the images stay those of `config`.
    """
    from common.weights import assign_weights, initial_weights
    from data.loader import steps_per_epoch, training_batches, validation_batches
    from training.report import evaluate, make_eval_step

    built = columns.Built(implementation, config)
    eval_step = make_eval_step(built.model, config)
    fresh = built.moments()
    steps = config.training.epochs * steps_per_epoch(config, training)

    def final_dice(seed):
        seeded = config.replace(seed=seed)
        built.start(initial_weights(seeded.network))
        assign_weights(built.state, fresh)
        for images, masks in itertools.islice(training_batches(seeded, training), steps):
            built.train_step(images, masks)
        return evaluate(eval_step, validation_batches(config, validation), config.network.classes)[0]["dice"]

    return final_dice


def spread(dice):
    """The largest difference between two implementations' means: [..., seeds, 3] -> [...]."""
    return np.ptp(dice.mean(-2), axis=-1)


def shuffle(dice, rng, times):
    """`dice` [seeds, 3] with the three of every seed in random order: [times, seeds, 3]."""
    return rng.permuted(np.broadcast_to(dice, (times, *dice.shape)), axis=-1)


def permutation_test(dice, rng=None):
    """-> (`spread` of `dice` [seeds, 3], p: how often it is as large when the names are dealt out by chance).

    With one seed the three start from the same weights and see the same batches. Are they the same network but for rounding,
    any of the three results could have been any one's, seed by seed (Fisher 1935, "The design of experiments"; Phipson and
    Smyth 2010 for the ones below). Where two are equal to the last bit, chance finds a difference in 1.7 % and not in 1 %.
    """
    found = spread(dice)
    chance = spread(shuffle(dice, rng or np.random.default_rng(0), SHUFFLES))
    return float(found), float((1 + np.sum(chance >= found - 1e-12)) / (1 + SHUFFLES))


def power(dice, shift):
    """How often the test finds that one implementation is better by `shift`, where the rest scatters as `dice` does."""
    rng = np.random.default_rng(1)
    experiments = shuffle(dice, rng, EXPERIMENTS) + shift * np.array([1.0, 0.0, 0.0])
    return np.mean([permutation_test(experiment, rng)[1] <= LEVEL for experiment in experiments])


def detectable(dice):
    """The smallest difference in the dice that the test finds in `POWER` of all experiments, to a tenth of itself."""
    low, high = 0.0, float(np.ptp(dice, axis=1).max())
    while high and power(dice, high) < POWER:
        low, high = high, 2 * high
    while high - low > 0.1 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(dice, middle) >= POWER else (middle, high)
    return high


def verdict(difference, p, smallest):
    """In a sentence or two, for who has never heard of a permutation test."""
    if not smallest:
        return "The three end with the same dice, to the last digit, with every seed."
    chance = f"the mean dice differ by {difference:.5f}, and dealt out by chance as much in {100 * p:.3g} of 100 cases"
    if p <= LEVEL:
        return f"The three do NOT end in the same place: {chance}. They differ by more than rounding explains."
    noticed = f"Had one been better by {smallest:.5f}, this would have been noticed in {10 * POWER:.0f} of 10 such comparisons."
    return f"The three end in the same place: {chance} (p = {p:.2f}). {noticed} A smaller difference may go unnoticed."
