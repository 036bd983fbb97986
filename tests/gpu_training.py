"""Trains the same small models on the CPU and on a CUDA device and compares the curves.

    python3 tests/gpu_training.py TTT OUTPUT_DIRECTORY [--device cpu] [--steps 200]

Steps on the bytes of this repository's documentation, TTT-Linear and TTT-MLP. In fp32 both devices compute the same
sums in another order: the first 50 losses agree to 1e-4 relative (the largest difference that changing the order of sums
made on the CPU is 6e-5), the last validation loss to 0.02 nats. In bf16 (fused kernels) it stays within 0.05 nats.
Two runs of one configuration on the device give the same bits. A run that lasts longer than --seconds ends its model's
comparison and leaves the other one. With --device cpu the CPU takes the device's place, which proves this script."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ("model.hidden_size=128", "model.num_heads=2", "model.intermediate_size=320", "data.context_length=256",
         "train.batch_size=4", "parallel.virtual_shards=1", "optimizer.warmup_steps=20", "eval.num_windows=16",
         "checkpoint.interval_steps=0")
MLP = ("model.mixer=TTT_MLP", "model.ttt.base_learning_rate=0.1", "optimizer.learning_rate=1e-3")


class Runs:
    def __init__(self, ttt: str, output: Path, steps: int, seconds: float):
        self.ttt, self.seconds = ttt, seconds
        # So small a model is slower on many threads, and threads that spin while they wait starve each other on busy cores.
        self.environment = {"OMP_NUM_THREADS": str(min(8, os.cpu_count() or 1)), "OMP_WAIT_POLICY": "passive", **os.environ}
        self.steps = (f"train.steps={steps}", f"optimizer.decay_steps={steps}", f"eval.interval_steps={steps}")
        self.output = output
        self.tokens = output / "tokens"
        if not (self.tokens / "manifest.textproto").exists():
            text = output / "text"
            text.mkdir(parents=True, exist_ok=True)
            for page in sorted(ROOT.glob("docs/*.md")):
                (text / f"{page.stem}.txt").write_text(page.read_text())
            self.run("prepare", str(text), "--tokenizer", "bytes", "--validation-every", "4", "-o", str(self.tokens))

    def run(self, *arguments: str) -> None:
        subprocess.run([self.ttt, *arguments], check=True, stdout=subprocess.DEVNULL, env=self.environment, timeout=self.seconds)

    def train(self, name: str, device: str, *settings: str) -> tuple[list[float], float]:
        """Losses of all steps and the last validation loss."""
        run = self.output / name
        command = ["train", "--config", str(ROOT / "configs/tiny.textproto"), "--device", device, "--resume", "never"]
        for setting in (f"output_directory={run}", f"data.train={self.tokens}", f"data.validation={self.tokens}", *MODEL, *self.steps,
                        *settings):
            command += ["--set", setting]
        self.run(*command)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows if row["kind"] == "train"]
        validation = [row["loss"] for row in rows if row["kind"] == "eval"]
        return losses, validation[-1]


def compare(name: str, cpu: tuple, cuda: tuple, first_steps: float | None, final: float) -> bool:
    worst = max(abs(a - b) / abs(a) for a, b in zip(cpu[0][:50], cuda[0][:50]))
    gap = abs(cpu[1] - cuda[1])
    is_good = gap <= final and (first_steps is None or worst <= first_steps) and cpu[0][-1] < cpu[0][0] - 1
    print(f"{name}: first 50 steps within {worst:.2e} relative, validation {cpu[1]:.4f} and {cuda[1]:.4f}: "
          f"{'good' if is_good else 'TOO FAR'}", flush=True)
    return is_good


def agree(runs: Runs, name: str, settings: tuple[str, ...], device: str) -> bool:
    cpu = runs.train(f"{name}_cpu", "cpu", *settings)
    fp32 = runs.train(f"{name}_fp32", device, *settings)
    is_good = compare(f"{name} fp32", cpu, fp32, 1e-4, 0.02)
    bf16 = runs.train(f"{name}_bf16", device, "train.precision=BF16", *settings)
    is_good &= compare(f"{name} bf16", cpu, bf16, None, 0.05)
    again = runs.train(f"{name}_bf16_again", device, "train.precision=BF16", *settings)
    if bf16 != again:
        print(f"{name} bf16: two runs differ", flush=True)
        is_good = False
    return is_good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ttt")
    parser.add_argument("output", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40, help="of a run")
    options = parser.parse_args()
    runs = Runs(options.ttt, options.output, options.steps, options.seconds)
    is_good = True
    for name, settings in (("linear", ()), ("mlp", MLP)):
        try:
            is_good &= agree(runs, name, settings, options.device)
        except subprocess.CalledProcessError as error:  # its message is printed; the other model is still worth a run
            print(f"{name}: a run ended with exit code {error.returncode}: FAILED", flush=True)
            is_good = False
        except subprocess.TimeoutExpired:
            print(f"{name}: a run was stopped after {options.seconds:g} s: FAILED", flush=True)
            is_good = False
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
