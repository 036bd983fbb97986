"""What Nsight Compute counts in one launch each of the TTT kernels that training spends its time in.

    python3 tests/gpu_counters.py BENCH --logs DIR [--seconds 14]

BENCH is the program cuda_bench: the launches are the first of its group `ttt`, TTT-Linear with 264 pairs (batch x head) and
TTT-MLP with 132, of 2,048 tokens. The clocks are left as they are. DIR gets all that ncu printed of each kernel; printed here
are duration, issue, tensor cores, shared memory, registers and occupancy. Fails when a kernel is not measured."""

import argparse
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

# Names with namespaces, since one file's forward_kernel is another's too.
KERNELS = {"ttt_linear forward": "linear_forward_kernel", "ttt_linear backward": "linear_backward_kernel",
           "ttt_mlp forward": "mlp::.*forward_kernel", "ttt_mlp backward": "mlp::.*backward_kernel"}
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables", "SchedulerStats",
            "WarpStateStats", "LaunchStats", "Occupancy")
# No section gives these on every device, and a device may lack one: then the sections have to do.
METRICS = ("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",
           "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
           "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
           "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum")
PRINTED = ("Duration", "SM Frequency", "Issue Slots Busy", "One or More Eligible", "Mem Pipes Busy", "Registers Per Thread",
           "Dynamic Shared Memory Per Block", "Theoretical Occupancy", "Achieved Occupancy", *METRICS)


def profile(bench: str, kernel: str, metrics: tuple[str, ...], seconds: float) -> str:
    """What ncu prints; stopped after so many seconds with what it started."""
    command = ["ncu", "--target-processes", "all", "--clock-control", "none", "--kernel-name-base", "demangled",
               "--kernel-name", f"regex:{kernel}", "--launch-count", "1", "--kill", "yes", "--page", "details", "--print-details", "all"]
    for section in SECTIONS:
        command += ["--section", section]
    if metrics:
        command += ["--metrics", ",".join(metrics)]
    process = subprocess.Popen([*command, bench, "--budget", "1", "ttt"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               errors="replace", start_new_session=True)
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired as stopped:
        printed = stopped.stdout or b""
        return (printed.decode(errors="replace") if isinstance(printed, bytes) else printed) + f"\nstopped after {seconds:g} s\n"
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def counters(text: str) -> dict[str, str]:
    """Name and value with its unit, of a table whose columns are name, unit (or none) and value."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, *rest = re.split(r"\s{2,}", line.strip())
        if name in PRINTED and rest:
            found.setdefault(name, " ".join(reversed(rest)))
    return {name: found[name] for name in PRINTED if name in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--logs", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=14, help="of a kernel")
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of `finally`, which ends what was started
    metrics = METRICS
    measured = 0
    for name, kernel in KERNELS.items():
        text = profile(options.bench, kernel, metrics, options.seconds)
        if metrics and "metric" in text.lower() and not counters(text):
            metrics = ()
            text += "\n== again without single metrics\n" + profile(options.bench, kernel, metrics, options.seconds)
        (options.logs / f"{name.replace(' ', '_')}.txt").write_text(text)
        found = counters(text)
        measured += bool(found)
        print(f"{name}: {'' if found else 'NOT MEASURED'}", flush=True)
        for line in [f"{counter}: {value}" for counter, value in found.items()] or text.splitlines()[-5:]:
            print(f"    {line}", flush=True)
    print(f"{measured} of {len(KERNELS)} kernels measured")
    return 0 if measured == len(KERNELS) else 1


if __name__ == "__main__":
    sys.exit(main())
