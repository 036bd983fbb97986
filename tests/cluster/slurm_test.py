"""A real Slurm, by the templates that users edit: srun, sbatch, arrays, requeueing, signals before the time limit."""

import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path

import sandbox
from slurm import Slurm

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))
from harness import (BINARY, ENVIRONMENT, OK, SMALL, SOURCE, USAGE, RunTest, checkpoints, curve, last_step, step_of,
                     wait_until)

RUN = (*SMALL, "optimizer.decay_steps=1000", "checkpoint.interval_steps=20", "eval.num_windows=0",
       "parallel.virtual_shards=4", "log.interval_steps=1000", "watchdog.silence_seconds=3")
TTT = {**ENVIRONMENT, "TTT_BINARY": BINARY, "OMPI_MCA_mpi_yield_when_idle": "1",
       "OMPI_MCA_hwloc_base_binding_policy": "none"}
FOUR_RANKS = "--nodes=2 --ntasks-per-node=2 --cpus-per-task=1 --time=10"


class SlurmTest(RunTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.hosts = sandbox.make_hosts(cls.directory / "network", 3)
        cls.addClassCleanup(sandbox.stop_hosts, cls.hosts)
        first, second, third = cls.hosts
        cls.slurm = Slurm(cls.hosts, cls.directory / "slurm", cpus=16,
                          partitions={"test": [first, second], "lost": [first, third]})
        cls.addClassCleanup(cls.slurm.stop)

    def template(self, name: str, resources: str, run: str) -> Path:
        """launch/slurm/NAME with its two lines edited: the first of the resources, and what to run."""
        text = (SOURCE / "launch/slurm" / name).read_text()
        lines = text.splitlines()
        first = next(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
        lines[first] = f"#SBATCH --job-name=ttt {resources}"
        start = next(i for i, line in enumerate(lines) if line.startswith("run=("))
        end = next(i for i in range(start, len(lines)) if lines[i].endswith(")"))
        lines[start:end + 1] = [f"run=({run})"]
        script = self.scratch()
        script.write_text("\n".join(lines) + "\n")
        return script

    def submit(self, name: str, resources: str, arguments: list[str], *options) -> tuple[str, Path]:
        script = self.template(name, resources, " ".join(arguments[1:]))
        log = self.scratch()
        job = self.slurm.submit(f"--chdir={SOURCE}", f"--output={log}", *options, script, env=TTT)
        return job, log

    def srun(self, *arguments) -> subprocess.CompletedProcess:
        return self.slurm("srun", "--nodes=2", "--ntasks-per-node=2", *arguments, env=TTT)

    def kill_daemon(self, host):
        daemons = [number for number, command in host.processes().items() if command.startswith("slurmd ")]
        self.assertEqual(len(daemons), 1, host.processes())
        os.kill(daemons[0], signal.SIGKILL)

    def test_srun(self):
        run = self.directory / "srun"
        result = self.srun("--mpi=pmix", BINARY, *self.train_arguments(run, *RUN, "train.steps=20"))
        self.assertEqual(result.returncode, OK, result.stderr)
        self.assertIn("host=node1 ranks=0-1 ", result.stderr)
        self.assertIn("host=node2 ranks=2-3 ", result.stderr)
        self.assertEqual(curve(run), curve(self.train("srun-golden", *RUN, "train.steps=20")))

    def test_srun_without_pmix_is_refused(self):
        run = self.directory / "singletons"
        result = self.srun("--mpi=none", BINARY, *self.train_arguments(run, *RUN))
        self.assertEqual(result.returncode, USAGE, result.stderr)
        self.assertEqual(result.stderr.count("use --mpi=pmix"), 1, result.stderr)
        self.assertFalse(run.exists(), "it made something")

    def test_jobs_go_on_where_they_stopped(self):
        """Five jobs at once: the time limit, a rank that hangs, a signal by hand under mpirun, and a host whose daemon is
        killed end them early."""
        endless = "train.steps=1000000"
        runs = {name: self.directory / name for name in ("limit", "hang", "mpirun", "lost")}
        jobs, logs = {}, {}
        for name, run in runs.items():
            template = "train_mpirun.sbatch" if name == "mpirun" else "train.sbatch"
            resources = FOUR_RANKS.replace("--time=10", "--time=1") if name == "limit" else FOUR_RANKS
            options = {"limit": ["--signal=B:USR1@30"], "lost": ["--partition=lost"]}.get(name, [])
            arguments = self.train_arguments(run, *RUN, endless)
            jobs[name], logs[name] = self.submit(template, resources, arguments, *options)
        array, array_log = self.submit(
            "array.sbatch", "--array=0-1 --ntasks=2 --time=10",
            self.train_arguments(self.directory / "array-$SLURM_ARRAY_TASK_ID", *RUN, "train.steps=20",
                                 "seed=$SLURM_ARRAY_TASK_ID"))
        text = lambda name: logs[name].read_text() if logs[name].exists() else ""
        for name in ("hang", "mpirun", "lost"):
            wait_until(lambda: last_step(runs[name]) >= 25, f"{name} to train: {text(name)}")
        os.kill(self.hosts[1].rank_processes(runs["hang"])[3], signal.SIGSTOP)
        self.slurm("scancel", "--batch", "--signal=USR1", jobs["mpirun"])
        self.kill_daemon(self.hosts[2])
        stopped_at = {}
        for name, code in (("mpirun", 80), ("hang", 75), ("limit", 80)):
            requeued = f"code {code} after 0 restarts: back to the queue"
            wait_until(lambda: requeued in text(name), f"{name}: {text(name)}")
            # The job comes back some seconds later.
            stopped_at[name] = last_step(runs[name]) if name != "hang" else step_of(checkpoints(runs[name])[-1])
        # Slurm takes the host for lost; what is left of the job there ends by its watchdog.
        wait_until(lambda: self.slurm.state(jobs["lost"]) == "PENDING", f"lost: {text('lost')}")
        wait_until(lambda: not self.hosts[2].rank_processes(runs["lost"]), "the lost host's ranks to end", timeout=15)
        stopped_at["lost"] = step_of(checkpoints(runs["lost"])[-1])
        self.slurm.start_daemon(self.hosts[2])
        for name, run in runs.items():
            stopped = stopped_at[name]
            wait_until(lambda: "resumed checkpoint=" in text(name), f"{name}: {text(name)}")
            self.assertIn(f"step={stopped} ", text(name))
            wait_until(lambda: last_step(run) > stopped, f"{name} to go on: {text(name)}")
        self.assertRegex(text("hang"), r"event=hang rank 3 \(host node2\) silent")
        for job in jobs.values():
            self.slurm("scancel", job)
        self.slurm.wait_for_end([*jobs.values(), array])
        for task in range(2):
            golden = self.train(f"array-{task}-golden", *RUN, "train.steps=20", f"seed={task}")
            self.assertEqual(curve(self.directory / f"array-{task}"), curve(golden))


if __name__ == "__main__":
    sandbox.enter()
    unittest.main()
