#!/usr/bin/env python3
"""Writes the presets configs/**/*.textproto: the published models and contexts, the ablation ladder and the
small ones.

    python3 launch/make_presets.py            writes them
    python3 launch/make_presets.py --check    exit status 1 if a file differs, is missing or is not known

Numbers are those of arXiv:2407.04620 (appendix C, tables 1 and 3) and of the authors' JAX repository.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOKENS_PER_BATCH = 524288  # at every context length


class Enum(str):
    """A name of the schema, written without quotes."""


# hidden, intermediate, layers, heads, steps, warm-up, peak learning rate
SIZES = {
    "125m": (768, 2048, 12, 12, 4800, 480, 3e-3),
    "350m": (1024, 2736, 24, 16, 13500, 1350, 1.5e-3),
    "760m": (1536, 4096, 24, 16, 29000, 2900, 1.25e-3),
    "1_3b": (2048, 5504, 24, 32, 50000, 5000, 1e-3),
}
CONTEXTS = {
    "pile": {"2k": 2048, "8k": 8192},
    "books": {"1k": 1024, "2k": 2048, "4k": 4096, "8k": 8192, "16k": 16384, "32k": 32768},
}
# name: mixer, Mamba backbone
MODELS = {
    "ttt_linear_m": ("TTT_LINEAR", True),
    "ttt_linear_t": ("TTT_LINEAR", False),
    "ttt_mlp_m": ("TTT_MLP", True),
    "ttt_mlp_t": ("TTT_MLP", False),
    "llama": ("ATTENTION", False),
}
TITLES = {
    "ttt_linear_m": "TTT-Linear, Mamba backbone",
    "ttt_linear_t": "TTT-Linear, Transformer backbone",
    "ttt_mlp_m": "TTT-MLP, Mamba backbone",
    "ttt_mlp_t": "TTT-MLP, Transformer backbone",
    "llama": "Softmax attention, Llama style",
}


def text(value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, str):
        return f'"{value}"'
    return repr(value)


def message(fields: dict, indent: str = "") -> str:
    out = ""
    for name, value in fields.items():
        if isinstance(value, dict):
            out += f"{indent}{name} {{\n{message(value, indent + '  ')}{indent}}}\n"
        else:
            out += f"{indent}{name}: {text(value)}\n"
    return out


def preset(comments: list[str], fields: dict) -> str:
    header = comments + ["Written by launch/make_presets.py: change it there."]
    return "".join(f"# {line}\n" for line in header) + message(fields)


def backbone(use_mamba: bool) -> dict:
    return {"use_gate": use_mamba, "share_qk": use_mamba, "pre_conv": use_mamba}


def run(path: str, tokens: str, model: dict, context: int, batch: int, steps: int, warmup: int, peak: float,
        **sections: dict) -> dict:
    shards = min(8, batch)
    assert batch % shards == 0, path
    return {
        "name": path.replace("/", "_"),
        "output_directory": f"runs/{path}",
        "model": model,
        "data": {"train": f"runs/tokens/{tokens}", "validation": f"runs/tokens/{tokens}",
                 "context_length": context, "masked_target": 1} | sections.get("data", {}),
        "optimizer": {"learning_rate": peak, "end_learning_rate": 1e-5, "warmup_steps": warmup,
                      "decay_steps": steps, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1,
                      "clip_norm": 1.0} | sections.get("optimizer", {}),
        "train": {"steps": steps, "batch_size": batch, "micro_batch_size": 1} | sections.get("train", {}),
        "parallel": {"virtual_shards": shards},
    } | {name: sections[name] for name in ("checkpoint", "eval", "log") if name in sections}


def published_model(size: str, mixer: str, use_mamba: bool) -> dict:
    hidden, intermediate, layers, heads = SIZES[size][:4]
    model = {"vocab_size": 32000, "hidden_size": hidden, "intermediate_size": intermediate, "num_layers": layers,
             "num_heads": heads, "mixer": Enum(mixer), **backbone(use_mamba), "tie_embeddings": True}
    if mixer == "TTT_LINEAR":
        model["ttt"] = {"mini_batch_size": 16, "base_learning_rate": 1.0}
    if mixer == "TTT_MLP":
        model["ttt"] = {"mini_batch_size": 16, "base_learning_rate": 0.1, "mlp_expansion": 4}
    return model


def published() -> dict[str, str]:
    files = {}
    for corpus, contexts in CONTEXTS.items():
        for context_name, context in contexts.items():
            for size, (_, _, _, _, steps, warmup, peak) in SIZES.items():
                for name, (mixer, use_mamba) in MODELS.items():
                    path = f"{corpus}/{name}_{size}_{context_name}"
                    sections = {}
                    if mixer == "TTT_MLP":
                        sections["optimizer"] = {"inner_warmup_init": 0.1, "inner_warmup_steps": warmup}
                    comments = [f"{TITLES[name]}, {size.replace('_', '.')} parameters, "
                                f"{corpus.capitalize()} at context {context}: 0.5M tokens a batch."]
                    if corpus == "books" and mixer == "ATTENTION" and context >= 4096:
                        comments.append("The paper also tries rope_theta 500000 from 4k on and keeps the better.")
                    files[f"{path}.textproto"] = preset(comments, run(
                        path, corpus, published_model(size, mixer, use_mamba), context,
                        TOKENS_PER_BATCH // context, steps, warmup, peak, **sections))
    return files


EQUIVALENT = {"learning_rate": Enum("CONSTANT"), "base_learning_rate": 1.0, "token_scale": Enum("ONE"),
              "mini_batch_size": 0, "inner_norm": False, "inner_bias": False, "rope": False}
CONSTANT_RATE = {"learning_rate": Enum("CONSTANT"), "base_learning_rate": 0.5 / 64, "token_scale": Enum("INVERSE"),
                 "inner_norm": True, "inner_bias": True}
BATCH_NOTE = "mini_batch_size 0: the whole sequence is one mini-batch."
RATE_NOTE = ("The paper does not give the constant rate. Ours is base / head_dim * sigmoid(0) = 0.5 / 64, where the "
             "learned rate starts, and token_scale 1/i.")
# row: comments, mixer, Mamba backbone, name and fields of the mixer's own configuration
LADDER = (
    (["Linear attention with feature map elu + 1 and normaliser."],
     "LINEAR_ATTENTION", False, "linear_attention", {"feature_map": Enum("ELU_PLUS_ONE"), "normalize": True}),
    (["Linear attention without feature map and normaliser."],
     "LINEAR_ATTENTION", False, "linear_attention", {"feature_map": Enum("IDENTITY"), "normalize": False}),
    (["TTT with a linear inner model, batch gradient descent from W = 0 at rate 1 on half the squared error:",
      "the same function as row 1. " + BATCH_NOTE,
      "RoPE is off, our choice: linear attention has none and the two rows are to be equal."],
     "TTT_LINEAR", False, "ttt", EQUIVALENT | {"initial_state": Enum("ZERO")}),
    (["Row 2 with a learned initial state.", "RoPE is off, our choice, as in row 2."],
     "TTT_LINEAR", False, "ttt", EQUIVALENT | {"initial_state": Enum("LEARNED_STATE")}),
    (["Row 3 with LayerNorm and residual in the inner model.", RATE_NOTE,
      "The inner bias comes with this row and RoPE is still off: the paper says neither, both are our choice."],
     "TTT_LINEAR", False, "ttt", CONSTANT_RATE | {"mini_batch_size": 0, "rope": False}),
    (["Row 4 with mini-batches of 16.", RATE_NOTE,
      "RoPE comes with this row, our choice: its positions restart in every mini-batch, so it has no meaning before."],
     "TTT_LINEAR", False, "ttt", CONSTANT_RATE | {"mini_batch_size": 16, "rope": True}),
    (["Row 5 with the learned rate and the learned token scale: the published TTT-Linear, Transformer backbone."],
     "TTT_LINEAR", False, "ttt", {"mini_batch_size": 16, "base_learning_rate": 1.0}),
    (["Row 6 on the Mamba backbone."],
     "TTT_LINEAR", True, "ttt", {"mini_batch_size": 16, "base_learning_rate": 1.0}),
)


def ablation() -> dict[str, str]:
    files = {}
    _, _, _, _, steps, warmup, peak = SIZES["125m"]
    for row, (comments, mixer, use_mamba, section, fields) in enumerate(LADDER):
        model = published_model("125m", mixer, use_mamba) | {section: fields}
        path = f"ablation/row{row}"
        title = f"Row {row} of the ablation ladder (arXiv:2407.04620, table 1): 125M, Pile at context 2048."
        files[f"{path}.textproto"] = preset([title, *comments], run(
            path, "pile", model, 2048, TOKENS_PER_BATCH // 2048, steps, warmup, peak))
    return files


def small_ones() -> dict[str, str]:
    def model(vocab, hidden, intermediate, layers, heads, mixer, use_mamba):
        return {"vocab_size": vocab, "hidden_size": hidden, "intermediate_size": intermediate, "num_layers": layers,
                "num_heads": heads, "mixer": Enum(mixer), **backbone(use_mamba), "tie_embeddings": True}

    tiny = run("tiny", "tiny", model(259, 64, 320, 2, 2, "TTT_LINEAR", True), 128, 8, 50, 5, 3e-3,
               checkpoint={"interval_steps": 25, "keep_last": 2}, eval={"interval_steps": 25, "num_windows": 16},
               log={"interval_steps": 5})
    small_sections = {"checkpoint": {"interval_steps": 50, "keep_last": 2},
                      "eval": {"interval_steps": 50, "num_windows": 128}}
    small = run("small", "small", model(4096, 256, 688, 4, 4, "TTT_LINEAR", True), 512, 8, 250, 25, 3e-3,
                **small_sections)
    attention = run("small_attention", "small", model(4096, 256, 688, 4, 4, "ATTENTION", False), 512, 8, 250, 25,
                    3e-3, **small_sections)
    return {
        "tiny.textproto": preset(["A smoke test: TTT-Linear, Mamba backbone, about 0.2M parameters, on bytes."], tiny),
        "small.textproto": preset(
            ["TTT-Linear, Mamba backbone, about 4M parameters, for a machine without accelerator.",
             "Needs a tokenizer of 4096 pieces, trained or given to `ttt prepare`."], small),
        "small_attention.textproto": preset(
            ["The rival of small.textproto: softmax attention, Llama style, of the same size, on the same tokens."],
            attention),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    is_check = parser.parse_args().check
    folder = ROOT / "configs"
    wanted = published() | ablation() | small_ones()
    present = {str(path.relative_to(folder)) for path in folder.rglob("*.textproto")}
    problems = [f"configs/{name}:1: not written by launch/make_presets.py" for name in sorted(present - set(wanted))]
    for name, content in wanted.items():
        path = folder / name
        if is_check:
            if name not in present or path.read_text(encoding="utf-8") != content:
                problems.append(f"configs/{name}:1: not in step with launch/make_presets.py")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    print("\n".join([*problems, f"presets: {len(wanted)} files, {len(problems)} out of step"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
