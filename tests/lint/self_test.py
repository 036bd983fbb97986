"""Plants violations in a small tree and expects every lint script to find them, and nothing else."""

import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import clocks
import doc_paths
import file_limits
import header_contracts
import include_direction
import no_marks


class LintCase(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.root = Path(self.folder.name)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def found(self, script):
        """(file, line) of every problem, sorted."""
        return sorted((problem.file, problem.line) for problem in script.check(self.root)[0])


class IncludeDirection(LintCase):
    def setUp(self):
        super().setUp()
        for name in ("core/base/a.h", "kernels/a.h", "core/a.h", "dist/a.h", "data/a.h", "launch/a.h", "configs/a.h"):
            self.write(name, "")

    def test_arrows(self):
        self.write("core/base/x.cpp", '#include "core/base/a.h"\n#include "kernels/a.h"\n')
        self.write("kernels/cpu/x.cpp", '#include "core/base/a.h"\n#include "core/a.h"\n#include "configs/a.h"\n')
        self.write("configs/x.cpp", '#include "core/base/a.h"\n#include "kernels/a.h"\n')
        self.write("core/x.cpp", '#include "kernels/a.h"\n#include "configs/a.h"\n#include "dist/a.h"\n')
        self.write("dist/x.cpp", '#include "core/a.h"\n#include "data/a.h"\n#include "launch/a.h"\n')
        self.write("data/x.cpp", '#include "configs/a.h"\n#include "core/base/a.h"\n#include "core/a.h"\n')
        self.write("launch/x.cpp", '#include "dist/a.h"\n#include "data/a.h"\n')
        self.write("tests/core/x_test.cpp", '#include "launch/a.h"\n#include "tests/support/none.h"\n')
        self.assertEqual(self.found(include_direction), [
            ("configs/x.cpp", 2), ("core/base/x.cpp", 2), ("core/x.cpp", 3), ("data/x.cpp", 3), ("dist/x.cpp", 2),
            ("dist/x.cpp", 3), ("kernels/cpu/x.cpp", 2), ("kernels/cpu/x.cpp", 3), ("tests/core/x_test.cpp", 2)])

    def test_paths_start_at_the_root(self):
        self.write("core/x.cpp", '#include "a.h"\n#include "../kernels/a.h"\n#include "kernels/missing.h"\n')
        self.assertEqual(self.found(include_direction), [("core/x.cpp", 1), ("core/x.cpp", 2), ("core/x.cpp", 3)])

    def test_third_party(self):
        self.write("core/base/log.cpp", "#include <spdlog/spdlog.h>\n#include <fmt/format.h>\n#include <sys/mman.h>\n")
        self.write("core/base/x.cpp", "#include <spdlog/spdlog.h>\n#include <google/protobuf/text_format.h>\n")
        self.write("kernels/x.cpp", '#include <cblas.h>\n#include "configs/run.pb.h"\n')
        self.write("kernels/cpu/x.cpp", "#include <cblas.h>\n#include <omp.h>\n#pragma omp parallel\n#include <mpi.h>\n")
        self.write("core/x.cpp", '#include "configs/run.pb.h"\n#include <mpi.h>\n#pragma omp parallel\n')
        self.write("dist/x.cpp", '#include <mpi.h>\n#include <nccl.h>\n#include <hdf5.h>\n#include "configs/run.pb.h"\n')
        self.write("data/x.cpp", "#include <hdf5.h>\n#include <nlohmann/json.hpp>\n#include <CLI/CLI.hpp>\n")
        self.write("launch/x.cpp", "#include <CLI/CLI.hpp>\n#include <nlohmann/json.hpp>\n#include <gtest/gtest.h>\n")
        self.write("tests/data/x_test.cpp", "#include <gtest/gtest.h>\n#include <benchmark/benchmark.h>\n")
        self.write("tests/bench/x_bench.cpp", "#include <benchmark/benchmark.h>\n#include <boost/any.hpp>\n")
        self.assertEqual(self.found(include_direction), [
            ("core/base/x.cpp", 1), ("core/base/x.cpp", 2), ("core/x.cpp", 2), ("core/x.cpp", 3), ("data/x.cpp", 3),
            ("dist/x.cpp", 3), ("dist/x.cpp", 4), ("kernels/cpu/x.cpp", 4), ("kernels/x.cpp", 1), ("kernels/x.cpp", 2),
            ("launch/x.cpp", 3), ("tests/bench/x_bench.cpp", 2), ("tests/data/x_test.cpp", 2)])


class FileLimits(LintCase):
    def test_lines_and_names(self):
        self.write("core/long.cpp", "\n" * 401)
        self.write("core/full.cpp", "\n" * 400)
        self.write("core/BadName.h", "")
        self.write("tests/bad-folder/x.py", "")
        self.write("tests/CMakeLists.txt", "")
        self.write("tests/README.md", "")
        self.write("utilities/x.cpp", "")
        self.write("notes.txt", "")
        self.write(".ci/run", "")
        self.assertEqual(self.found(file_limits), [
            ("core/BadName.h", 1), ("core/long.cpp", 401), ("notes.txt", 1), ("tests/bad-folder/x.py", 1),
            ("utilities/x.cpp", 1)])


class HeaderContracts(LintCase):
    GOOD = "#pragma once\n// y = x\n//\n// Dims: N.\n// Numerics: F32.\n// Errors: none.\n// Source: a paper.\n\nint f();\n"

    def test_labels(self):
        self.write("kernels/good.h", self.GOOD)
        self.write("kernels/no_errors.h", self.GOOD.replace("// Errors: none.\n", ""))
        self.write("kernels/empty_dims.h", self.GOOD.replace("Dims: N.", "Dims:"))
        self.write("kernels/late.h", "#pragma once\nint f();\n" + self.GOOD)
        self.write("kernels/cpu/inner.h", "#pragma once\n")
        self.write("core/mixers/good.h", self.GOOD.replace("// Dims:", "// class. Dims:"))
        self.write("core/mixers/none.h", "#pragma once\n")
        self.assertEqual(self.found(header_contracts), [
            *[("core/mixers/none.h", 1)] * 4, ("kernels/empty_dims.h", 1), *[("kernels/late.h", 1)] * 4,
            ("kernels/no_errors.h", 1)])


class DocPaths(LintCase):
    def test_spans_and_links(self):
        self.write("core/a.h", "")
        self.write("docs/b.md", "")
        self.write("docs/page.md", "\n".join([
            "`core/a.h` `core/a.h:12` `core/` `bash launch/none.sh --x`",  # the script does not exist
            "`kernels/<op>.h` `core/*.h` `runs/run/metrics.jsonl` `CHECKPOINT/x` `a/b`",
            "`core/*.cu`",
            "[b](b.md) [b](b.md#part) [top](#top) [web](https://example.org/x) [gone](gone.md)",
            "```",
            "`core/none.h` [x](none.md)",
            "```",
            "[a](../core/a.h) [z](../core/z.h)",
        ]))
        self.write("core/b.cpp", "// docs/b.md, \"Part\"\n// docs/none.md\n")
        self.assertEqual(self.found(doc_paths), [
            ("core/b.cpp", 2), ("docs/page.md", 1), ("docs/page.md", 3), ("docs/page.md", 4), ("docs/page.md", 8)])


class NoMarks(LintCase):
    def test_marks_and_machine_paths(self):
        self.write("core/a.cpp", "// TODO(#12): x\n// TODO: x\n// FIXME\nint todo_count;\n")
        self.write("docs/a.md", "No TODO without a number.\nSee /home/somebody/notes.\n`--output /tmp/x` a/home/x\n")
        self.write("launch/a.sh", "cd /work/project\ncd \"$ROOT/work/x\"\n")
        self.assertEqual(self.found(no_marks), [
            ("core/a.cpp", 2), ("core/a.cpp", 3), ("docs/a.md", 2), ("launch/a.sh", 1)])

    def test_commented_out_code(self):
        code = ["// return x;", "// if (a) {", "  // const int a = 3;", "// #include <vector>", "// f(a, b(c));",
                "// std::vector<int> v;", "// }", "// auto y = g();"]
        prose = ["// y = w * x;", "//   silu(x) = x sigmoid(x);  gelu(x) = x Phi(x);", "// if the state is empty;",
                 "// returns what is left;", "//   y[n] = table[ids[n]];  d_table[ids[n]] += d_y[n]",
                 "// static weights; the others move.", "// for x (a row) in the batch.", "//", "// const after set-up."]
        self.write("core/a.cpp", "\n".join(code + prose))
        self.write("launch/a.py", "# import os\n# x = f(y)\n# if any are missing: stop\n# print(x)\n")
        self.assertEqual(self.found(no_marks), [
            *[("core/a.cpp", line + 1) for line in range(len(code))], ("launch/a.py", 1), ("launch/a.py", 2),
            ("launch/a.py", 4)])

    def test_skips(self):
        self.write("tests/README.md", "# Tests\n\n## Allowed skips\n\n- `Gpu.Runs`: no GPU\n- `Old.Gone`: was slow\n")
        self.write("tests/core/a_test.cpp", "TEST(Gpu, Runs) {\n  GTEST_SKIP();\n}\nTEST_F(Cpu, Runs) {\n"
                   "  GTEST_SKIP();\n}\nTEST(Cpu, DISABLED_Slow) {}\n")
        self.assertEqual(self.found(no_marks), [
            ("tests/README.md", 6), ("tests/core/a_test.cpp", 5), ("tests/core/a_test.cpp", 7)])


class Clocks(LintCase):
    def test_clocks_that_can_jump(self):
        self.write("dist/a.cpp", "auto t = std::chrono::system_clock::now();\nauto s = std::chrono::steady_clock::now();\n"
                   "clock_gettime(CLOCK_REALTIME, &t);\nclock_gettime(CLOCK_MONOTONIC, &t);\nsrand(time(nullptr));\n"
                   "const double time(3);\n")
        self.write("tests/run/a.py", "deadline = time.monotonic() + 5\ndeadline = time.time() + 5\n")
        self.write("launch/a.sh", "id=$(date +%s%N)\ndate\n")
        self.write("launch/tensorboard.cpp", "double wall_time;\n")
        self.write("launch/supervise.sh", "id=$(date +%s%N)\n")
        self.assertEqual(self.found(clocks), [
            ("dist/a.cpp", 1), ("dist/a.cpp", 3), ("dist/a.cpp", 5), ("launch/a.sh", 1), ("tests/lint/clocks.py", 1),
            ("tests/run/a.py", 2)])


if __name__ == "__main__":
    unittest.main()
