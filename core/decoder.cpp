#include "core/decoder.h"

#include <algorithm>

#include "kernels/copy.h"

namespace ttt {
namespace {

constexpr memory::Purpose kGeneration{"generation", "generate for fewer sequences at a time"};

}  // namespace

Decoder::Decoder(const LanguageModel& model, std::int64_t batch, const Context& context,
                 DecodeSteps steps)
    : model_(model), context_(context) {
  {
    const memory::Scope scope(kGeneration, place_of_activations());
    state_ = model.make_decode_state(batch, context_);
  }
  if (steps == DecodeSteps::kReplayed && context.stream.can_capture()) {
    period_ = model.decode_period().value_or(0);
    if (period_ > kMaxGraphs) period_ = 0;
    places_.resize(static_cast<std::size_t>(period_));
  }
  const memory::Scope scope(kGeneration, memory::Place::kPinned);
  ids_ = Tensor({batch, 1}, DType::kI64);
  logits_ = Tensor({batch, 1, model.config().vocab_size()},
                   context.activation_type(model.parameters().dtype()));
}

memory::Place Decoder::place_of_activations() const {
  return context_.stream.device() == Device::kCuda ? memory::Place::kDevice
                                                   : memory::Place::kShared;
}

Tensor Decoder::prefill(TensorView ids, bool all_logits) {
  TTT_CHECK(num_steps_ == 0, "a prompt after {} steps", num_steps_);
  Tensor logits;
  {
    const memory::Scope scope(kGeneration, place_of_activations());
    logits = model_.extend(ids, *state_, all_logits, context_);
  }
  if (context_.stream.device() == Device::kCpu) return logits;
  Tensor for_host(logits.shape(), logits.dtype());
  kernels::copy(logits, for_host, context_.stream);
  context_.stream.synchronize();
  return for_host;
}

void Decoder::queue_step() {
  const memory::Scope scope(kGeneration, place_of_activations());
  kernels::copy(model_.extend(ids_, *state_, true, context_), logits_, context_.stream);
}

// Capturing moves what the state counts on the host, a replay what lies on the device. Places are captured one after the
// other, so each capture meets the count of its place, and afterwards nobody needs it.
void Decoder::run(Place& place) {
  if (place.graph) return place.graph->replay();
  if (place.has_run) {
    Capture capture(context_.stream, reserve_);
    queue_step();
    place.graph = capture.end();
    return place.graph->replay();
  }
  const memory::Reserve::Use use(reserve_);
  queue_step();
  place.has_run = true;
}

Tensor Decoder::step(TensorView ids) {
  copy(ids, ids_);
  if (period_ == 0) {
    queue_step();
  } else {
    run(places_[static_cast<std::size_t>(num_steps_ % period_)]);
  }
  ++num_steps_;
  context_.stream.synchronize();
  return logits_;
}

std::int64_t Decoder::num_graphs() const {
  return std::ranges::count_if(places_, [](const Place& place) { return place.graph != nullptr; });
}

}  // namespace ttt
