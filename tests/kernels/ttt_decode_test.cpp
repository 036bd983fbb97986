// Decoding, the inner loss, and the contracts of the TTT kernels.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/ttt.h"
#include "tests/kernels/ttt_call.h"
#include "tests/kernels/ttt_cases.h"

namespace ttt::test {
namespace {

namespace ref = kernels::reference;

/// The tokens [begin, end) of sequence-major values with `width` values a token, for every sequence.
std::vector<double> cut_tokens(const TttCase& c, const std::vector<double>& values,
                               std::int64_t width, std::int64_t begin, std::int64_t end) {
  std::vector<double> result;
  for (std::int64_t b = 0; b < c.sizes.batch; ++b) {
    const auto first = values.begin() + b * c.sizes.tokens * width;
    result.insert(result.end(), first + begin * width, first + end * width);
  }
  return result;
}

TttTensors<double> tokens_of(const TttCase& c, const TttTensors<double>& x, std::int64_t begin,
                             std::int64_t end) {
  TttTensors<double> part = x;
  for (auto* values : {&part.q, &part.k, &part.v}) {
    *values = cut_tokens(c, *values, c.sizes.heads * c.sizes.features, begin, end);
  }
  part.token_lr = cut_tokens(c, part.token_lr, c.sizes.heads, begin, end);
  return part;
}

template <typename T>
void expect_decoding_matches(const TttCase& c, std::int64_t prefix, double out_tolerance,
                             double state_tolerance) {
  using P = ParameterOf<T>;
  const TttTensors<double> x = rounded_to<T>(make_tensors(c));
  const TttOutputs<double> expected = ref::ttt_forward(c.sizes, c.options, x);
  TttCase one = c;
  one.sizes.tokens = 1;
  const StateTensors<P> state(c, x.initial);
  const std::int64_t size = c.options.mini_batch_size;
  const std::int64_t full = prefix / size * size;
  Stream queue = stream();
  if (full > 0) {  // the dual form over the full mini-batches, in place
    TttCase head = c;
    head.sizes.tokens = full;
    const InputTensors<T> inputs(head, tokens_of(c, x, 0, full));
    const Tensor out(inputs.q.shape(), kDType<T>);
    kernels::ttt_forward(inputs.views(), c.options, state.views(), out, state.views(), nullptr,
                         queue);
  }
  const StateTensors<P> sums(c, zeros_like(x.initial));
  for (std::int64_t t = full; t < c.sizes.tokens; ++t) {
    const InputTensors<T> inputs(one, tokens_of(c, x, t, t + 1));
    const Tensor out(inputs.q.shape(), kDType<T>);
    kernels::ttt_step(inputs.views(), c.options, t % size, state.views(), sums.views(), out, queue);
    queue.synchronize();
    expect_close("out at " + std::to_string(t), elements_of<T>(out),
                 cut_tokens(c, expected.out, c.sizes.heads * c.sizes.features, t, t + 1),
                 out_tolerance);
  }
  if (c.sizes.tokens % size == 0) {
    TttOutputs<P> last{{}, state.values()};
    TttOutputs<double> final_state{{}, expected.final_state};
    expect_all_close(last, final_state, state_tolerance);
    TttWeights<P> left = sums.values();
    for (const auto* member : {&left.w1, &left.b1, &left.w2, &left.b2}) {
      for (const P sum : *member) EXPECT_EQ(sum, P(0));
    }
  }
}

/// Every switch, from the start and after full mini-batches.
template <typename T>
void expect_all_decoding_matches(double out_tolerance, double state_tolerance) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    for (const std::int64_t prefix : {0, 8}) {
      TttCase c = make_case(model, 16, 4, 6, 9);
      c.sizes.batch = 2;
      expect_decoding_matches<T>(c, prefix, out_tolerance, state_tolerance);
      c.options.bias = false;
      expect_decoding_matches<T>(c, prefix, out_tolerance, state_tolerance);
      c.options.inner_norm = false;
      expect_decoding_matches<T>(c, prefix, out_tolerance, state_tolerance);
    }
    expect_decoding_matches<T>(make_case(model, 5, 1, 33, 70), 2, out_tolerance, state_tolerance);
    expect_decoding_matches<T>(make_case(model, 3, 2, 1, 1), 0, out_tolerance, state_tolerance);
  }
}

TEST(TttDecoding, PrefillAndStepsEqualOnePass) {
  expect_all_decoding_matches<double>(1e-12, 1e-12);
}

// Some 16 mini-batches' roundings of 6e-8, divided by the standard deviation.
TEST(TttDecoding, FloatPrefillAndStepsEqualOnePass) {
  expect_all_decoding_matches<float>(1e-5, 1e-5);
}

