#include <utility>

#include "dist/watchdog.h"

namespace ttt::dist {
namespace {

class RecordedCommunicator final : public Communicator {
 public:
  RecordedCommunicator(Communicator& inner, FlightRecord& record)
      : inner_(inner), record_(record) {}

  [[nodiscard]] int rank() const override { return inner_.rank(); }
  [[nodiscard]] int size() const override { return inner_.size(); }
  [[nodiscard]] int local_rank() const override { return inner_.local_rank(); }
  [[nodiscard]] int local_size() const override { return inner_.local_size(); }

  void all_reduce_sum(TensorView inout, Stream& stream) override {
    const Recorded recorded(record_, Operation::kAllReduceSum, inout.num_bytes());
    inner_.all_reduce_sum(inout, stream);
  }
  void reduce_scatter_sum(TensorView in, TensorView out, Stream& stream) override {
    const Recorded recorded(record_, Operation::kReduceScatterSum, in.num_bytes());
    inner_.reduce_scatter_sum(in, out, stream);
  }
  void all_gather(TensorView in, TensorView out, Stream& stream) override {
    const Recorded recorded(record_, Operation::kAllGather, out.num_bytes());
    inner_.all_gather(in, out, stream);
  }
  void all_to_all(TensorView in, TensorView out, Stream& stream) override {
    const Recorded recorded(record_, Operation::kAllToAll, in.num_bytes());
    inner_.all_to_all(in, out, stream);
  }
  void send(TensorView view, int peer, Stream& stream) override {
    const Recorded recorded(record_, Operation::kSend, view.num_bytes(), peer);
    inner_.send(view, peer, stream);
  }
  void recv(TensorView view, int peer, Stream& stream) override {
    const Recorded recorded(record_, Operation::kRecv, view.num_bytes(), peer);
    inner_.recv(view, peer, stream);
  }
  void exchange(TensorView out, TensorView in, int peer, Stream& stream) override {
    const Recorded recorded(record_, Operation::kExchange, out.num_bytes(), peer);
    inner_.exchange(out, in, peer, stream);
  }
  void broadcast(TensorView view, int root, Stream& stream) override {
    const Recorded recorded(record_, Operation::kBroadcast, view.num_bytes(), root);
    inner_.broadcast(view, root, stream);
  }
  void barrier() override {
    const Recorded recorded(record_, Operation::kBarrier, 0);
    inner_.barrier();
  }
  [[nodiscard]] std::vector<std::string> gather_strings(const std::string& mine) override {
    const Recorded recorded(record_, Operation::kGatherStrings,
                            static_cast<std::int64_t>(mine.size()));
    return inner_.gather_strings(mine);
  }
  [[noreturn]] void abort(ExitCode code) override {
    inner_.abort(code);
    std::abort();  // [[noreturn]] is not seen through a virtual call
  }

 private:
  class Recorded {
   public:
    Recorded(FlightRecord& record, Operation operation, std::int64_t bytes, int peer = -1)
        : record_(record), number_(record.begin(operation, bytes, peer)) {}
    Recorded(const Recorded&) = delete;
    Recorded& operator=(const Recorded&) = delete;
    ~Recorded() { record_.end(number_); }

   private:
    FlightRecord& record_;
    std::int64_t number_;
  };

  Communicator& inner_;
  FlightRecord& record_;
};

}  // namespace

std::unique_ptr<Communicator> make_recorded_communicator(Communicator& inner,
                                                         FlightRecord& record) {
  return std::make_unique<RecordedCommunicator>(inner, record);
}

}  // namespace ttt::dist
