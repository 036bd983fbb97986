"""Several hosts under mpirun, by the template that users edit: they train, stop, resume, and end when one is lost."""

import os
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

import sandbox

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "run"))
from harness import (BINARY, ENVIRONMENT, OK, SMALL, SOURCE, STOPPED, TINY, USAGE, RunTest, checkpoints, finish,
                     last_step, rows, step_of, wait_until)

PEER_LOST = 75
NUM_HOSTS = 4
# The curve does not depend on where it ends.
RUN = (*SMALL, "optimizer.decay_steps=1000", "checkpoint.interval_steps=0", "eval.num_windows=0",
       "parallel.virtual_shards=4", "log.interval_steps=1000")
ENDLESS = ("train.steps=1000000", "watchdog.silence_seconds=3")


class Hosts(RunTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.network = cls.directory / "network"
        cls.hosts = sandbox.make_hosts(cls.network, NUM_HOSTS)
        cls.addClassCleanup(sandbox.stop_hosts, cls.hosts)

    def template(self, slots: dict[int, int], arguments: list[str]) -> Path:
        """launch/mpirun/several_hosts.sh with its two lines edited: ranks of each host, and what to run."""
        hosts = self.scratch()
        hosts.write_text("".join(f"node{host + 1} slots={count}\n" for host, count in slots.items()))
        text = (SOURCE / "launch/mpirun/several_hosts.sh").read_text()
        lines = text.splitlines()
        edited = [f"hosts={hosts}" if line.startswith("hosts=") else
                  f"run=({' '.join(arguments)})" if line.startswith("run=") else line for line in lines]
        self.assertEqual(sum(a != b for a, b in zip(lines, edited)), 2)
        script = self.scratch()
        script.write_text("\n".join(edited).replace('"$(dirname "$0")/../.."', str(SOURCE)) + "\n")
        return script

    def launch(self, slots: dict[int, int], run: Path, *overrides) -> subprocess.Popen:
        arguments = self.train_arguments(run, *RUN, *overrides)[1:]
        environment = {**ENVIRONMENT, "TTT_BINARY": BINARY, "OMPI_MCA_plm_rsh_agent": str(self.network / "agent"),
                       "OMPI_MCA_mpi_yield_when_idle": "1", "OMPI_MCA_oob_tcp_keepalive_time": "2",
                       "OMPI_MCA_oob_tcp_keepalive_intvl": "1", "OMPI_MCA_oob_tcp_keepalive_probes": "2"}
        process = subprocess.Popen(self.hosts[0].command("bash", self.template(slots, arguments)), env=environment,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return process

    def begin_endless(self, name: str, *overrides) -> tuple[Path, subprocess.Popen]:
        """On two hosts, two ranks each; returns when it trains."""
        run = self.directory / name
        process = self.launch({0: 2, 1: 2}, run, *ENDLESS, *overrides)
        self.addCleanup(self.end_processes)
        wait_until(lambda: process.poll() is not None or last_step(run) > 0, "the first step")
        return run, process

    def end_processes(self):
        for host in self.hosts:
            for process in host.processes():
                os.kill(process, signal.SIGKILL)

    def assert_nothing_left(self):
        sandbox.wait_for(lambda: not any(host.processes() for host in self.hosts), "every process to end", timeout=15)

    def assert_lost(self, process: subprocess.Popen, code: int, pattern: str, seconds: float):
        started = time.monotonic()
        result = finish(process)
        self.assertLess(time.monotonic() - started, seconds)
        self.assertEqual(result.code, code, result.err)
        self.assertRegex(result.err, pattern)
        self.assert_nothing_left()

    def test_two_hosts_train_and_stop_and_four_resume(self):
        run, process = self.begin_endless("hosts")
        process.terminate()
        result = finish(process)
        self.assertEqual(result.code, STOPPED, result.err)
        steps = last_step(run)
        self.assertEqual([step_of(path) for path in checkpoints(run)], [steps])
        for host, ranks in (("node1", "0-1"), ("node2", "2-3")):
            self.assertIn(f"host={host} ranks={ranks} ", result.err)
        self.assert_nothing_left()
        result = finish(self.launch({0: 1, 1: 1, 2: 1, 3: 1}, run, f"train.steps={steps + 10}"))
        self.assertEqual(result.code, OK, result.err)
        for host in range(4):
            self.assertIn(f"host=node{host + 1} ranks={host} ", result.err)
        golden = self.train("golden", *RUN, f"train.steps={steps + 10}")
        self.assertEqual(rows(run), rows(golden))
        self.assertTrue(self.state(run) == self.state(golden))

    def test_a_host_that_is_cut_off(self):
        """As by default, mpirun's keep-alive is quicker than the watchdog."""
        _, process = self.begin_endless("cut", "watchdog.silence_seconds=20")
        self.addCleanup(self.hosts[1].connect)
        self.hosts[1].cut_off()
        self.assert_lost(process, PEER_LOST, r"lost communication with a remote daemon(.|\n)*on node node2", 20)

    def test_a_stopped_rank_of_another_host(self):
        run, process = self.begin_endless("stopped")
        os.kill(self.hosts[1].rank_processes(run)[3], signal.SIGSTOP)
        self.assert_lost(process, PEER_LOST, r"event=hang rank 3 \(host node2\) silent for [3-7]", 20)
        # The stopped rank may write its own when the launcher lets it go on to end it.
        self.assertGreaterEqual(len(list((run / "logs").glob("flight_*.txt"))), 3)

    def test_a_killed_rank_of_another_host(self):
        run, process = self.begin_endless("killed")
        os.kill(self.hosts[1].rank_processes(run)[2], signal.SIGKILL)
        self.assert_lost(process, 137, r"rank 2 .* on node node2 exited on signal 9", 20)

    def test_a_killed_daemon_of_another_host(self):
        """mpirun's, which starts the ranks there and passes on what they say."""
        _, process = self.begin_endless("daemon", "watchdog.silence_seconds=20")
        daemons = [number for number, command in self.hosts[1].processes().items() if command.startswith("orted ")]
        self.assertEqual(len(daemons), 1, self.hosts[1].processes())
        os.kill(daemons[0], signal.SIGKILL)
        self.assert_lost(process, PEER_LOST, r"lost communication with a remote daemon(.|\n)*on node node2", 10)

    def test_a_host_with_another_program_or_configuration_is_named(self):
        program = self.scratch()
        program.write_bytes(Path(BINARY).read_bytes() + b"another build")
        program.chmod(0o755)
        result = self.launch_with(program, BINARY)
        self.assert_refused(result, "the program is not the same on all ranks: rank 1 (host node2) has")
        changed = self.scratch()
        changed.write_text(Path(TINY).read_text() + "seed: 5\n")
        result = self.launch_with(changed, TINY)
        self.assert_refused(result, 'rank 1 (host node2) has "seed: 5", rank 0 (host node1) has "seed: 0"')

    def launch_with(self, other: Path, file: str):
        """With `other` in the place of `file` on the second host."""
        self.hosts[1].run("mount", "--bind", other, file)
        try:
            return finish(self.launch({0: 1, 1: 1}, self.directory / "program"))
        finally:
            self.hosts[1].run("umount", file)

    def assert_refused(self, result, words: str):
        self.assertEqual(result.code, USAGE, result.err)
        self.assertIn(words, result.err)
        self.assertEqual(sum(" E " in line for line in result.err.splitlines()), 1, result.err)
        self.assertFalse((self.directory / "program").exists(), "it made something")
        self.assert_nothing_left()


if __name__ == "__main__":
    sandbox.enter()
    unittest.main()
