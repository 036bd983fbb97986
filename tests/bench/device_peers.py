"""Times what others offer for the same work, on the same device and in the same run as the device benchmarks (bench/device).

    python3 tests/bench/device_peers.py [--json FILE] [--reference DIR] [--device cpu --smoke]

PyTorch's scaled_dot_product_attention, at the shapes of our attention, as it chooses and by each of its backends; with --reference (a folder with ttt.py of
ttt-lm-pytorch) that layer's inner loop, eager and compiled, at the shapes of our TTT kernels; flash-linear-attention's
TTT-Linear kernels where the package is installed. bf16, medians of repeats between events, after warm-up. A peer that is
missing or fails gets a line that says so."""

import argparse
import contextlib
import importlib
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.attention

import transformers_stand_in

HEADS, FEATURES, MINI_BATCH = 12, 64, 16
BACKENDS = (None, "FLASH_ATTENTION", "CUDNN_ATTENTION")  # of scaled_dot_product_attention; None: its own choice


class Peers:
    def __init__(self, options: argparse.Namespace):
        self.device, self.smoke, self.budget_ms, self.json = options.device, options.smoke, options.budget, options.json
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32

    def random(self, *shape: int, grad: bool = True) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype, requires_grad=grad)

    def write(self, row: dict) -> None:
        if self.json:
            with open(self.json, "a") as file:
                file.write(json.dumps(row) + "\n")

    def mark(self):
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, work: Callable[[], None]) -> list[float]:
        def between(marks: list) -> list[float]:
            if self.device == "cpu":
                return [1e3 * (later - earlier) for earlier, later in zip(marks, marks[1:])]
            torch.cuda.synchronize()
            return [earlier.elapsed_time(later) for earlier, later in zip(marks, marks[1:])]

        work()  # compiles, where there is anything to compile
        marks = [self.mark()]
        work()
        marks.append(self.mark())
        repeats = max(3, min(50, int(self.budget_ms / max(between(marks)[0], 1e-3))))
        marks = [self.mark()]
        for _ in range(repeats):
            work()
            marks.append(self.mark())
        return between(marks)

    def measure(self, name: str, batch: int, tokens: int, make: Callable[[], Callable[[], None]], **facts: str) -> None:
        shape = f"B={batch} H={HEADS} F={FEATURES} T={tokens}"
        try:
            times = self.milliseconds(make())
        except Exception as error:  # a peer's failure is a result, not ours
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:160]
            print(f"{name:<44} {shape:<30} not measured: {reason}", flush=True)
            self.write({"work": name, "shape": shape, "not_measured": reason, **facts})
            return
        finally:
            if self.device == "cuda":
                torch.cuda.empty_cache()
        median = statistics.median(times)
        rate = batch * tokens / (1e-3 * median)
        print(f"{name:<44} {shape:<30} {median:10.3f} ms {rate:15.0f} tokens/s", flush=True)
        self.write({"work": name, "shape": shape, "median_ms": median, "least_ms": min(times), "most_ms": max(times),
                    "repeats": len(times), "tokens_per_second": rate, "torch": torch.__version__, **facts})


def attention(peers: Peers, batch: int, tokens: int, with_backward: bool, backend: str | None) -> Callable[[], None]:
    q, k, v = (peers.random(batch, HEADS, tokens, FEATURES) for _ in range(3))
    d_out = peers.random(batch, HEADS, tokens, FEATURES, grad=False)

    def chosen() -> contextlib.AbstractContextManager:
        if backend is None:
            return contextlib.nullcontext()
        return torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend))

    def work() -> None:
        with chosen(), torch.set_grad_enabled(with_backward):
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        if with_backward:
            torch.autograd.grad(out, (q, k, v), d_out)

    return work


def measure_attention(peers: Peers, batch: int, tokens: int) -> None:
    for backend in BACKENDS:
        name = f"torch SDPA {backend}" if backend else "torch SDPA"
        for direction in ("forward", "forward+backward"):
            peers.measure(f"{name} {direction}", batch, tokens,
                          lambda: attention(peers, batch, tokens, direction != "forward", backend), backend=backend or "its own choice")


