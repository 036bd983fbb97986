// The generic CUDA kernels of the inner loop. In fp32 they also answer the comparisons of ttt_cpu_test.cpp whose names
// contain Float.

#ifdef TTT_TEST_CUDA
#include <gtest/gtest.h>

#include "kernels/cuda/ttt_paths.h"
#include "kernels/ttt.h"
#include "tests/kernels/ttt_call.h"
#include "tests/kernels/ttt_cases.h"
#include "tests/support/tensors.h"

namespace ttt::test {
namespace {

namespace ref = kernels::reference;

/// Also where kernels::ttt_forward would take the fused kernels.
TttFunctions generic() {
  return {&kernels::cuda::generic_forward, &kernels::cuda::generic_backward};
}

/// out, q, k, v were rounded to bf16 once, which is 2^-8; all else stays in fp32 and is as close as fp32 inputs give it.
template <template <typename> typename Set>
void expect_all_close_in_bf16(Set<float> actual, Set<double> expected) {
  const auto actual_members = members(actual);
  const auto expected_members = members(expected);
  for (std::size_t i = 0; i < expected_members.size(); ++i) {
    const std::string& name = expected_members[i].first;
    const bool is_rounded = name == "out" || name == "q" || name == "k" || name == "v";
    expect_close(name, *actual_members[i].second, *expected_members[i].second,
                 is_rounded ? 4e-3 : 1e-4);
  }
}

class TttCuda : public testing::TestWithParam<TttCase> {};

TEST_P(TttCuda, BFloat16MatchesReference) {
  const TttCase& c = GetParam();
  const TttTensors<double> x = rounded_to<BFloat16>(make_tensors(c));
  TttLoss loss = make_loss(c);
  loss.d_out = rounded_to<BFloat16>(loss.d_out);
  expect_all_close_in_bf16(call_forward<BFloat16>(c, x, nullptr, generic()),
                           ref::ttt_forward(c.sizes, c.options, x));
  expect_all_close_in_bf16(call_backward<BFloat16>(c, x, loss, generic()),
                           ref::ttt_backward(c.sizes, c.options, x, loss.d_out, loss.d_final));
}

std::vector<TttCase> cases() {
  std::vector<TttCase> result;
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    result.push_back(make_case(model, 1, 16, 1, 1));
    result.push_back(make_case(model, 7, 1, 5, 7));
    result.push_back(make_case(model, 37, 16, 64, 256));  // what the fused kernels serve
    result.push_back(make_case(model, 45, 40, 33, 35));
    TttCase plain = make_case(model, 23, 8, 9, 11);
    plain.sizes.batch = 2;
    plain.options.inner_norm = plain.options.bias = false;
    plain.name += "Plain";
    result.push_back(plain);
  }
  return result;
}

INSTANTIATE_TEST_SUITE_P(Cases, TttCuda, testing::ValuesIn(cases()),
                         [](const auto& tested) { return tested.param.name; });

TEST(CudaTttGeneric, RerunIsBitwiseEqual) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    const TttCase c = make_case(model, 21, 8, 12, 20);
    const TttTensors<double> x = make_tensors(c);
    const TttLoss loss = make_loss(c);
    TttTensors<float> once = call_backward<float>(c, x, loss);
    TttTensors<float> again = call_backward<float>(c, x, loss);
    const auto first = members(once);
    const auto second = members(again);
    for (std::size_t i = 0; i < first.size(); ++i) {
      EXPECT_EQ(*first[i].second, *second[i].second) << first[i].first;
    }
  }
}

// More pairs than blocks of threads have scratch (1024).
TEST(CudaTttGeneric, ABlockTakesPairAfterPair) {
  TttCase c = make_case(InnerModel::kLinear, 2, 2, 8, 0);
  c.sizes.batch = 2;
  c.sizes.heads = 513;
  const TttTensors<double> x = make_tensors(c);
  const TttLoss loss = make_loss(c);
  expect_all_close(call_forward<float>(c, x), ref::ttt_forward(c.sizes, c.options, x), 1e-5);
  expect_all_close(call_backward<float>(c, x, loss),
                   ref::ttt_backward(c.sizes, c.options, x, loss.d_out, loss.d_final), 1e-4);
}

/// One call's tensors, for what the common calls of ttt_cpu_call.h do not vary.
struct Call {
  TttCase c;
  TttTensors<double> x = make_tensors(c);
  InputTensors<float> inputs{c, x};
  StateTensors<float> state{c, x.initial};
  Tensor out{inputs.q.shape(), DType::kF32};
  Stream queue = stream();

  explicit Call(InnerModel model) : c(make_case(model, 11, 4, 6, 9)) {}

  TttOutputs<float> forward(const kernels::TttState& final_state) {
    kernels::ttt_forward(inputs.views(), c.options, state.views(), out, final_state, nullptr,
                         queue);
    queue.synchronize();
    return {elements_of<float>(out), state.values()};
  }
};

TEST(CudaTttGeneric, FinalStateMayBeInitialOrEmpty) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    Call apart(model);
    const TttOutputs<float> expected = call_forward<float>(apart.c, apart.x);
    TttOutputs<float> empty = apart.forward({});
    EXPECT_EQ(empty.out, expected.out);
    expect_all_close(
        empty, TttOutputs<double>{{expected.out.begin(), expected.out.end()}, apart.x.initial},
        1e-7);  // only rounded to fp32
    Call in_place(model);
    const TttOutputs<float> last = in_place.forward(in_place.state.views());
    EXPECT_EQ(last.out, expected.out);
    EXPECT_EQ(last.final_state.w1, expected.final_state.w1);
    EXPECT_EQ(last.final_state.b2, expected.final_state.b2);
  }
}

