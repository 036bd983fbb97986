"""Writes golden.json, tokens.npy and order.npy: batches as ttt-lm-jax makes them, from its rules alone.

    python3 tests/data/windows/make_golden.py

Nothing of this project is used. The rules (lm_dataset.py, dataloader.py, train.py of ttt-lm-jax):
  - documents are BOS, ids, EOS, one after another in one array; sample i is tokens[i L : i L + L + 1], N = (tokens - 1) // L;
  - the order of an epoch is torch.randperm(N) of one generator; the next epoch draws again; a batch is the next B entries;
  - a target that is BOS does not count; the loss is the mean over rows of each row's masked mean.
The losses of single tokens are made up: nll(row, t) = 1 + ((7 row + 3 t) mod 11) / 8, exact in binary.
"""

import json
import struct
from pathlib import Path

BOS, EOS, VOCABULARY = 1, 2, 50
LENGTH, BATCH, EPOCHS, SEED = 8, 3, 2, 0
DOCUMENT_LENGTHS = [5, 0, 11, 1, 30, 7, 7, 16, 2, 0, 0, 22]  # without BOS and EOS


class MersenneTwister:
    """mt19937 (Matsumoto and Nishimura 1998), seeded as torch.Generator.manual_seed does."""

    def __init__(self, seed: int):
        self.state = [seed & 0xFFFFFFFF]
        for i in range(1, 624):
            last = self.state[-1]
            self.state.append((1812433253 * (last ^ last >> 30) + i) & 0xFFFFFFFF)
        self.place = 624

    def draw(self) -> int:
        if self.place == 624:
            for i in range(624):
                y = self.state[i] & 0x80000000 | self.state[(i + 1) % 624] & 0x7FFFFFFF
                self.state[i] = self.state[(i + 397) % 624] ^ y >> 1 ^ (0x9908B0DF if y & 1 else 0)
            self.place = 0
        y = self.state[self.place]
        self.place += 1
        y ^= y >> 11
        y ^= y << 7 & 0x9D2C5680
        y ^= y << 15 & 0xEFC60000
        return y ^ y >> 18


def randperm(count: int, generator: MersenneTwister) -> list[int]:
    """torch.randperm on the CPU (Fisher and Yates from the front)."""
    order = list(range(count))
    for i in range(count - 1):
        other = i + generator.draw() % (count - i)
        order[i], order[other] = order[other], order[i]
    return order


def npy(descr: str, code: str, values: list[int]) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': ({len(values)},), }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + struct.pack(f"<{len(values)}{code}", *values)


def main() -> None:
    assert randperm(10, MersenneTwister(0)) == [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]  # what torch 2 prints after manual_seed(0)
    tokens = []
    for number, length in enumerate(DOCUMENT_LENGTHS):
        tokens += [BOS, *(3 + (5 * number + 7 * i) % (VOCABULARY - 3) for i in range(length)), EOS]
    samples = (len(tokens) - 1) // LENGTH
    generator = MersenneTwister(SEED)
    order = [window for _ in range(EPOCHS) for window in randperm(samples, generator)]
    windows = [{"inputs": tokens[i * LENGTH:(i + 1) * LENGTH], "targets": tokens[i * LENGTH + 1:(i + 1) * LENGTH + 1]} for i in range(samples)]
    batches = []
    for first in range(0, len(order) - BATCH + 1, BATCH):
        rows = [windows[window] for window in order[first:first + BATCH]]
        masks = [[0 if target == BOS else 1 for target in row["targets"]] for row in rows]
        means = []
        for r, mask in enumerate(masks):
            nll = [1 + (7 * r + 3 * t) % 11 / 8 for t in range(LENGTH)]
            means.append(sum(m * x for m, x in zip(mask, nll)) / max(sum(mask), 1e-10))
        batches.append({"windows": order[first:first + BATCH], "masks": masks, "row_losses": means, "loss": sum(means) / BATCH})
    folder = Path(__file__).parent
    (folder / "tokens.npy").write_bytes(npy("<u2", "H", tokens))
    (folder / "order.npy").write_bytes(npy("<i8", "q", order))
    golden = {"context_length": LENGTH, "batch_size": BATCH, "vocab_size": VOCABULARY, "bos_id": BOS, "order": order,
              "windows": windows, "batches": batches}
    rows = ",\n".join(f'"{key}": ' + (json.dumps(value) if not isinstance(value, list) or key == "order" else
                                     "[\n" + ",\n".join(json.dumps(row) for row in value) + "]") for key, value in golden.items())
    (folder / "golden.json").write_text("{" + rows + "}\n")


if __name__ == "__main__":
    main()
