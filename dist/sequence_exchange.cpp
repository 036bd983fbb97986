#include "dist/sequence_exchange.h"

namespace ttt::dist {
namespace {

class CommunicatorExchange final : public SequenceExchange {
 public:
  CommunicatorExchange(const SequenceSplit& split, Communicator& communicator)
      : SequenceExchange(split, communicator.rank()), communicator_(communicator) {}

  void send(TensorView view, Neighbour to, Stream& stream) override {
    communicator_.post(view, peer(to), stream);
  }
  void receive(TensorView view, Neighbour from, Stream& stream) override {
    communicator_.recv(view, peer(from), stream);
  }
  void all_to_all(TensorView in, TensorView out, Stream& stream) override {
    communicator_.all_to_all(in, out, stream);
  }

 private:
  [[nodiscard]] int peer(Neighbour neighbour) const {
    return rank() + (neighbour == Neighbour::kNext ? 1 : -1);
  }

  Communicator& communicator_;
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