/// The outputs and the state of a mini-batch whose tokens come in calls of these numbers.
template <typename T>
std::vector<std::vector<ParameterOf<T>>> decode_in_calls(const TttCase& c,
                                                         const std::vector<std::int64_t>& calls) {
  using P = ParameterOf<T>;
  const TttTensors<double> x = make_tensors(c);
  const StateTensors<P> state(c, x.initial);
  const StateTensors<P> sums(c, zeros_like(x.initial));
  const Tensor out({c.sizes.tokens, c.sizes.batch * c.sizes.heads * c.sizes.features}, kDType<T>);
  Stream queue = stream();
  std::int64_t place = 0;
  for (const std::int64_t count : calls) {
    TttCase part = c;
    part.sizes.tokens = count;
    const InputTensors<T> inputs(part, tokens_of(c, x, place, place + count));
    const Tensor rows(inputs.q.shape(), kDType<T>);
    kernels::ttt_step(inputs.views(), c.options, place, state.views(), sums.views(), rows, queue);
    queue.synchronize();
    for (std::int64_t t = 0; t < count; ++t) {  // [B, count, H, F] to [T, B, H, F]
      const std::int64_t width = c.sizes.heads * c.sizes.features;
      for (std::int64_t b = 0; b < c.sizes.batch; ++b) {
        std::copy_n(rows.data<T>() + (b * count + t) * width, width,
                    out.data<T>() + ((place + t) * c.sizes.batch + b) * width);
      }
    }
    place += count;
  }
  const TttWeights<P> w = state.values();
  const TttWeights<P> s = sums.values();
  return {elements_of<T>(out), w.w1, w.b1, w.w2, w.b2, s.w1, s.b1, s.w2, s.b2};
}

template <typename T>
void expect_calls_make_no_difference(const TttCase& one_head) {
  TttCase c = one_head;
  c.sizes.batch = 2;
  const std::vector<std::int64_t> singly(static_cast<std::size_t>(c.sizes.tokens), 1);
  const auto expected = decode_in_calls<T>(c, singly);
  EXPECT_EQ(decode_in_calls<T>(c, {c.sizes.tokens}), expected) << c.name;
  EXPECT_EQ(decode_in_calls<T>(c, {1, c.sizes.tokens - 1}), expected) << c.name;
  EXPECT_EQ(decode_in_calls<T>(c, {c.sizes.tokens - 2, 2}), expected) << c.name;
}

// Up to the end of the mini-batch and short of it; sizes that no fused kernel serves and the published ones.
template <typename T>
void expect_no_calls_make_a_difference() {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    for (const std::int64_t tokens : {4, 5}) {
      expect_calls_make_no_difference<T>(make_case(model, tokens, 5, 6, 9));
      expect_calls_make_no_difference<T>(make_case(model, tokens, 5, 64, 256));
    }
    expect_calls_make_no_difference<T>(make_case(model, 16, 16, 96, 384));
  }
}

TEST(TttDecoding, TokensOfOneCallGiveTheBitsOfManyCalls) {
  expect_no_calls_make_a_difference<double>();
}
TEST(TttDecoding, FloatTokensOfOneCallGiveTheBitsOfManyCalls) {
  expect_no_calls_make_a_difference<float>();
}
#ifdef TTT_TEST_CUDA
TEST(TttDecoding, BFloat16TokensOfOneCallGiveTheBitsOfManyCalls) {
  expect_no_calls_make_a_difference<BFloat16>();
}
#endif

/// The published sizes: where there are fused kernels, one of them makes the state that the steps go on with.
template <typename T>
void expect_published_decoding_matches(double out_tolerance, double state_tolerance) {
  for (const std::int64_t features : {64, 96}) {
    for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
      const TttCase c = make_case(model, 32, 16, features, 4 * features);
      expect_decoding_matches<T>(c, 16, out_tolerance, state_tolerance);
    }
  }
}

TEST(TttDecoding, FloatPrefillAndStepsEqualOnePassAtHeadDims64And96) {
  expect_published_decoding_matches<float>(1e-5, 1e-5);
}

#ifdef TTT_TEST_CUDA
// The fused forward's products have operands of bf16: 2^-9 each, in sums of up to 384 terms.
TEST(TttDecoding, BFloat16PrefillAndStepsEqualOnePassAtHeadDims64And96) {
  expect_published_decoding_matches<BFloat16>(8e-3, 5e-3);
}

// out is rounded to bf16 once: 2^-8; the state stays in fp32.
TEST(TttDecoding, BFloat16PrefillAndStepsEqualOnePass) {
  expect_all_decoding_matches<BFloat16>(4e-3, 1e-5);
}
#endif

