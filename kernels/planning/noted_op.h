#pragma once
// How a planned op is noted: its operands are counted, and kept by shape so that the call can be made on real ones.

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/linear_attention.h"
#include "kernels/planning.h"
#include "kernels/ttt.h"

namespace ttt::kernels::planning {

class PlanningQueue final : public DeviceQueue {
 public:
  PlanningQueue(const PlannedDevice& device, PlanningTrace& trace)
      : planned_(device), trace_(trace) {}

  void synchronize() override {}
  std::unique_ptr<QueueEvent> record() override { return nullptr; }
  void wait_for(QueueEvent& /*event*/) override {}
  [[nodiscard]] void* native() const override { return const_cast<PlanningQueue*>(this); }
  [[nodiscard]] Device device() const override { return planned_.device; }
  [[nodiscard]] bool is_planning() const override { return true; }

  [[nodiscard]] const PlannedDevice& planned() const { return planned_; }
  [[nodiscard]] PlanningTrace& trace() const { return trace_; }

 private:
  PlannedDevice planned_;
  PlanningTrace& trace_;
};

inline PlanningQueue& queue_of(Stream& stream) {
  return *static_cast<PlanningQueue*>(stream.native());
}
inline void add(Stream& stream, OpCall call) {
  queue_of(stream).trace().calls.push_back(std::move(call));
}

// f(view) for every tensor of an argument; other arguments have none.
template <typename Argument, typename F>
void for_each_view(Argument& argument, F&& f) {
  if constexpr (std::is_same_v<Argument, TensorView>) {
    if (!argument.empty()) f(argument);
  } else if constexpr (std::is_same_v<Argument, TttInputs>) {
    for (TensorView* view : {&argument.q, &argument.k, &argument.v, &argument.token_lr,
                             &argument.token_scale, &argument.norm_weight, &argument.norm_bias}) {
      for_each_view(*view, f);
    }
  } else if constexpr (std::is_same_v<Argument, TttState>) {
    for (TensorView* view : {&argument.w1, &argument.b1, &argument.w2, &argument.b2}) {
      for_each_view(*view, f);
    }
  } else if constexpr (std::is_same_v<Argument, TttInputGradients>) {
    for (TensorView* view :
         {&argument.d_q, &argument.d_k, &argument.d_v, &argument.d_token_lr,
          &argument.d_token_scale, &argument.d_norm_weight, &argument.d_norm_bias}) {
      for_each_view(*view, f);
    }
  } else if constexpr (std::is_same_v<Argument, LinearAttentionState>) {
    for_each_view(argument.kv, f);
    for_each_view(argument.k_sum, f);
  }
}

template <typename T>
void scatter(T* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) {
    const auto bits = static_cast<std::uint32_t>(i) * 2654435761U;
    values[i] = static_cast<T>(static_cast<float>(bits >> 16U) / 65536.0F - 0.5F);
  }
}

/// Real operands in the place of planned ones: numbers in [-0.5, 0.5), and a few different token ids.
class Operands {
 public:
  template <typename Argument>
  void make_real(Argument& argument) {
    for_each_view(argument, [&](TensorView& view) {
      const Tensor& tensor = tensors_.emplace_back(view.shape(), view.dtype());
      view = tensor;
      switch (view.dtype()) {
        case DType::kF64:
          return scatter(view.data<double>(), view.numel());
        case DType::kF32:
          return scatter(view.data<float>(), view.numel());
        case DType::kBF16:
          return scatter(view.data<BFloat16>(), view.numel());
        case DType::kI64:
          for (std::int64_t i = 0; i < view.numel(); ++i) view.data<std::int64_t>()[i] = i % 8;
          return;
        default:
          TTT_CHECK(false, "operands of {} are not made", name_of(view.dtype()));
      }
    });
  }

 private:
  std::vector<Tensor> tensors_;
};

template <typename... Args>
OpCall call_of(const char* op, Args... args) {
  OpCall call;
  call.op = op;
  const auto count = [&](TensorView& view) {
    call.bytes += static_cast<double>(view.num_bytes());
    call.shapes += view.shape().str();
    call.shapes += name_of(view.dtype());
  };
  (for_each_view(args, count), ...);
  return call;
}

/// A string as a template argument.
struct OpName {
  char text[40] = {};
  template <std::size_t kLength>
  consteval OpName(const char (&name)[kLength]) {  // NOLINT(google-explicit-constructor)
    std::copy_n(name, kLength, text);
  }
};

// How a call is kept: arguments by value, and where the stream was, nothing.
struct StreamSlot {};
template <typename Argument>
using Held =
    std::conditional_t<std::is_same_v<Argument, Stream&>, StreamSlot, std::decay_t<Argument>>;
inline StreamSlot hold(Stream& /*stream*/) { return {}; }
template <typename T>
const T& hold(const T& argument) {
  return argument;
}
inline Stream& put(StreamSlot& /*slot*/, Stream& stream) { return stream; }
template <typename T>
T& put(T& argument, Stream& /*stream*/) {
  return argument;
}

/// An op that is noted and does nothing else.
template <OpName kName, auto kOp>
struct Noted;
template <OpName kName, typename R, typename... Args, R (*kOp)(Args...)>
struct Noted<kName, kOp> {
  static OpCall describe(Args... args) {
    OpCall call = call_of(kName.text, hold(args)...);
    call.prepare = [held = std::tuple<Held<Args>...>(hold(args)...)](Stream& stream) {
      auto operands = std::make_shared<Operands>();
      auto real = held;
      std::apply([&](auto&... each) { (operands->make_real(each), ...); }, real);
      return [operands, real, &stream]() mutable {
        std::apply([&](auto&... each) { (void)kOp(put(each, stream)...); }, real);
      };
    };
    return call;
  }
  static Stream& stream_of(Args... args) {
    Stream* stream = nullptr;
    const auto look = [&](auto& argument) {
      if constexpr (std::is_same_v<std::remove_reference_t<decltype(argument)>, Stream>) {
        stream = &argument;
      }
    };
    (look(args), ...);
    return *stream;
  }
  static R run(Args... args) {
    add(stream_of(args...), describe(args...));
    return R();
  }
};

}  // namespace ttt::kernels::planning
