// The memory that a planning device states for CUDA, against the kernels on the emulator or a device.

#include <gtest/gtest.h>

#include <map>

#include "kernels/planning.h"
#include "tests/core/model_cases.h"
#include "tests/support/kernel_check.h"

namespace ttt {
namespace {

struct Case {
  std::string name;
  std::vector<std::string> fields;
  std::int64_t tokens = 1024 + 37;
  // Left out of the plan: what the generic inner loop keeps for a pair while it works on it.
  std::int64_t scratch_bytes = 0;
};

// Head dim 64, the fused kernels' in bf16, and 32, the generic ones'. 2085 tokens are two checkpoints of TTT-Linear's.
const std::vector<Case> kCases = {
    {"TttLinear", {"num_heads=2", "mixer=TTT_LINEAR", "use_gate=true", "share_qk=true"}, 2048 + 37},
    {"TttLinearGeneric", {"num_heads=4", "mixer=TTT_LINEAR", "pre_conv=true"}, 1024 + 37, 460000},
    {"TttMlp", {"num_heads=2", "mixer=TTT_MLP"}, 1024 + 37, 5770000},
    {"Attention", {"num_heads=2", "mixer=ATTENTION"}},
    {"LinearAttention", {"num_heads=2", "mixer=LINEAR_ATTENTION"}}};
constexpr std::int64_t kRows = 1;

config::ModelConfig model_of(const Case& one) {
  std::vector<std::string> fields{"vocab_size=40", "hidden_size=128", "intermediate_size=96",
                                  "num_layers=1"};
  fields.insert(fields.end(), one.fields.begin(), one.fields.end());
  return test::model_of(fields);
}

/// Bytes in tensors at most in a step in fp32, and those that a block keeps for backward in bf16.
struct Memory {
  std::int64_t step_peak = 0, block_kept = 0;
};

Memory memory_of(const Case& one, Stream& stream) {
  const std::int64_t tokens = one.tokens;
  const std::int64_t before = memory::live_bytes();
  memory::reset_peak();
  Memory result;
  LanguageModel model(model_of(one), tokens);
  model.parameters().allocate(DType::kF32);
  if (!stream.is_planning()) model.parameters().initialize(1);
  const Tensor gradients = Tensor::zeros({model.parameters().num_elements()}, DType::kF32);
  model.parameters().bind_gradients(gradients);
  {
    const Tensor ids = Tensor::zeros({kRows, tokens}, DType::kI64);
    const Tensor weight = Tensor::zeros({kRows, tokens}, DType::kF64);
    const Tensor nll({kRows, tokens}, DType::kF64);
    Context context{stream, kernels::Precision::kNative};
    model.forward_backward({ids, ids, weight}, nll, false, context);
    stream.synchronize();
  }
  result.step_peak = memory::peak_bytes() - before;
  Context context{stream, kernels::Precision::kBF16};
  const Tensor x = Tensor::zeros({kRows, tokens, 128}, DType::kBF16);
  const Tensor y(x.shape(), DType::kBF16);
  const std::int64_t outside = memory::live_bytes();
  const auto saved = model.block(0).forward(x, y, context);
  stream.synchronize();
  result.block_kept = memory::live_bytes() - outside;
  return result;
}

// Before any test: on a device libraries hold tensors from the first product on.
class Plans : public testing::Environment {
 public:
  void SetUp() override {
    for (const Case& one : kCases) {
      const kernels::AddressSpace addresses;
      kernels::PlanningTrace trace;
      Stream stream = kernels::make_planning_stream({Device::kCuda}, trace);
      plans[one.name] = memory_of(one, stream);
    }
  }
  static inline std::map<std::string, Memory> plans;
};
const testing::Environment* const kPlans = testing::AddGlobalTestEnvironment(new Plans);

void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

class CudaModelMemory : public testing::TestWithParam<Case> {};

TEST_P(CudaModelMemory, IsWhatThePlanSays) {
  Stream stream = test::stream();
  const Memory measured = memory_of(GetParam(), stream);
  const Memory planned = Plans::plans.at(GetParam().name);
  EXPECT_EQ(planned.block_kept, measured.block_kept);
  // Left out too: tables and partial sums, which do not grow with the tokens.
  EXPECT_NEAR(static_cast<double>(planned.step_peak + GetParam().scratch_bytes) /
                  static_cast<double>(measured.step_peak),
              1, 0.01);
}

INSTANTIATE_TEST_SUITE_P(Mixers, CudaModelMemory, testing::ValuesIn(kCases),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace ttt
