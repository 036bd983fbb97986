// Generation with replayed steps on a CUDA device or its emulator, against the same steps queued one by one.

#include "core/decoder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "kernels/copy.h"
#include "tests/core/model_cases.h"
#include "tests/support/kernel_check.h"

namespace ttt {
namespace {

using test::SmallModel;

struct Case {
  std::string name;
  std::vector<std::string> fields;
  std::int64_t period;  // 0: no graphs
};

void PrintTo(const Case& one, std::ostream* out) { *out << one.name; }

config::ModelConfig model_of(const Case& one) {
  std::vector<std::string> fields{"vocab_size=17", "hidden_size=128", "intermediate_size=96",
                                  "num_layers=2", "num_heads=2"};
  fields.insert(fields.end(), one.fields.begin(), one.fields.end());
  return test::model_of(fields);
}

struct Generation {
  std::int64_t batch, prompt, steps;
  kernels::Precision precision = kernels::Precision::kNative;
};

// What goes on between two steps.
using Between = std::function<void(Stream&)>;

class CudaModelDecoder : public testing::TestWithParam<Case> {
 protected:
  CudaModelDecoder() : small_(model_of(GetParam()), DType::kF32) {}

  // The logits of every step [steps, B, V] after random tokens. `num_graphs` are made.
  Tensor decode(Stream& stream, const Generation& g, DecodeSteps steps, std::int64_t num_graphs,
                const Between& between = {}) {
    Decoder decoder(small_.model, g.batch, Context{stream, g.precision}, steps);
    const Tensor prompt({g.batch, g.prompt}, DType::kI64);
    for (std::int64_t i = 0; i < prompt.numel(); ++i) {
      prompt.data<std::int64_t>()[i] = i * 5 % test::kVocabulary;
    }
    (void)decoder.prefill(prompt, false);
    Tensor all({g.steps, g.batch, test::kVocabulary}, DType::kF32);
    const Tensor next({g.batch, 1}, DType::kI64);
    const CounterRng rng(3, "decoded");
    for (std::int64_t step = 0; step < g.steps; ++step) {
      for (std::int64_t b = 0; b < g.batch; ++b) {
        const auto index = static_cast<std::uint64_t>(step * g.batch + b);
        next.data<std::int64_t>()[b] =
            static_cast<std::int64_t>(rng.bits(index) % test::kVocabulary);
      }
      const Tensor logits = decoder.step(next);
      fill_ids(next, -1);  // whoever still reads them meets no token
      copy(logits.view().reshape({1, g.batch, test::kVocabulary}),
           all.view().slice(step, step + 1));
      if (between) between(stream);
    }
    EXPECT_EQ(decoder.num_graphs(), num_graphs);
    return all;
  }

  void expect_equal_bits(Stream& stream, const Generation& g, const Between& between = {}) {
    const std::int64_t period = GetParam().period;
    const Tensor queued = decode(stream, g, DecodeSteps::kQueued, 0);
    const Tensor replayed =
        decode(stream, g, DecodeSteps::kReplayed,
               std::min(std::max<std::int64_t>(g.steps - period, 0), period), between);
    EXPECT_TRUE(test::same_bits(queued, replayed))
        << "batch " << g.batch << ", prompt " << g.prompt << ", " << g.steps << " steps";
    for (const float value : queued.span<float>()) ASSERT_TRUE(std::isfinite(value));
  }

  static void fill_ids(TensorView ids, std::int64_t value) {
    std::ranges::fill(ids.span<std::int64_t>(), value);
  }

  SmallModel small_;
};

using CudaModelDecoderMemory = CudaModelDecoder;

// Tensors of all sizes from the pool, which keep their values whatever is replayed.
class Hoard {
 public:
  void grow(Stream& stream) {
    const memory::Scope scope({"hoard"}, memory::Place::kDevice);
    for (std::int64_t count = 128; count <= 1 << 12; count += count / 8) {
      tensors_.emplace_back(Shape{count}, DType::kF32);
      kernels::fill(tensors_.back(), std::numeric_limits<float>::quiet_NaN(), stream);
    }
  }
  void expect_untouched(Stream& stream) const {
    for (const Tensor& tensor : tensors_) {
      const Tensor seen(tensor.shape(), tensor.dtype());
      kernels::copy(tensor, seen, stream);
      stream.synchronize();
      ASSERT_TRUE(std::ranges::all_of(seen.span<float>(), [](float x) { return std::isnan(x); }))
          << "a replay wrote into a tensor of " << tensor.numel() << " elements";
    }
  }

