"""Runs one case of the public PyTorch reference (ttt-lm-pytorch) for compare_reference.py.

    python3 reference_worker.py --reference DIR --threads N CASE MODEL DTYPE LENGTH

CASE is inner, step or decode. Prints `ready` after one warm-up run, then for every line on standard input runs once more and
prints the tokens a second."""

import argparse
import sys
import time
from collections.abc import Callable

import torch

import transformers_stand_in

HEADS, FEATURES, MINI_BATCH, VOCABULARY, PROMPT = 12, 64, 16, 32000, 512
DECODED_TOKENS = 32


def config_125m(ttt, model: str):
    return ttt.TTTConfig(
        vocab_size=VOCABULARY, hidden_size=HEADS * FEATURES, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=HEADS, ttt_layer_type=model, ttt_base_lr=1.0 if model == "linear" else 0.1,
        mini_batch_size=MINI_BATCH, use_gate=True, share_qk=True, pre_conv=True, conv_kernel=4, tie_word_embeddings=True)


def inner_case(ttt, model: str, dtype: torch.dtype, length: int) -> Callable[[], int]:
    """The scan over mini-batches of one layer: q, k, v and learning rates in, outputs and all their gradients out."""
    layer = (ttt.TTTLinear if model == "linear" else ttt.TTTMLP)(config_125m(ttt, model), layer_idx=0).to(dtype)
    tiles = (1, HEADS, length // MINI_BATCH, MINI_BATCH)
    q, k, v = (torch.randn(*tiles, FEATURES, dtype=dtype, requires_grad=True) for _ in range(3))
    token_lr = torch.full((*tiles[:3], 1, MINI_BATCH), 0.5 / FEATURES, dtype=dtype, requires_grad=True)
    token_scale = (1.0 / torch.arange(1, MINI_BATCH + 1)).to(dtype).reshape(1, 1, 1, MINI_BATCH, 1).requires_grad_()
    d_out = torch.randn(1, length, HEADS * FEATURES, dtype=dtype)
    leaves = [q, k, v, token_lr, token_scale, *layer.parameters()]

    def run() -> int:
        for leaf in leaves:
            leaf.grad = None
        token_eta = token_scale.expand(*tiles, 1)
        inputs = {"XQ": q, "XK": k, "XV": v, "eta": token_eta * token_lr, "token_eta": token_eta, "ttt_lr_eta": token_lr}
        out, _ = layer.ttt(inputs, MINI_BATCH, None, None)
        out.backward(d_out)
        return length

    return run


def step_case(ttt, model: str, dtype: torch.dtype, length: int) -> Callable[[], int]:
    network = ttt.TTTForCausalLM(config_125m(ttt, model)).to(dtype).train()
    ids = torch.randint(0, VOCABULARY, (1, length))

    def run() -> int:
        network.zero_grad(set_to_none=False)
        network(input_ids=ids, labels=ids).loss.backward()
        return length

    return run


def decode_case(ttt, model: str, dtype: torch.dtype, _length: int) -> Callable[[], int]:
    network = ttt.TTTForCausalLM(config_125m(ttt, model)).to(dtype).eval()
    with torch.no_grad():
        cache = network(input_ids=torch.randint(0, VOCABULARY, (1, PROMPT)), use_cache=True).cache_params
    token = torch.randint(0, VOCABULARY, (1, 1))

    def run() -> int:
        with torch.no_grad():
            for _ in range(DECODED_TOKENS):
                network(input_ids=token, cache_params=cache, use_cache=True)
        return DECODED_TOKENS

    return run


CASES = {"inner": inner_case, "step": step_case, "decode": decode_case}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--reference", required=True, help="directory with ttt.py")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("case", choices=CASES)
    parser.add_argument("model", choices=("linear", "mlp"))
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("length", type=int)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    transformers_stand_in.install()
    sys.path.insert(0, options.reference)
    import ttt  # the reference

    run = CASES[options.case](ttt, options.model, DTYPES[options.dtype], options.length)
    run()
    print("ready", torch.__version__, flush=True)
    clock = CLOCKS[options.clock]
    for _ in sys.stdin:
        begin = clock()
        tokens = run()
        print(tokens / (clock() - begin), flush=True)


main()