/// 1/2 |f(k_t; W) - v_t|^2 with the W after `num_updates` tokens: a forward pass that reads with k and whose later tokens
/// have step size zero.
double loss_at(const TttCase& c, const TttTensors<double>& x, std::int64_t t,
               std::int64_t num_updates) {
  TttCase seen = c;
  TttTensors<double> part = tokens_of(c, x, 0, t + 1);
  seen.sizes.tokens = t + 1;
  part.q = part.k;
  const std::int64_t row = c.sizes.heads * c.sizes.features;
  std::fill(part.token_lr.begin() + num_updates * c.sizes.heads, part.token_lr.end(), 0.0);
  const TttOutputs<double> y = ref::ttt_forward(seen.sizes, c.options, part);
  double sum = 0;
  for (std::int64_t f = 0; f < c.sizes.features; ++f) {
    const double error = y.out[t * row + f] - x.v[t * row + f];
    sum += error * error;
  }
  return 0.5 * sum;
}

template <typename T>
void expect_inner_loss_matches(double tolerance) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    for (const bool inner_norm : {true, false}) {
      TttCase c = make_case(model, 11, 4, 6, 9);
      c.sizes.heads = 1;
      c.options.inner_norm = inner_norm;
      const TttTensors<double> x = rounded_to<T>(make_tensors(c));
      const Tensor losses({3, 1, 11, 1}, DType::kF64);
      Stream queue = stream();
      const InputTensors<T> inputs(c, x);
      const StateTensors<ParameterOf<T>> initial(c, x.initial);
      kernels::ttt_inner_loss(inputs.views(), c.options, initial.views(), losses, queue);
      queue.synchronize();
      for (std::int64_t t = 0; t < 11; ++t) {
        const double* actual = losses.data<double>() + t;
        EXPECT_NEAR(actual[0], loss_at(c, x, t, 0), tolerance);
        EXPECT_NEAR(actual[11], loss_at(c, x, t, t / 4 * 4), tolerance);
        EXPECT_NEAR(actual[22], loss_at(c, x, t, t + 1), tolerance);
      }
    }
  }
}

TEST(TttInnerLoss, IsTheLossAtTheStartTheMiniBatchAndTheStep) {
  expect_inner_loss_matches<double>(1e-11);
}

// Losses of up to some ten, of fp32 values good to 1e-6.
TEST(TttInnerLoss, FloatIsTheLossAtTheStartTheMiniBatchAndTheStep) {
  expect_inner_loss_matches<float>(1e-4);
}

#ifdef TTT_TEST_CUDA
TEST(TttInnerLoss, BFloat16IsTheLossAtTheStartTheMiniBatchAndTheStep) {
  expect_inner_loss_matches<BFloat16>(1e-4);  // f(k) is not rounded to bf16
}
#endif

/// A valid call whose arguments a test then spoils.
struct Call {
  TttCase c = make_case(InnerModel::kLinear, 5, 4, 3, 0);
  TttTensors<double> x = make_tensors(c);
  InputTensors<float> inputs{c, x};
  StateTensors<float> initial{c, x.initial};
  Tensor out{inputs.q.shape(), DType::kF32};
  Stream stream;

  void run() {
    kernels::ttt_forward(inputs.views(), c.options, initial.views(), out, {}, nullptr, stream);
  }

  std::string message() {
    try {
      run();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kInternal);
      return error.what();
    }
    return "no error";
  }
};

TEST(TttContracts, AreCheckedWithAMessage) {
  using testing::HasSubstr;
  EXPECT_EQ(Call().message(), "no error");
  Call wrong_k;
  wrong_k.inputs.k = Tensor({1, 5, 2, 4}, DType::kF32);
  EXPECT_THAT(wrong_k.message(), HasSubstr("k"));
  Call wrong_dtype;
  wrong_dtype.inputs.v = Tensor(wrong_dtype.inputs.q.shape(), DType::kF64);
  EXPECT_THAT(wrong_dtype.message(), HasSubstr("v is F64, expected F32"));
  Call missing_bias;
  missing_bias.initial.b1 = {};
  EXPECT_THAT(missing_bias.message(), HasSubstr("initial.b1"));
  Call unwanted;
  unwanted.initial.w2 = Tensor({1, 2, 3, 3}, DType::kF32);
  EXPECT_THAT(unwanted.message(), HasSubstr("initial.w2 must be empty"));
  Call size;
  size.c.options.mini_batch_size = 0;
  EXPECT_THAT(size.message(), HasSubstr("mini-batch size 0"));
}

TEST(TttContracts, StepTakesTokensOfOneMiniBatch) {
  Call call;
  const StateTensors<float> sums(call.c, zeros_like(call.x.initial));
  EXPECT_THAT(
      [&] {
        kernels::ttt_step(call.inputs.views(), call.c.options, 0, call.initial.views(),
                          sums.views(), call.out, call.stream);
      },
      testing::ThrowsMessage<Error>(
          testing::HasSubstr("tokens of one mini-batch: 5 from place 0 of 4")));
}

}  // namespace
}  // namespace ttt::test
