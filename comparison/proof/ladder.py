"""What the three compute on each rung, from the shapes of the weights to a hundred training steps, and how far it is apart."""

import dataclasses
import functools
import itertools
import sys

from common.config import Config, UserError
from common.device import be_deterministic, on_gpu, tf
from common.weights import initial_weights, weight_shapes
from comparison import own
from comparison.machine import arithmetic
from comparison.proof import exact, finder, oracle, rounding
from comparison.proof.apart import Apart, apart
from comparison.proof.rounding import ROUNDING
from comparison.proof.ways import EXACT_CONSTANTS, Case

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file


@dataclasses.dataclass(frozen=True)
class Check:
    """One rung of the ladder between two implementations: equal within the tolerance, or not."""

    case: Case
    rung: str  # what was compared: "gradients"
    pair: str  # "lowlevel - highlevel"
    worst: str  # the canonical name, or the step, whose difference is the largest beside its tolerance
    difference: float  # the largest absolute difference there; infinite where names, shapes or not-a-numbers disagree
    ulp: int  # that difference in units in the last place
    tolerance: float  # of the absolute difference
    reason: str  # for the tolerance

    @property
    def passed(self):
        return self.difference <= self.tolerance

    @property
    def over(self):
        """How many times as large as it may be."""
        return self.difference and self.difference / (self.tolerance or sys.float_info.min)

    def as_dict(self):
        """For JSON, which knows no infinity: None where nothing can be claimed, or where nothing could be compared."""
        values = {**vars(self), "case": self.case.title, "exact": self.case.exact, "passed": self.passed}
        return {name: None if value == np.inf else value for name, value in values.items()}


CONTRACT = "names and shapes are the contract"


def misfit(case, implementation, error):
    """The `Check` that fails where a column does not take the weights, or its operations do not fit one another."""
    words = " ".join(str(error).split())[:300]
    return Check(case, "structure", own.short(implementation), words, np.inf, 0, 0.0, CONTRACT)


def start_weights(case):
    """Canonical name -> array: the first weights, or those in the file of the case. Raises: UserError where they do not fit."""
    network, first = case.config.network, initial_weights(case.config.network)
    if case.weights is None:
        return first
    found = {name: value for name, value in read_weights(case.weights).items() if name not in ("images", "logits")}
    state = {name: value for name, value in first.items() if name == "dropout/state" and name not in found}
    found |= state
    own.check_shapes(f"--weights {case.weights}", {name: w.shape for name, w in found.items()}, weight_shapes(network))
    return {name: found[name].astype(value.dtype) for name, value in first.items()}


