#pragma once
// Messages that were sent without waiting for their receiver. Internal to the MPI communicator.
//
// MPI moves a large message only while its sender is inside MPI. So a thread looks after those that have not left, as long
// as there are any; it needs a library that lets several threads communicate, and without one they wait for the next call.
//
// Errors: kPeerLost when the transport fails; what the thread meets is thrown by the next `add`.

#include <mpi.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/base/tensor.h"

namespace ttt::dist {

class PostedMessages {
 public:
  PostedMessages() = default;
  PostedMessages(const PostedMessages&) = delete;
  PostedMessages& operator=(const PostedMessages&) = delete;
  /// Waits until all have left. While an error ends the program it forgets them: their receivers may be gone.
  ~PostedMessages();

  /// Keeps `message` until `request`, which sends it or a part of it, is done.
  void add(const Tensor& message, MPI_Request request);

 private:
  struct Posted {
    Tensor message;
    MPI_Request request = MPI_REQUEST_NULL;  // null once done
  };

  void watch();
  [[nodiscard]] bool test_all();  // true when all have left

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Posted> messages_;
  bool ends_ = false;
  std::exception_ptr failure_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace ttt::dist
