"""The exercises of docs/exercises as a reader does them: the stubs of the page, and solutions for the lines with `...`."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "exercises" / "README.md"
SOLUTIONS = {
    1: """
        x = tf.nn.conv2d(x, kernel, strides=1, padding="SAME")
        x = x if bias is None else tf.nn.bias_add(x, bias)
""",
    2: """
        mean, variance = moving_mean, moving_variance
        if training:
            mean, variance = tf.nn.moments(x, axes=[0, 1, 2])
            moving_mean.assign(moving_mean * momentum + mean * (1 - momentum))
            moving_variance.assign(moving_variance * momentum + variance * (1 - momentum))
        x = tf.nn.batch_normalization(x, mean, variance, beta, gamma, epsilon)
""",
    3: """
        skips = []
        for i in range(depth):
            x = self.double_conv(x, f"down{i}", training)
            skips.append(x)
            x = tf.nn.max_pool2d(x, 2, strides=2, padding="VALID")
        x = self.double_conv(x, f"down{depth}", training)
        for i in reversed(range(depth)):
            x = self.conv2d_transpose(x, f"up{i}/deconv")
            x = tf.concat([skips[i], x], axis=-1)
            x = self.double_conv(x, f"up{i}", training)
""",
    4: """
    overlap = tf.reduce_sum(g * p, axis=(1, 2, 3), keepdims=True)
    total = tf.reduce_sum(g + p, axis=(1, 2, 3), keepdims=True)
    loss = tf.reduce_mean(1 - (2 * overlap + 1) / (total + 1))
    d_p = (2 * overlap + 1) / (total + 1) ** 2 - 2 * g / (total + 1)
    d_logits = d_p * p * (1 - p) / tf.cast(tf.shape(g)[0], g.dtype)
""",
    5: """
        lr, beta_1, beta_2 = tf.cast(self.learning_rate, dtype), settings.beta_1, settings.beta_2
        alpha = lr * tf.sqrt(1 - beta_2**t) / (1 - beta_1**t)
        for name, w in self.weights.items():
            g, m, v = gradients[name], self.state[f"{name}/m"], self.state[f"{name}/v"]
            m.assign_add((1 - beta_1) * (g - m))
            v.assign_add((1 - beta_2) * (g**2 - v))
            w.assign_sub(alpha * m / (tf.sqrt(v) + settings.epsilon))
""",
    6: """
        if training:
            x = tf.nn.experimental.stateless_dropout(x, self.network.dropout, tf.cast(state, tf.int32))
            state.assign_add([0, 1])
""",
}
CALL = '        x = self.double_conv(x, f"down{depth}", training)\n'


def stubs():
    """{number of the exercise: its code}"""
    parts = re.split(r"^## (\d)\..*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {int(k): re.search(r"^```python\n(.*?)^```$", text, re.M | re.S)[1] for k, text in zip(parts[::2], parts[1::2])}


def commands():
    """{number of the exercise: the options of its command}"""
    parts = re.split(r"^## (\d)\..*$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    lines = (re.search(r"^    python compare.py (parity .*)$", text, re.MULTILINE)[1] for text in parts[1::2])
    return {int(k): line.split() for k, line in zip(parts[::2], lines)}


def with_definitions(source, code):
    """`source` with the functions and classes of `code`, in the place of those of the same name, or behind or in the class."""
    indent = re.match(r" *", code)[0]
    for block in re.findall(rf"^{indent}(?:@.*\n{indent})?(?:def|class) .*\n(?:(?:{indent} .*)?\n)*", code, re.MULTILINE):
        name = re.search(r"(?:def|class) (\w+)", block)[1]
        old = re.search(rf"^{indent}(?:def|class) {name}\b.*\n(?:(?:{indent} .*)?\n)*", source, re.MULTILINE)
        if old:
            source = source.replace(old[0], block.rstrip("\n") + "\n\n")
        elif indent:
            source = source.replace("\ndef named_weights", f"{block.rstrip()}\n\n\ndef named_weights")
        else:
            source += f"\n\n{block}"
    return source


def written(k, folder, solved):
    """Writes exercise `k` into `folder`, all before it solved, and this one if `solved`."""
    code = stubs()
    model, train = code[1], code[4] if k >= 4 else None
    for j in range(1, k + 1):
        if j in (2, 3, 6):
            model = with_definitions(model, code[j])
        if j == 5:
            train = with_definitions(train, code[5])
        if j < k or solved:
            (gap,) = re.findall(rf"^ *\.\.\.  # {j}: .*\n", model + (train or ""), re.MULTILINE)
            solution = SOLUTIONS[j].strip("\n") + "\n"
            model, train = model.replace(gap, solution), train and train.replace(gap, solution)
    if k == 6:
        model = model.replace(CALL, f"{CALL}        x = self.dropout(x, training) if self.network.dropout else x\n")
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(model, encoding="utf-8")
    if train:
        (folder / "train.py").write_text(train.replace("my_column", folder.name), encoding="utf-8")