TEST(CudaTttGeneric, EmptyFinalGradientIsZero) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    const TttCase c = make_case(model, 11, 4, 6, 9);
    const TttTensors<double> x = make_tensors(c);
    TttLoss loss = make_loss(c);
    loss.d_final = zeros_like(loss.d_final);
    TttTensors<float> zero = call_backward<float>(c, x, loss);
    loss.d_final = {};
    TttTensors<float> empty = call_backward<float>(c, x, loss);
    EXPECT_EQ(zero.q, empty.q);
    EXPECT_EQ(zero.initial.w1, empty.initial.w1);
    EXPECT_EQ(zero.initial.w2, empty.initial.w2);
  }
}

// What pairs share is added to, all else overwritten.
TEST(CudaTttGeneric, BackwardAddsToSharedGradientsAlone) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    Call call(model);
    const TttLoss loss = make_loss(call.c);
    const TttTensors<float> expected = call_backward<float>(call.c, call.x, loss);
    kernels::TttSaved saved;
    kernels::ttt_forward(call.inputs.views(), call.c.options, call.state.views(), call.out, {},
                         &saved, call.queue);
    const auto one = [](const Tensor& like) {
      Tensor tensor(like.shape(), like.dtype());
      fill(tensor, 1.0);
      return tensor;
    };
    const Tensor d_out = tensor_of<float>(call.inputs.q.shape(), loss.d_out);
    const StateTensors<float> d_final(call.c, loss.d_final);
    const Tensor d_q = one(call.inputs.q), d_k = one(call.inputs.k), d_v = one(call.inputs.v);
    const Tensor d_lr = one(call.inputs.token_lr), d_scale = one(call.inputs.token_scale);
    const Tensor d_weight = one(call.inputs.norm_weight), d_bias = one(call.inputs.norm_bias);
    const StateTensors<float> d_initial(call.c, loss.d_final);
    kernels::ttt_backward(call.inputs.views(), call.c.options, call.state.views(), saved, d_out,
                          d_final.views(), {d_q, d_k, d_v, d_lr, d_scale, d_weight, d_bias},
                          d_initial.views(), call.queue);
    call.queue.synchronize();
    EXPECT_EQ(elements_of<float>(d_q), expected.q);
    EXPECT_EQ(elements_of<float>(d_k), expected.k);
    EXPECT_EQ(elements_of<float>(d_v), expected.v);
    EXPECT_EQ(elements_of<float>(d_lr), expected.token_lr);
    EXPECT_EQ(d_initial.values().w1, expected.initial.w1);
    for (const auto& [actual, part] :
         {std::pair{&d_scale, &expected.token_scale}, std::pair{&d_weight, &expected.norm_weight},
          std::pair{&d_bias, &expected.norm_bias}}) {
      std::vector<float> sum = *part;
      for (float& value : sum) value += 1.0F;
      EXPECT_EQ(elements_of<float>(*actual), sum);
    }
  }
}

TEST(CudaTttGeneric, CheckpointsStaySmall) {
  const TttCase c = make_case(InnerModel::kLinear, 256, 2, 4, 0);
  kernels::TttSaved saved;
  call_forward<float>(c, make_tensors(c), &saved);
  EXPECT_GT(saved.checkpoints.size(2), 1);
  EXPECT_LE(saved.checkpoints.size(2), 6);  // 128 mini-batches in groups of 2 sqrt(128)
}

/// [3, B, T, H], from the device of `queue`.
template <typename T>
std::vector<double> inner_losses(const TttCase& c, const TttTensors<double>& x, Stream queue) {
  const InputTensors<T> inputs(c, x);
  const StateTensors<ParameterOf<T>> initial(c, x.initial);
  const Tensor losses = unset({3, c.sizes.batch, c.sizes.tokens, c.sizes.heads}, DType::kF64);
  kernels::ttt_inner_loss(inputs.views(), c.options, initial.views(), losses, queue);
  queue.synchronize();
  return elements_of<double>(losses);
}

// What evaluation and metrics report of a model, on either device: the published sizes, the last mini-batch short.
TEST(CudaTttInnerLoss, IsTheCpusAtThePublishedSizes) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    for (const std::int64_t features : {64, 96}) {
      TttCase c = make_case(model, 37, 16, features, 4 * features);
      c.sizes.batch = 2;
      const TttTensors<double> x = rounded_to<BFloat16>(make_tensors(c));
      const std::vector<double> cpu = inner_losses<double>(c, x, Stream());
      // Sums of 64 or 96 squares whose values are good to 1e-6; bf16 has the same inputs, and f(k) stays in fp32.
      expect_close("fp32", inner_losses<float>(c, x, stream()), cpu, 1e-5);
      expect_close("bf16", inner_losses<BFloat16>(c, x, stream()), cpu, 1e-5);
    }
  }
}

// Small enough for ThreadSanitizer with a thread a thread: two mini-batches, the last one short.
TEST(CudaRaceTttGeneric, ForwardAndBackward) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    TttCase c = make_case(model, 5, 3, 3, 4);
    c.sizes.heads = 1;
    const TttTensors<double> x = make_tensors(c);
    const TttLoss loss = make_loss(c);
    expect_all_close(call_backward<float>(c, x, loss),
                     ref::ttt_backward(c.sizes, c.options, x, loss.d_out, loss.d_final), 1e-4);
  }
}

}  // namespace
}  // namespace ttt::test
#endif
