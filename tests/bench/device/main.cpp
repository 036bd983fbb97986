// Speed of the kernels, of whole training steps and of generation on a CUDA device, beside what the device can do.
// One program: with the CUDA backend, or with its emulator or the CPU, where --smoke proves that everything runs.

#include <CLI/CLI.hpp>
#include <cstdlib>

#include "kernels/cuda/ops.h"
#include "tests/bench/device/cases.h"

namespace {

ttt::ExitCode run(const std::string& device, const std::vector<std::string>& groups, bool is_smoke,
                  double budget_ms, const std::string& presets, const std::string& json) {
  using namespace ttt;
  kernels::set_cuda_backend(kernels::cuda::backend());
  Stream stream = device == "cpu" ? Stream() : kernels::make_stream(Device::kCuda, 0);
  const bench::Plan plan{stream, budget_ms, is_smoke, presets};
  bench::Report report(stream, json);
  const std::int64_t side = is_smoke ? 64 : 8192;
  const std::int64_t elements = is_smoke ? 4096 : std::int64_t{1} << 30;
  bench::Ceilings ceilings;
  report.attempt("ceilings", "",
                 [&] { ceilings = bench::measure_ceilings(stream, budget_ms, side, elements); });
  report.ceilings(ceilings);
  for (const std::string& group : groups) {
    if (group == "ttt") bench::measure_ttt(plan, report);
    if (group == "attention") bench::measure_attention(plan, report);
    if (group == "steps") bench::measure_steps(plan, report);
    if (group == "decoding") bench::measure_decoding(plan, report);
  }
  return report.exit_code();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures the CUDA backend: kernels, attention, training steps and generation.");
  std::string device = "cuda";
  std::vector<std::string> groups{"ttt", "attention", "steps", "decoding"};
  bool is_smoke = false;
  double budget_ms = 300;
  std::string presets = "configs/pile";
  std::string json;
  app.add_option("--device", device, "cuda or cpu")->check(CLI::IsMember({"cuda", "cpu"}));
  app.add_option("groups", groups, "ttt, attention, steps, decoding; all by default")
      ->check(CLI::IsMember({"ttt", "attention", "steps", "decoding"}));
  app.add_flag("--smoke", is_smoke, "small sizes: everything runs, the figures mean nothing");
  app.add_option("--budget", budget_ms, "milliseconds to spend on a row")->capture_default_str();
  app.add_option("--presets", presets, "the folder with the models' presets")
      ->capture_default_str();
  app.add_option("--json", json, "a file that JSON lines are appended to");
  CLI11_PARSE(app, argc, argv);
  try {
    return static_cast<int>(run(device, groups, is_smoke, budget_ms, presets, json));
  } catch (const ttt::Error& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(error.code());
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return static_cast<int>(ttt::ExitCode::kInternal);
  }
}
