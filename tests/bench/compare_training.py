"""Trains models of the TTT family with the public PyTorch reference (ttt-lm-pytorch) and with `ttt probe train`, from the same weights on
the same tokens with the same recipe, and prints how far the curves are apart.

    python3 tests/bench/compare_training.py --reference DIR --ttt build/bin/ttt --tokens FILE.npy

--reference: a directory with the reference's ttt.py. --tokens: a uint16 .npy array of token ids below 4096. Needs torch and numpy. The
learning rate, the loss (mean of masked row means), clipping and the inner warm-up of TTT-MLP are the published ones (docs/numerics.md,
"AdamW and the recipe"); torch.optim.AdamW does the update. Prints a Markdown table."""

import argparse
import json
import math
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy
import torch

import transformers_stand_in

CASES = {
    "TTT-Linear, Transformer": {"ttt_layer_type": "linear"},
    "TTT-Linear, Mamba": {"ttt_layer_type": "linear", "use_gate": True, "share_qk": True, "pre_conv": True},
    "TTT-MLP, Transformer": {"ttt_layer_type": "mlp", "ttt_base_lr": 0.1},
    "TTT-MLP, Mamba": {"ttt_layer_type": "mlp", "ttt_base_lr": 0.1, "use_gate": True, "share_qk": True, "pre_conv": True},
}
CONFIG = {
    "model_type": "ttt", "vocab_size": 4096, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3,
    "num_attention_heads": 2, "hidden_act": "silu", "max_position_embeddings": 2048, "initializer_range": 0.02, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "use_gate": False, "share_qk": False, "ttt_layer_type": "linear", "ttt_base_lr": 1.0, "mini_batch_size": 16,
    "pre_conv": False, "conv_kernel": 4, "pretraining_tp": 1, "use_cache": False, "tie_word_embeddings": True,
    "scan_checkpoint_group_size": 0,
}
# A third of the published peak: at this width the full one makes gradient spikes, behind which any two programs part.
BATCH, LENGTH, PEAK, END, BOS = 4, 256, 1e-3, 1e-5, 1


def write_safetensors(path, tensors):
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        raw = numpy.ascontiguousarray(array).tobytes()
        dtype = {"float32": "F32", "float64": "F64", "int64": "I64"}[str(array.dtype)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
        blobs.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def read_safetensors(path):
    raw = pathlib.Path(path).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    data, tensors = raw[8 + size:], {}
    for name, entry in json.loads(raw[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors[name] = numpy.frombuffer(data[begin:end], dtype={"F32": "<f4", "F64": "<f8", "I64": "<i8"}[entry["dtype"]])
    return tensors


def rate(step, steps, warmup):
    if step < warmup:
        return PEAK * step / warmup
    return END + (PEAK - END) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def inner_multipliers(case, steps, warmup):
    """0.01 to 0.1 over the warm-up, for TTT-MLP alone, in bfloat16 as the authors keep it."""
    if CASES[case]["ttt_layer_type"] == "linear":
        return [1.0] * steps
    exact = torch.tensor([(0.01 + min(1.0, s / warmup) * 0.09) / 0.1 for s in range(steps)])
    return exact.bfloat16().double().tolist()


def train_reference(ttt, config, tokens, masks, steps, warmup, multipliers):
    """The reference's losses and gradient norms; the initial weights are returned too."""
    torch.manual_seed(0)
    model = ttt.TTTForCausalLM(ttt.TTTConfig(**config)).train()
    start = {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()
             if name != "lm_head.weight"}  # tied
    base = config["ttt_base_lr"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, norms = [], []
    for step in range(steps):
        for layer in model.model.layers:
            layer.seq_modeling_block.config.ttt_base_lr = base * multipliers[step]
        ids, targets, mask = tokens[step][:, :-1], tokens[step][:, 1:], masks[step]
        nll = torch.nn.functional.cross_entropy(model(input_ids=ids).logits.transpose(1, 2), targets, reduction="none")
        loss = ((nll * mask).sum(1) / mask.sum(1).clamp_min(1e-10)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
        if norm >= 1.0:
            for p in model.parameters():
                p.grad.div_(norm)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps, warmup)
        optimizer.step()
        losses.append(float(loss))
        norms.append(norm)
    return start, losses, norms


def train_ours(ttt_binary, config, start, tokens, masks, steps, warmup, multipliers):
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        (directory / "config.json").write_text(json.dumps(config))
        write_safetensors(directory / "model.safetensors", start)
        write_safetensors(directory / "input.safetensors", {"tokens": tokens.numpy(), "loss_masks": masks.double().numpy(),
                                                            "ttt_lr_mult": numpy.array(multipliers)})
        recipe = {"learning_rate": PEAK, "end_learning_rate": END, "warmup_steps": warmup, "decay_steps": steps}
        subprocess.run([ttt_binary, "probe", "train", "--model", folder, "--input", str(directory / "input.safetensors"), "--output",
                        str(directory / "output.safetensors"), "--dtype", "f32",
                        *[word for field, value in recipe.items() for word in ("--set", f"optimizer.{field}={value}")]], check=True)
        result = read_safetensors(directory / "output.safetensors")
        return result["step_loss"].tolist(), result["step_grad_norm"].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--ttt", required=True)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    transformers_stand_in.install()
    sys.path.insert(0, options.reference)
    import ttt  # the reference

    steps, warmup = options.steps, max(1, options.steps // 2)
    array = numpy.load(options.tokens).astype(numpy.int64)
    windows = numpy.stack([array[i * LENGTH:i * LENGTH + LENGTH + 1] for i in range(steps * BATCH)])
    tokens = torch.from_numpy(windows).reshape(steps, BATCH, LENGTH + 1)
    masks = (tokens[:, :, 1:] != BOS).float()
    print("| model | steps | loss, first and last | largest relative difference of a loss | of a gradient norm |\n|---|---|---|---|---|")
    for case, switches in CASES.items():
        config = {**CONFIG, **switches}
        multipliers = inner_multipliers(case, steps, warmup)
        start, losses, norms = train_reference(ttt, config, tokens, masks, steps, warmup, multipliers)
        our_losses, our_norms = train_ours(options.ttt, config, start, tokens, masks, steps, warmup, multipliers)
        loss_gap = max(abs(a - b) / b for a, b in zip(our_losses, losses))
        norm_gap = max(abs(a - b) / b for a, b in zip(our_norms, norms))
        print(f"| {case} | {steps} | {losses[0]:.4f}, {losses[-1]:.4f} | {loss_gap:.1e} | {norm_gap:.1e} |", flush=True)


if __name__ == "__main__":
    main()
