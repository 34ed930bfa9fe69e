"""The process that times the PyTorch peer of `python -m comparison.pjrt --time`."""

import importlib.util

STEPS = 20  # of a measurement, after the peer's own warm-up


def work(path, connection):
    """Says (version, "") or (None, why not); then answers each setting with [(program, median seconds or why not, steps)].

    path: a file with `UNet(channels, filters, depth)`, `dice_loss(masks, logits)` and `median_seconds(step, steps, sync)`.
    """
    try:
        import torch

        spec = importlib.util.spec_from_file_location("peer", path)
        peer = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(peer)
    except ImportError as error:
        return connection.send((None, str(error)))
    connection.send((torch.__version__, ""))
    while what := connection.recv():
        found = []
        try:
            for row in measure(torch, peer, **what):
                found.append(row)
        except Exception as error:  # out of memory, no compiler: what was measured before counts
            found.append(("forward" if found else "train step", f"{type(error).__name__}: {error}".splitlines()[0][:300], 0))
        connection.send(found)


def measure(torch, peer, filters, depth, channels, batch, height, width, arithmetic, variant):
    """Yields (program, median seconds of a step, steps): forward, soft dice, backward and Adam; then forward alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
    torch.manual_seed(0)
    images = torch.rand((batch, channels, height, width), device=device).contiguous(memory_format=torch.channels_last)
    masks = (torch.rand((batch, 1, height, width), device=device) > 0.5).float()
    model = peer.UNet(channels, filters, depth).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-7, fused=True)
    torch.compiler.reset()  # or it would make one program for all sizes
    forward = torch.compile(model, dynamic=False) if variant == "compile" else model
    autocast = dict(device_type=device, dtype=torch.bfloat16, enabled=arithmetic == "bfloat16")

    def train():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(**autocast):
            logits = forward(images)
        loss = peer.dice_loss(masks, logits)
        loss.backward()
        optimizer.step()

    def infer():
        with torch.inference_mode(), torch.autocast(**autocast):
            return forward(images)

    yield "train step", peer.median_seconds(train, STEPS, sync), STEPS
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    yield "forward", peer.median_seconds(infer, STEPS, sync), STEPS
    if device == "cuda":
        torch.cuda.empty_cache()  # JAX is on the same GPU