def read_weights(path):
    """Name -> array. Raises: UserError for a file that is no safetensors."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--weights {path}: {getattr(error, 'strerror', None) or 'no safetensors file'}") from None


STEPS_BY_FORMULA = 3


def first_pass(forward, backward, built, images, masks):
    """What a column makes of one batch from where it stands. -> rung -> {name -> array}

    forward(images) -> logits in inference. backward: of `built`, or the same as traced.
    """
    rungs = {"logits in inference": {"logits": np.asarray(forward(images))}}
    logits, loss, gradients = backward(images, masks)
    rungs |= {"logits in training": {"logits": logits.numpy()}, "loss": {"loss": loss.numpy()}}
    rungs["gradients"] = {name: gradient.numpy() for name, gradient in gradients.items()}
    return rungs | {"moving statistics, 1 step": built.values(trained=False)}


def observe(implementation, case, batches, initial=None):
    """Runs one implementation up the ladder, from the canonical initial weights, or from others.

    batches: list of (images, masks), of which step k takes number k, over and over. initial: canonical name -> array.

    Returns: rung -> {name -> array}; without the rungs of the training if the column has none.
    """
    config, steps, (images, masks) = case.config, case.steps, batches[0]
    built = exact.build(implementation, case)
    initial = start_weights(case) if initial is None else initial
    backward = tf.function(built.backward, jit_compile=config.training.jit, autograph=False)
    built.start(initial)
    rungs = {"structure": {name: np.zeros(w.shape) for name, w in built.weights.items()}}
    rungs |= first_pass(built.forward, backward, built, images, masks)
    built.model(images, training=True)  # from statistics that are neither 0 nor 1
    rungs["moving statistics, 2 passes"] = built.values(trained=False)
    built.start(initial)  # takes back the moving statistics
    if not steps or not built.trains:
        return rungs
    losses, by_formula = {}, {}
    for k in range(steps):
        batch = batches[k % len(batches)]
        if case.halve_rate and k == steps // 2:
            built.optimizer.learning_rate.assign(config.training.learning_rate / 2)
        if k >= STEPS_BY_FORMULA:
            losses[f"step {k + 1}"] = np.asarray(built.train_step(*batch))
            continue
        weights, state = built.values(), built.moments()
        gradients = rungs["gradients"]  # of the first batch, from the first weights
        if k:
            gradients = {name: g.numpy() for name, g in backward(*batch)[2].items()}
            built.start(weights)  # as before this look at the gradients
        losses[f"step {k + 1}"] = np.asarray(built.train_step(*batch))
        after = built.moments()
        rate = config.training.learning_rate / (1 + (case.halve_rate and k >= steps // 2))
        beside = beside_formulas(config.training, weights | state, gradients, built.values() | after, k + 1, rate)
        for slot, values in beside.items():
            by_formula.setdefault(f"{slot} beside its formula", {}).update(values)
        counts = {f"{name}, step {k + 1}": value for name, value in after.items() if "/" not in name}
        rungs.setdefault("count of steps", {}).update(counts)
        for name, value in after.items() if k == 0 else ():  # for a record: here the formulas say more
            if "/" in name:
                rungs.setdefault(f"{name[-1]}, 1 step", {})[name] = value
    rungs |= by_formula
    rungs["losses, first 5 steps"] = dict(itertools.islice(losses.items(), 5))
    rungs[f"losses, {steps} steps"] = losses
    rungs[f"weights, {steps} steps"] = built.values(trained=True)
    rungs[f"moving statistics, {steps} steps"] = built.values(trained=False)
    rungs[f"inference, {steps} steps"] = {"logits": built.forward(images).numpy()}
    if config.network.batch_norm != "none" and not case.own:  # one of the reader's own need not know a network without
        rungs[f"inference, {steps} steps, folded"] = {"logits": built.folded().forward(images).numpy()}
    if "loss_scale" in built.state:
        rungs |= {rung: scaled_step(built, batches[0], scale) for rung, scale in SCALES.items()}
    return rungs


SCALES = {"a step that overflows": 2.0**120, "the loss scale grows": 2.0**10}  # rung -> `scaled_step` with that scale


def scaled_step(built, batch, scale):
    """Of a step of float16 from that scale, the 2000th since it changed: what it makes of scale and counts, and what moves."""
    before = built.values(trained=True) | built.moments()
    built.state["loss_scale"].assign(scale)
    built.state["finite_steps"].assign(1999)
    built.train_step(*batch)
    after = built.values(trained=True) | built.moments()
    found = {"iterations": after["iterations"] - before["iterations"], "loss_scale": after["loss_scale"] / scale}
    found["finite_steps"] = after["finite_steps"]
    found["moved"] = np.any([(after[name] != before[name]).any() for name in after if "/" in name])  # weights and moments
    return {name: np.float64(value) for name, value in found.items()}


def beside_formulas(options, before, gradients, after, t, rate):
    """How far step `t` is from the formulas of `oracle`: of moments by the column's own gradients, of weights by its moments.

    Where a gradient is rounding alone a step of Adam goes either way, as long as the learning rate. So the weights of two
    columns cannot tell an epsilon elsewhere, but each step beside its formula can.

    before, after: name -> array, weights and moments.

    Returns: "m", "v" and "update" -> {name, and the step -> array}, relative to gradient, its square, and weight and step.
    """
    wide = {name: g.astype(np.float64) for name, g in gradients.items()}
    if options.clip_norm:
        wide = oracle.clip_by_global_norm(wide, options.clip_norm)
    options, found = dataclasses.replace(options, learning_rate=rate), {"m": {}, "v": {}, "update": {}}
    for name, g in wide.items():
        key, size = f"{name}, step {t}", np.abs(g).max() or 1.0
        w, m, v = (np.asarray(before.get(of, 0.0), np.float64) for of in (name, f"{name}/m", f"{name}/v"))
        new_w, new_m, new_v = (np.asarray(after.get(of, 0.0), np.float64) for of in (name, f"{name}/m", f"{name}/v"))
        if options.optimizer == "adam":
            _, right_m, right_v = oracle.adam(w, g, m, v, t, options)
            step, found["v"][key] = -oracle.step_of_adam(new_m, new_v, t, options), (new_v - right_v) / size**2
        else:
            (_, right_m, _), step, size = oracle.sgd(w, g, m, v, t, options), new_m, size * rate
        found["m"][key] = (new_m - right_m) / size
        found["update"][key] = (new_w - w - step) / np.maximum(np.abs(w) + np.abs(step), np.finfo(float).tiny)
    return {what: values for what, values in found.items() if values}


def tolerance(rung, pair, case, scale=0.0, rounded=0.0):
    """(largest absolute difference, reason) that an array may show.

    Infinite where nothing can be claimed, with the reason: the rung is then shown and not counted as a check.

    pair: the two implementations. scale: the largest absolute value of the array. rounded: how far rounding may carry it, see
    `rounding.explained`.
    """
    if rung in ("structure", "count of steps", *SCALES):
        return 0.0, "names, shapes and whole numbers are the contract"
    if case.exact and not case.own:
        return 0.0, "the same kernels on the same numbers in the same order"
    training, precision = case.config.training, case.config.network.precision
    unit = ROUNDING[precision] if precision == "float64" else ROUNDING["float32"]  # of a variable
    if rung.endswith("beside its formula"):
        own_rounding = 8 * unit + (0 if rung.startswith("update") else 2 * rounded / (scale or 1.0))
        if case.exact:
            return own_rounding, "8 roundings make a step; and what rounding makes of the gradient"
        return 2e-5 + own_rounding, "constants pass through float32, so that 1 - beta_2 is up to 1.3e-5 off, and alpha 2e-5"
    if rung in FIRST_STEP:
        if rung.startswith("moving statistics"):
            if precision == "float64" and case.loosened(pair, "highlevel"):
                return rounded + 2**-22 * scale, "tf.layers take 1 - momentum through float32"
            return rounded + 4 * unit * scale, "m - (m - x)(1 - k) and m k + x (1 - k) round apart"
        return rounded, rounding.REASON
    if rung == "losses, first 5 steps":
        if precision in ("bfloat16", "float16"):
            of_16_bits = "every step starts from weights that a rounding to 16 bits has moved, and adds its own"
            return 5 * ROUNDING[precision] * scale, of_16_bits
        return 2e-5, "a step of v1's Adam is 6e-6 longer, and rounding decides where a gradient is nothing else; then it grows"
    if rung.startswith("weights") and training.optimizer == "sgd":  # Adam's step is as long where a gradient is rounding alone
        reason = "a step of SGD is linear in its gradient, so that rounding stays rounding; constants pass through float32"
        of_gradients = case.steps * training.learning_rate / (1 - training.momentum) * rounded
        return 4 * case.steps * max(ROUNDING[precision], 2**-24) * scale + of_gradients, reason
    return np.inf, "training makes any difference grow"


FIRST_STEP = ("logits in inference", "logits in training", "loss", "gradients")
FIRST_STEP += ("moving statistics, 1 step", "moving statistics, 2 passes")


def compare(case, rung, pair, values, others, allowed):
    """`Check` of two columns on a rung: of the name whose difference is the largest beside what is allowed.

    values, others: name -> array. allowed: function(name, scale) -> (largest absolute difference, reason).
    """
    words = " - ".join(map(own.short, pair))
    if odd := sorted(values.keys() ^ others.keys()):
        return Check(case, rung, words, odd[0], np.inf, 0, 0.0, CONTRACT)
    found = []
    for name, x in values.items():
        far = apart(x, others[name]) if x.dtype == others[name].dtype else Apart(np.inf)
        bound, reason = allowed(name, float(np.abs(x.astype(np.float64)).max(initial=0)))
        found.append(Check(case, rung, words, name, far.difference, far.ulp, bound, reason))
    if not found:
        return Check(case, rung, words, "", 0.0, 0, *allowed("", 0.0))
    return max(found, key=lambda check: (check.over, check.difference, check.tolerance))


def climb(case, batches, seen=None, explained=None):
    """Runs the three implementations, and the reader's own if the case has one, and compares them in pairs.

    seen: {implementation: rungs} of those that have climbed before. explained: of `rounded`, if that is known.

    Returns: (list of `Check`s, {implementation: losses over the steps}, where they first differ if a check fails).
    """
    if case.exact and not case.config.training.jit:  # XLA and op determinism exclude each other
        be_deterministic()
    rungs = dict(seen or {})
    for name in case.columns[::-1]:  # the reader's own first: it is the one that may fail
        try:
            if name not in rungs:
                with own.blamed(name):
                    rungs[name] = observe(name, case, batches)
        except (ValueError, UserError) as error:  # of `assign_weights`, or of operations whose shapes do not fit
            failed = misfit(case, name, error)
            if name == case.own:  # perhaps it is not whole yet
                with own.blamed(name):
                    words = finder.locate("lowlevel", name, case, batches, start_weights(case))
                if words.startswith("none"):
                    raise
                failed = misfit(case, name, words)
            first = failed.worst if failed.worst.startswith(failed.pair) else f"{failed.pair}: {failed.worst}"
            return [failed], {}, first
    explained = rounded(case, batches) if explained is None else explained
    scales = {name: float(np.abs(g).max()) for name, g in rungs["lowlevel"]["gradients"].items()}

    def allowed(rung, pair, name, scale):
        of = name.partition(",")[0] if rung.endswith("beside its formula") else name
        known = of_all = explained.get(rung, {}).get(name, 0.0)
        if rung.endswith("beside its formula") or rung.startswith("weights"):  # they follow from the gradient
            known = explained.get("gradients", {}).get(of, 0.0)
        of_keras = case.loosened(pair, "keras_impl") and (case.own or case.config.network.classes == 1 and name == "head/bias")
        further = rounding.one_by_one(batches[0][0]) if of_keras and name.endswith("/bias") else 1.0
        known *= further
        bound, reason = tolerance(rung, pair, case, scales.get(of, 0.0) if of != name else scale, known)
        if further > 1 and rung == "gradients":
            reason += "; BiasAddGrad adds up all pixels one by one"
        return (of_all, rounding.REASON) if of_all > bound and on_gpu() else (bound, reason)

    checks, failed = [], []
    for rung in (rung for rung in rungs[case.columns[-1]] if rung not in ("m, 1 step", "v, 1 step")):
        for a, b in case.pairs:
            checks.append(compare(case, rung, (a, b), rungs[a][rung], rungs[b][rung], functools.partial(allowed, rung, (a, b))))
            failed += [] if checks[-1].passed else [(a, b, checks[-1])]
    losses = {name: [float(loss) for loss in of.get(f"losses, {case.steps} steps", {}).values()] for name, of in rungs.items()}
    if not failed:
        return checks, losses, ""
    a, b, check = failed[0]
    where = finder.locate(a, b, case, batches, start_weights(case))
    if where.startswith("none"):
        where = f"{check.rung}, {check.worst}: {check.difference:.1e} apart, where {check.tolerance:.1e} is rounding"
    return checks, losses, f"{own.short(a)} and {own.short(b)}: {where}"


def rounded(case, batches, known=None):
    """`rounding.explained` of the rungs that it bounds: on a GPU of all, which may choose another algorithm for each graph.

    known: what was found before, for the cases that differ in nothing that it depends on.
    """
    if case.exact and not case.own and not on_gpu():
        return {}
    unit = rounding.of_a_sum(arithmetic(case.config), rounding.longest_sum(case.config.network, batches[0][0]))
    wide, known = rounding.in_float64(case), {} if known is None else known
    if not on_gpu():
        first = {name: Config().flat[name] for name in ("optimizer", "clip_norm", *EXACT_CONSTANTS) if name[:3] != "bn_"}
        wide = dataclasses.replace(wide, title="", steps=0, halve_rate=False, config=wide.config.replace(**first))
    if (wide, unit) not in known:
        known[wide, unit] = rounding.explained(observe_eagerly, wide, batches, start_weights(case), unit)
    return known[wide, unit]


def observe_eagerly(*arguments):
    """`observe` without traced functions, of which each would run but once."""
    tf.config.run_functions_eagerly(True)
    try:
        return observe(*arguments)
    finally:
        tf.config.run_functions_eagerly(False)


def beside_file(case):
    """[`Check`] of each column's logits beside those in the file of the weights, of the images in it; of the shapes without."""
    found, checks = read_weights(case.weights), []
    images, logits = (found.get(name) for name in ("images", "logits"))
    weights = start_weights(case)
    if images is None or logits is None:
        return [Check(case, "names and shapes", "the file", "", 0.0, 0, 0.0, CONTRACT)]
    explained = rounded(dataclasses.replace(case, exact=False), [(images, np.zeros((*logits.shape[:3], 1), np.float32))])
    bound = explained["logits in inference"]["logits"], rounding.REASON
    for name in case.columns:
        with own.blamed(name):
            built = exact.build(name, case)
            built.start(weights)
            seen = built.forward(images).numpy()
        own.check_shapes(f"--weights {case.weights}", {"logits": logits.shape}, {"logits": seen.shape})
        values, others = {"logits": seen}, {"logits": logits.astype(seen.dtype)}
        checks.append(compare(case, "logits of the file", (name,), values, others, lambda *_: bound))
    return checks
