#include <cstdlib>
#include <cstring>

#include "dist/communicator.h"
#include "dist/contracts.h"

namespace ttt::dist {
namespace {

void copy_elements(const TensorView& in, const TensorView& out) {
  if (in.numel() > 0) {
    std::memcpy(out.raw(), in.raw(), static_cast<std::size_t>(in.num_bytes()));
  }
}

class SingleCommunicator final : public Communicator {
 public:
  [[nodiscard]] int rank() const override { return 0; }
  [[nodiscard]] int size() const override { return 1; }
  [[nodiscard]] int local_rank() const override { return 0; }
  [[nodiscard]] int local_size() const override { return 1; }

  void all_reduce_sum(TensorView inout, Stream& /*stream*/) override { check_summable(inout); }
  void reduce_scatter_sum(TensorView in, TensorView out, Stream& stream) override {
    check_summable(in);
    check_stacked("out", out, "in", in, 1);
    stream.synchronize();
    copy_elements(in, out);
  }
  void all_gather(TensorView in, TensorView out, Stream& stream) override {
    check_stacked("in", in, "out", out, 1);
    stream.synchronize();
    copy_elements(in, out);
  }
  void all_to_all(TensorView in, TensorView out, Stream& stream) override {
    check_all_to_all(in, out, 1);
    stream.synchronize();
    copy_elements(in, out);
  }
  // One rank has no peer: check_peer always throws.
  void send(TensorView /*view*/, int peer, Stream& /*stream*/) override { check_peer(peer, 0, 1); }
  void post(TensorView /*view*/, int peer, Stream& /*stream*/) override { check_peer(peer, 0, 1); }
  void recv(TensorView /*view*/, int peer, Stream& /*stream*/) override { check_peer(peer, 0, 1); }
  void exchange(TensorView /*out*/, TensorView /*in*/, int peer, Stream& /*stream*/) override {
    check_peer(peer, 0, 1);
  }
  void broadcast(TensorView /*view*/, int root, Stream& /*stream*/) override {
    check_root(root, 1);
  }
  [[nodiscard]] std::unique_ptr<Communicator> split(int /*color*/, int /*key*/) override {
    return make_single_communicator();
  }
  void barrier() override {}
  [[nodiscard]] std::vector<std::string> gather_strings(const std::string& mine) override {
    return {mine};
  }
  [[noreturn]] void abort(ExitCode code) override { std::exit(static_cast<int>(code)); }
};

}  // namespace

std::unique_ptr<Communicator> make_single_communicator() {
  return std::make_unique<SingleCommunicator>();
}

}  // namespace ttt::dist
