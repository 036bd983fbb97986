"""A rank that hangs, stops or calls another operation ends the job in time, with its name and nobody left."""

import os
import random
import re
import socket
import struct
import subprocess
import tempfile
import threading
import time
import unittest
from pathlib import Path

PROGRAM = os.environ["TTT_WATCHDOG_PROGRAM"]
MPIRUN = (os.environ.get("TTT_MPIRUN", "mpirun"), "--oversubscribe", "--bind-to", "none",
          "--mca", "mpi_yield_when_idle", "1", "--timeout", "100",
          "--mca", "odls_base_sigkill_timeout", "0")
RANKS = 3
PEER_LOST = 75


def is_alive(process: int) -> bool:
    """A zombie is not: it waits for its parent only."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def udp_ports(program: str) -> list[int]:
    """Of all processes that run it."""
    sockets = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "exe") == os.path.realpath(program):
                sockets |= {os.readlink(descriptor) for descriptor in (process / "fd").iterdir()}
        except OSError:
            continue  # it ended meanwhile
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if f"socket:[{row[9]}]" in sockets]


class Watchdog(unittest.TestCase):
    def run_way(self, way: str, directory: str = "") -> tuple[int, str]:
        result = subprocess.run([*MPIRUN, "-np", str(RANKS), PROGRAM, way, *([directory] if directory else [])],
                                capture_output=True, text=True)
        processes = [int(pid) for pid in re.findall(r"^pid (\d+)$", result.stdout, re.MULTILINE)]
        self.assertEqual(len(processes), RANKS, result.stdout + result.stderr)
        deadline = time.monotonic() + 5
        while any(map(is_alive, processes)):
            self.assertLess(time.monotonic(), deadline, "a rank outlived the job")
            time.sleep(0.02)
        return result.returncode, result.stderr

    def assert_ended(self, way: str, pattern: str, directory: str = ""):
        started = time.monotonic()
        code, said = self.run_way(way, directory)
        self.assertEqual(code, PEER_LOST, said)
        lines = [line for line in said.splitlines() if "event=hang" in line]
        self.assertEqual(len(lines), 1, said)
        self.assertRegex(lines[0], pattern)
        self.assertLess(time.monotonic() - started, 20)

    def test_a_rank_outside_communication_is_named_and_leaves_a_record(self):
        host = re.escape(os.uname().nodename)
        with tempfile.TemporaryDirectory(prefix="ttt-flight-") as directory:
            self.assert_ended("hang", rf"rank 2 \(host {host}\) makes no progress in phase step for [1-6]\.\d s "
                              r"\(limit 2 s\).* 2 of 3 ranks wait", directory)
            records = {path.name: path.read_text() for path in Path(directory).iterdir()}
        self.assertEqual(sorted(records), [f"flight_{rank:05}.txt" for rank in range(RANKS)])
        self.assertRegex(records["flight_00000.txt"].splitlines()[-1], "operation=barrier .* waits_since=")
        self.assertRegex(records["flight_00002.txt"].splitlines()[-1], "operation=barrier .* took=")

    def test_a_stopped_rank(self):
        self.assert_ended("stop", r"rank 2 \(host .*\) silent for [2-6]\.\d s")

    def test_a_stopped_rank_zero_is_named_by_another(self):
        self.assert_ended("stop_zero", r"\[rank 1\].*rank 0 \(host .*\) silent")

    def test_ranks_in_different_operations(self):
        self.assert_ended("mismatch", r"every rank waits in an operation")

    def send_noise(self, ended: threading.Event, sent: list):
        """What would end every rank, were it of the job."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            while not ended.wait(0.02):
                job = random.getrandbits(64)
                for port in udp_ports(PROGRAM):
                    for datagram in (struct.pack("<Qqiiqd", job, 1, 1, 0, 0, 1e9), struct.pack("<Q600s", job, b"noise"),
                                     b"", random.randbytes(7), random.randbytes(2000)):
                        sent.append(stranger.sendto(datagram, ("127.0.0.1", port)))

    def test_nobody_is_blamed(self):
        """A slow checkpoint within its own limit, work that marks its progress, a job suspended as a whole; and strangers
        who send datagrams."""
        ended, sent = threading.Event(), []
        stranger = threading.Thread(target=self.send_noise, args=(ended, sent))
        stranger.start()
        try:
            code, said = self.run_way("behave")
        finally:
            ended.set()
            stranger.join()
        self.assertGreater(len(sent), 100)
        self.assertEqual(code, 0, said)
        self.assertNotIn("event=hang", said)
        self.assertIn("event=suspended", said)


if __name__ == "__main__":
    unittest.main()
