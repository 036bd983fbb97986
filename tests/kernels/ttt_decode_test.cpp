// Decoding, the inner loss, and the contracts of the CPU TTT kernels.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/ttt.h"
#include "tests/kernels/ttt_cases.h"
#include "tests/kernels/ttt_cpu_call.h"

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
void expect_decoding_matches(const TttCase& c, std::int64_t prefix, double tolerance) {
  const TttTensors<double> x = make_tensors(c);
  const TttOutputs<double> expected = ref::ttt_forward(c.sizes, c.options, x);
  TttCase one = c;
  one.sizes.tokens = 1;
  StateTensors<T> state(c, x.initial);
  const std::int64_t size = c.options.mini_batch_size;
  const std::int64_t full = prefix / size * size;
  Stream stream;
  if (full > 0) {  // the dual form over the full mini-batches, in place
    TttCase head = c;
    head.sizes.tokens = full;
    const InputTensors<T> inputs(head, tokens_of(c, x, 0, full));
    const Tensor out(inputs.q.shape(), kDType<T>);
    kernels::ttt_forward(inputs.views(), c.options, state.views(), out, state.views(), nullptr,
                         stream);
  }
  const StateTensors<T> sums(c, zeros_like(x.initial));
  for (std::int64_t t = full; t < c.sizes.tokens; ++t) {
    const InputTensors<T> inputs(one, tokens_of(c, x, t, t + 1));
    const Tensor out(inputs.q.shape(), kDType<T>);
    kernels::ttt_step(inputs.views(), c.options, t % size, state.views(), sums.views(), out,
                      stream);
    expect_close("out at " + std::to_string(t), values_of<T>(out),
                 cut_tokens(c, expected.out, c.sizes.heads * c.sizes.features, t, t + 1),
                 tolerance);
  }
  if (c.sizes.tokens % size == 0) {
    TttOutputs<T> last{{}, state.values()};
    TttOutputs<double> final_state{{}, expected.final_state};
    expect_all_close(last, final_state, tolerance);
    for (const T sum : values_of<T>(sums.w1)) EXPECT_EQ(sum, T(0));
  }
}

TEST(TttDecoding, PrefillAndStepsEqualOnePass) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    for (const std::int64_t prefix : {0, 8, 9, 11}) {  // places 0, 0, 1 and K-1
      TttCase c = make_case(model, 16, 4, 6, 9);
      c.sizes.batch = 2;
      expect_decoding_matches<double>(c, prefix, 1e-12);
      expect_decoding_matches<float>(c, prefix, 1e-5);
      c.options.bias = false;
      expect_decoding_matches<double>(c, prefix, 1e-12);
      c.options.inner_norm = false;
      expect_decoding_matches<double>(c, prefix, 1e-12);
    }
  }
}

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

TEST(TttInnerLoss, IsTheLossAtTheStartTheMiniBatchAndTheStep) {
  for (const InnerModel model : {InnerModel::kLinear, InnerModel::kMlp}) {
    for (const bool inner_norm : {true, false}) {
      TttCase c = make_case(model, 11, 4, 6, 9);
      c.sizes.heads = 1;
      c.options.inner_norm = inner_norm;
      const TttTensors<double> x = make_tensors(c);
      const Tensor losses({3, 1, 11, 1}, DType::kF64);
      Stream stream;
      const InputTensors<double> inputs(c, x);
      const StateTensors<double> initial(c, x.initial);
      kernels::ttt_inner_loss(inputs.views(), c.options, initial.views(), losses, stream);
      for (std::int64_t t = 0; t < 11; ++t) {
        const double* actual = losses.data<double>() + t;
        EXPECT_NEAR(actual[0], loss_at(c, x, t, 0), 1e-11);
        EXPECT_NEAR(actual[11], loss_at(c, x, t, t / 4 * 4), 1e-11);
        EXPECT_NEAR(actual[22], loss_at(c, x, t, t + 1), 1e-11);
      }
    }
  }
}

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

TEST(TttContracts, StepTakesOneTokenAtAPlaceOfTheMiniBatch) {
  Call call;
  const StateTensors<float> sums(call.c, zeros_like(call.x.initial));
  EXPECT_THAT(
      [&] {
        kernels::ttt_step(call.inputs.views(), call.c.options, 0, call.initial.views(),
                          sums.views(), call.out, call.stream);
      },
      testing::ThrowsMessage<Error>(testing::HasSubstr("one token at a time, not 5")));
}

}  // namespace
}  // namespace ttt::test
