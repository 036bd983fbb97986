#include "dist/host_messages.h"

#include "kernels/copy.h"

namespace ttt::dist {
namespace {

TensorView first_of(Tensor& buffer, const TensorView& view, Stream& stream) {
  if (buffer.empty() || buffer.numel() < view.numel()) {
    stream.synchronize();  // a queued copy may read the smaller one
    const HostMemory scope;
    buffer = Tensor({view.numel()}, view.dtype());
  }
  return buffer.view().slice(0, view.numel());
}

}  // namespace

HostCopy::HostCopy(TensorView view, Stream& stream) : view_(view) {
  if (stream.device() == Device::kCuda && view.numel() > 0) {
    const HostMemory scope;
    copy_ = Tensor(view.shape(), view.dtype());
    kernels::copy(view_, copy_, stream);
  }
  stream.synchronize();
}

void HostCopy::put_back(Stream& stream) const {
  if (copy_.empty()) return;
  kernels::copy(copy_, view_, stream);
  stream.synchronize();
}

void StagedMessages::exchange(Communicator& communicator, TensorView out, TensorView in, int peer,
                              Stream& stream) {
  if (!needs_host(communicator, stream)) return communicator.exchange(out, in, peer, stream);
  const TensorView sent = first_of(sent_, out, stream);
  const TensorView received = first_of(received_, in, stream);
  if (out.numel() > 0) kernels::copy(out, sent, stream);
  communicator.exchange(sent, received, peer, stream);
  if (in.numel() > 0) kernels::copy(received, in, stream);
}

}  // namespace ttt::dist
