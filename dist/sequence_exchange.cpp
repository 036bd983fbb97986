#include "dist/sequence_exchange.h"

#include "dist/host_messages.h"
#include "kernels/copy.h"

namespace ttt::dist {
namespace {

class CommunicatorExchange final : public SequenceExchange {
 public:
  CommunicatorExchange(const SequenceSplit& split, Communicator& communicator)
      : SequenceExchange(split, communicator.rank()), communicator_(communicator) {}

  void send(TensorView view, Neighbour to, Stream& stream) override {
    if (!needs_host(stream)) return communicator_.post(view, peer(to), stream);
    const HostMemory scope;
    communicator_.post(host_copy(view, stream), peer(to), stream);
  }
  void receive(TensorView view, Neighbour from, Stream& stream) override {
    if (!needs_host(stream)) return communicator_.recv(view, peer(from), stream);
    const HostMemory scope;
    Tensor message(view.shape(), view.dtype());
    communicator_.recv(message, peer(from), stream);
    kernels::copy(message, view, stream);
    received_ = std::move(message);
  }
  void all_to_all(TensorView in, TensorView out, Stream& stream) override {
    if (!needs_host(stream)) return communicator_.all_to_all(in, out, stream);
    const HostMemory scope;
    Tensor message(out.shape(), out.dtype());
    communicator_.all_to_all(host_copy(in, stream), message, stream);
    kernels::copy(message, out, stream);
    received_ = std::move(message);
  }

 private:
  // The communicator's calls wait for the stream first, so a message's memory is not written again while a queued copy
  // reads it.
  [[nodiscard]] bool needs_host(const Stream& stream) const {
    return dist::needs_host(communicator_, stream);
  }
  static Tensor host_copy(TensorView view, Stream& stream) {
    Tensor copy(view.shape(), view.dtype());
    kernels::copy(view, copy, stream);
    return copy;
  }

  [[nodiscard]] int peer(Neighbour neighbour) const {
    return rank() + (neighbour == Neighbour::kNext ? 1 : -1);
  }

  Communicator& communicator_;
  Tensor received_;  // a queued copy may read it until the next call, which waits for the stream
};

}  // namespace

std::unique_ptr<SequenceExchange> make_sequence_exchange(const SequenceSplit& split,
                                                         Communicator& sequence) {
  TTT_CHECK(std::ssize(split.bounds) == sequence.size() + 1, "{} bounds for {} ranks",
            split.bounds.size(), sequence.size());
  if (sequence.size() == 1) return nullptr;
  return std::make_unique<CommunicatorExchange>(split, sequence);
}

}  // namespace ttt::dist
