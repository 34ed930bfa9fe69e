"""What the three implementations share, and the environment that all of them need.

Every module of the project imports `common` before anything else, so this is where the switches are set that TensorFlow and
Keras read only once. TensorFlow itself is imported by `common.device`, and not before it is needed.
No module of this package chooses between TensorFlow's APIs.
"""

import os
import sys

# tf.layers lives in tf-keras; TensorFlow reads this switch when its Keras is first touched.
os.environ["TF_USE_LEGACY_KERAS"] = "1"

if os.environ.setdefault("KERAS_BACKEND", "tensorflow") != "tensorflow":
    # `import keras` would load the other backend, or fail, long before any main() could say why.
    backend = os.environ["KERAS_BACKEND"]
    print(f"error: KERAS_BACKEND is {backend!r}, but all three implementations run on TensorFlow: unset it", file=sys.stderr)
    raise SystemExit(2)


def quietly(hook):
    """`hook`, of `sys`, but for Ctrl-C: where the scripts still import their modules, nothing else can answer it."""

    def answer(*what):
        error = what[0].exc_value if len(what) == 1 else what[1]
        chain = []
        while error is not None and error not in chain:
            chain.append(error)
            error = error.__cause__ or error.__context__
        if not any(isinstance(error, KeyboardInterrupt) for error in chain):
            return hook(*what)
        print("\nstopped; what was saved before stays", file=sys.stderr, flush=True)
        if len(what) == 1:  # it came where nothing can be raised, and not from here either
            os._exit(130)

    return answer


sys.excepthook, sys.unraisablehook = quietly(sys.excepthook), quietly(sys.unraisablehook)


def see_one_gpu(number, environ=os.environ):
    """Of the GPUs that a process with `environ` may use, its TensorFlow will see that one alone, if it is not imported yet."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        environ["CUDA_VISIBLE_DEVICES"] = str(number)
    elif number < len(names := visible.split(",")):  # "" and "-1" hide all
        environ["CUDA_VISIBLE_DEVICES"] = names[number]
