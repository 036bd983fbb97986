"""`ttt doctor`, alone and under mpirun: what it measures, what it warns of, and the code it ends with."""

import json
import os
import unittest

from harness import MISSING, OK, PERMISSION, USAGE, RunTest, ttt

OPERATIONS = {"barrier", "gather_strings", "all_reduce_sum", "reduce_scatter_sum", "all_gather", "all_to_all",
              "broadcast", "exchange"}


class Doctor(RunTest):
    def examine(self, *arguments, **options) -> dict:
        return json.loads(self.succeed("doctor", "--json", "--directory", self.directory, *arguments, **options).out)

    def test_one_rank(self):
        before = set(self.directory.iterdir())
        found = self.examine()
        self.assertEqual(set(self.directory.iterdir()), before, "it left something")
        self.assertEqual(found["operations"], [])
        (rank,) = found["ranks"]
        self.assertEqual(rank["host"], os.uname().nodename)
        self.assertEqual(rank["cpus"], sorted(os.sched_getaffinity(0)))
        self.assertEqual(rank["threads"], len(rank["cpus"]))
        for what in ("memory_gib", "free_memory_gib", "free_disk_gib", "write_gigabytes_per_second", "fsync_seconds"):
            self.assertGreater(rank[what], 0, what)
        for name in ("Open MPI", "HDF5", "OpenBLAS"):
            self.assertTrue(any(version.startswith(name) for version in found["versions"]), found["versions"])

    def test_three_ranks_time_every_operation(self):
        found = self.examine("--largest-bytes", 16384, ranks=3)
        self.assertEqual(len(found["ranks"]), 3)
        self.assertEqual({time["operation"] for time in found["operations"]}, OPERATIONS)
        for time in found["operations"]:
            self.assertGreater(time["seconds"], 0, time)
        sizes = sorted({time["bytes"] for time in found["operations"] if time["operation"] == "all_reduce_sum"})
        self.assertEqual(sizes, [4, 64, 1024, 16384])
        for rank in found["ranks"][1:]:
            self.assertGreater(rank["link_gigabytes_per_second"], 0)
            self.assertLess(abs(rank["clock_ahead_seconds"]), 0.5, "one machine has one clock")

    def test_bound_to_one_processor(self):
        (cpu, *_) = os.sched_getaffinity(0)
        result = self.succeed("doctor", "--directory", self.directory, "--largest-bytes", 4, ranks=2,
                              preexec_fn=lambda: os.sched_setaffinity(0, {cpu}))
        self.assertIn("what looks wrong", result.out)
        self.assertIn(f"ranks 0-1 run 2 threads on 1 processor ({cpu})", result.out)

    def test_bad_input(self):
        nowhere = self.directory / "nowhere"
        for code, arguments in ((MISSING, ["--directory", nowhere]), (USAGE, ["--largest-bytes", 0])):
            result = ttt("doctor", *arguments)
            self.assertEqual(result.code, code, result.err)
            self.assertIn(str(arguments[-1]), result.err)

    def test_a_directory_that_cannot_be_written(self):
        result = ttt("doctor", "--directory", "/proc/self")
        self.assertIn(result.code, (PERMISSION, 74), result.err)
        self.assertIn("cannot write in /proc/self", result.out)


if __name__ == "__main__":
    unittest.main()