def reference_layer(peers: Peers, folder: str, model: str, batch: int, tokens: int, compiled: bool) -> Callable[[], None]:
    """The scan of ttt-lm-pytorch over mini-batches: q, k, v and learning rates in, outputs and their gradients out."""
    if folder not in sys.path:
        transformers_stand_in.install()
        sys.path.insert(0, folder)
    ttt = importlib.import_module("ttt")
    config = ttt.TTTConfig(hidden_size=HEADS * FEATURES, num_attention_heads=HEADS, ttt_layer_type=model,
                           mini_batch_size=MINI_BATCH, use_gate=True, share_qk=True, pre_conv=True, conv_kernel=4)
    layer = (ttt.TTTLinear if model == "linear" else ttt.TTTMLP)(config, layer_idx=0).to(peers.device, peers.dtype)
    tiles = (batch, HEADS, tokens // MINI_BATCH, MINI_BATCH)
    q, k, v = (peers.random(*tiles, FEATURES) for _ in range(3))
    scale = (1.0 / torch.arange(1, MINI_BATCH + 1, device=peers.device)).to(peers.dtype).reshape(1, 1, 1, MINI_BATCH, 1)
    token_eta = scale.expand(*tiles, 1)
    rate = torch.full((*tiles[:3], 1, MINI_BATCH), 0.5 / FEATURES, device=peers.device, dtype=peers.dtype)
    d_out = peers.random(batch, tokens, HEADS * FEATURES, grad=False)
    inputs = {"XQ": q, "XK": k, "XV": v, "eta": token_eta * rate, "token_eta": token_eta, "ttt_lr_eta": rate}
    run = torch.compile(layer.ttt) if compiled else layer.ttt

    def work() -> None:
        out, _ = run(inputs, MINI_BATCH, None, None)
        torch.autograd.grad(out, (q, k, v), d_out)

    return work


def fla_layer(peers: Peers, name: str, batch: int, tokens: int) -> Callable[[], None]:
    function = getattr(importlib.import_module("fla.ops.ttt"), name)
    q, k, v = (peers.random(batch, tokens, HEADS, FEATURES) for _ in range(3))
    weight = torch.ones(HEADS, FEATURES, device=peers.device, dtype=peers.dtype, requires_grad=True)
    bias = torch.zeros(HEADS, FEATURES, device=peers.device, dtype=peers.dtype, requires_grad=True)
    eta = torch.full((batch, tokens, HEADS, 1), 0.5 / FEATURES / MINI_BATCH, device=peers.device, dtype=peers.dtype)
    d_out = peers.random(batch, tokens, HEADS, FEATURES, grad=False)

    def work() -> None:
        out = function(q=q, k=k, v=v, w=weight, b=bias, eta=eta, chunk_size=MINI_BATCH)[0]
        torch.autograd.grad(out, (q, k, v), d_out)

    return work


def fla_version() -> str:
    try:
        return str(getattr(importlib.import_module("fla"), "__version__", "unknown"))
    except Exception as error:  # the row then says why it was not measured
        return f"not to be imported: {type(error).__name__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="small sizes: everything runs, the figures mean nothing")
    parser.add_argument("--reference", help="a folder with ttt.py of ttt-lm-pytorch")
    parser.add_argument("--budget", type=float, default=300, help="milliseconds to spend on a row")
    parser.add_argument("--json", help="a file that JSON lines are appended to")
    options = parser.parse_args()
    peers = Peers(options)
    batch, lengths = (1, (64,)) if peers.smoke else (22, (2048, 8192, 32768))
    for tokens in lengths:
        measure_attention(peers, batch, tokens)
    tokens = lengths[0]
    if importlib.util.find_spec("fla"):
        for name in ("chunk_ttt_linear", "fused_chunk_ttt_linear"):
            peers.measure(f"fla {name} forward+backward", batch, tokens, lambda: fla_layer(peers, name, batch, tokens),
                          fla=fla_version())
    else:
        print("flash-linear-attention: not on this machine, left out")
    if options.reference:
        for compiled in (False, True):  # compiling takes long: what is sure comes first
            for model in ("linear", "mlp"):
                rows = batch if model == "linear" else max(1, batch // 2)
                name = f"reference ttt_{model} forward+backward {'compiled' if compiled else 'eager'}"
                peers.measure(name, rows, tokens,
                              lambda: reference_layer(peers, options.reference, model, rows, tokens, compiled))
    else:
        print("the public reference: no --reference, left out")


if __name__ == "__main__":
    main()
