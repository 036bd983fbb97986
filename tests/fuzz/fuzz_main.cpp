// libFuzzer's entry. TTT_FUZZ_TARGET names the target; with TTT_FUZZ_SEEDS=DIR its seeds are written there and the
// program ends. tests/fuzz/run.sh does both.

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "tests/data/temporary_directory.h"
#include "tests/fuzz/targets.h"

namespace {

const ttt::fuzz::Target& chosen() {
  const char* name = std::getenv("TTT_FUZZ_TARGET");
  for (const ttt::fuzz::Target& target : ttt::fuzz::targets()) {
    if (name != nullptr && target.name == name) return target;
  }
  std::fprintf(stderr, "TTT_FUZZ_TARGET must be one of:");
  for (const ttt::fuzz::Target& target : ttt::fuzz::targets()) {
    std::fprintf(stderr, " %s", target.name.c_str());
  }
  std::fprintf(stderr, "\n");
  std::exit(64);
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  const ttt::fuzz::Target& target = chosen();
  if (const char* seeds = std::getenv("TTT_FUZZ_SEEDS")) {
    std::filesystem::create_directories(seeds);
    const ttt::data::TemporaryDirectory directory;
    int number = 0;
    for (const std::string& seed : target.seeds(directory.str())) {
      ttt::data::write_bytes(std::string(seeds) + "/seed-" + std::to_string(number++), seed);
    }
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* bytes, std::size_t size) {
  static const ttt::fuzz::Target& target = chosen();
  static const ttt::data::TemporaryDirectory directory;
  (void)ttt::fuzz::accepts(target, directory.str(),
                           std::string(reinterpret_cast<const char*>(bytes), size));
  return 0;
}