 private:
  std::vector<Tensor> tensors_;
};

TEST_P(CudaModelDecoder, ReplayedStepsHaveTheBitsOfQueuedOnes) {
  Stream stream = test::stream();
  const std::int64_t steps = 3 * GetParam().period + 1;
  expect_equal_bits(stream, {1, 5, steps, kernels::Precision::kBF16});
  expect_equal_bits(stream, {2, 3, steps});
}

TEST_P(CudaModelDecoderMemory, OtherTensorsKeepOutOfTheGraphsMemory) {
  Stream stream = test::stream();
  Hoard hoard;
  const std::int64_t steps = 2 * GetParam().period + 3;
  expect_equal_bits(stream, {2, 1, steps}, [&](Stream& queue) { hoard.grow(queue); });
  hoard.expect_untouched(stream);
}

TEST_P(CudaModelDecoderMemory, MemoryReturnsWithTheDecoder) {
  Stream stream = test::stream();
  const Generation g{2, 1, 2 * GetParam().period + 1};
  (void)decode(stream, g, DecodeSteps::kReplayed, GetParam().period);
  const std::int64_t live = memory::live_bytes();
  memory::release_free_blocks();
  memory::reset_peak();
  const std::int64_t held = memory::peak_held_bytes();
  (void)decode(stream, g, DecodeSteps::kReplayed, GetParam().period);
  EXPECT_EQ(memory::live_bytes(), live);
  memory::release_free_blocks();
  memory::reset_peak();
  EXPECT_EQ(memory::peak_held_bytes(), held);
}

TEST_P(CudaModelDecoderMemory, APromptComesFirst) {
  Stream stream = test::stream();
  Decoder decoder(small_.model, 1, Context{stream});
  const Tensor ids({1, 1}, DType::kI64);
  fill_ids(ids, 3);
  (void)decoder.step(ids);
  EXPECT_NE(test::error_of([&] { (void)decoder.prefill(ids, true); }).find("after 1 steps"),
            std::string::npos);
}

const std::vector<std::string> kMamba{"use_gate=true", "share_qk=true", "pre_conv=true"};

Case case_of(std::string name, std::vector<std::string> fields, std::int64_t period,
             bool is_mamba) {
  if (is_mamba) fields.insert(fields.end(), kMamba.begin(), kMamba.end());
  return {std::move(name), std::move(fields), period};
}

std::string name_of(const testing::TestParamInfo<Case>& test) { return test.param.name; }

INSTANTIATE_TEST_SUITE_P(
    Mixers, CudaModelDecoder,
    testing::Values(
        case_of("TttLinear", {"mixer=TTT_LINEAR", "ttt.mini_batch_size=4"}, 4, true),
        case_of("TttLinearOfSixteen", {"mixer=TTT_LINEAR", "num_layers=1"}, 16, false),
        case_of("TttLinearGeneric",
                {"mixer=TTT_LINEAR", "ttt.mini_batch_size=3", "ttt.inner_norm=false"}, 3, false),
        case_of("TttLinearOfOne", {"mixer=TTT_LINEAR", "ttt.mini_batch_size=1"}, 1, false),
        case_of("TttMlp", {"mixer=TTT_MLP", "ttt.mini_batch_size=2", "num_layers=1"}, 2, true),
        case_of("LinearAttention", {"mixer=LINEAR_ATTENTION"}, 1, true),
        case_of("Attention", {"mixer=ATTENTION"}, 0, false),
        case_of("TttLinearOfTooMany", {"mixer=TTT_LINEAR", "ttt.mini_batch_size=65"}, 0, false)),
    name_of);
INSTANTIATE_TEST_SUITE_P(Mixers, CudaModelDecoderMemory,
                         testing::Values(case_of("TttLinear",
                                                 {"mixer=TTT_LINEAR", "ttt.mini_batch_size=3",
                                                  "num_layers=1"},
                                                 3, true)),
                         name_of);

}  // namespace
}  // namespace ttt
