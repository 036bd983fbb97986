// NCCL over MPI, on the queues of tests/support/lazy_device.h: a call only queues its work, which is done when the queue
// is waited for; what a group holds is done at once, so that messages in both directions do not wait for each other.

#include <mpi.h>
#include <nccl.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "core/base/error.h"
#include "tests/support/lazy_device.h"

struct ncclComm {
  MPI_Comm mpi = MPI_COMM_NULL;
  int size = 0;
};

namespace {

std::atomic<ncclResult_t> reported_state = ncclSuccess;

MPI_Datatype mpi_type(ncclDataType_t type) {
  switch (type) {
    case ncclUint8:
      return MPI_UINT8_T;
    case ncclInt32:
      return MPI_INT32_T;
    case ncclInt64:
      return MPI_INT64_T;
    case ncclFloat32:
      return MPI_FLOAT;
    case ncclFloat64:
      return MPI_DOUBLE;
    case ncclBfloat16:
      return MPI_UINT16_T;  // moved only
  }
  ttt::fail(ttt::ExitCode::kInternal, "NCCL type {}", static_cast<int>(type));
}

ttt::test::LazyQueue& queue_of(cudaStream_t stream) {
  TTT_CHECK(stream != nullptr, "NCCL on the default stream");
  return *reinterpret_cast<ttt::test::LazyQueue*>(stream);
}

/// Starts a message; the request is waited for at the end of its group.
using Message = std::function<MPI_Request()>;
int group_depth = 0;
cudaStream_t group_stream = nullptr;
std::vector<Message> group;

void run_together(const std::vector<Message>& messages) {
  std::vector<MPI_Request> requests;
  for (const Message& start : messages) requests.push_back(start());
  TTT_CHECK(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE) ==
                MPI_SUCCESS,
            "messages fail");
}

ncclResult_t queue_message(cudaStream_t stream, Message message) {
  if (group_depth > 0) {
    TTT_CHECK(group.empty() || group_stream == stream, "a group on two streams");
    group_stream = stream;
    group.push_back(std::move(message));
  } else {
    queue_of(stream).add([message] { run_together({message}); });
  }
  return ncclSuccess;
}

}  // namespace

void fake_nccl_fails_with(ncclResult_t state) { reported_state = state; }

ncclResult_t ncclGetVersion(int* version) {
  *version = 22809;
  return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
  std::memset(id, 0, sizeof(*id));
  std::random_device random;
  const std::uint32_t number = random() & 0x3fffffffU;
  std::memcpy(id->internal, &number, sizeof(number));
  return ncclSuccess;
}

/// All ranks of the world must be making communicators, each of its own group.
ncclResult_t ncclCommInitRank(ncclComm_t* comm, int size, ncclUniqueId id, int rank) {
  if (size < 1 || rank < 0 || rank >= size) return ncclInvalidArgument;
  std::int32_t color = 0;
  std::memcpy(&color, id.internal, sizeof(color));
  *comm = new ncclComm;
  MPI_Comm_split(MPI_COMM_WORLD, color, rank, &(*comm)->mpi);
  MPI_Comm_size((*comm)->mpi, &(*comm)->size);
  return (*comm)->size == size ? ncclSuccess : ncclInternalError;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  MPI_Comm_free(&comm->mpi);
  delete comm;
  return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) { return ncclCommDestroy(comm); }

ncclResult_t ncclCommGetAsyncError(ncclComm_t /*comm*/, ncclResult_t* state) {
  *state = reported_state;
  return ncclSuccess;
}

const char* ncclGetErrorString(ncclResult_t code) {
  return code == ncclRemoteError ? "remote process exited" : "some failure";
}
const char* ncclGetLastError(ncclComm_t /*comm*/) { return ""; }

ncclResult_t ncclGroupStart() {
  ++group_depth;
  return ncclSuccess;
}

ncclResult_t ncclGroupEnd() {
  if (--group_depth == 0 && !group.empty()) {
    queue_of(group_stream).add([messages = std::move(group)] { run_together(messages); });
    group.clear();
  }
  return ncclSuccess;
}

ncclResult_t ncclAllReduce(const void* in, void* out, std::size_t count, ncclDataType_t type,
                           ncclRedOp_t /*op*/, ncclComm_t comm, cudaStream_t stream) {
  queue_of(stream).add([=] {
    MPI_Allreduce(in == out ? MPI_IN_PLACE : in, out, static_cast<int>(count), mpi_type(type),
                  MPI_SUM, comm->mpi);
  });
  return ncclSuccess;
}

ncclResult_t ncclReduceScatter(const void* in, void* out, std::size_t count, ncclDataType_t type,
                               ncclRedOp_t /*op*/, ncclComm_t comm, cudaStream_t stream) {
  queue_of(stream).add([=] {
    MPI_Reduce_scatter_block(in, out, static_cast<int>(count), mpi_type(type), MPI_SUM, comm->mpi);
  });
  return ncclSuccess;
}

ncclResult_t ncclAllGather(const void* in, void* out, std::size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  queue_of(stream).add([=] {
    MPI_Allgather(in, static_cast<int>(count), mpi_type(type), out, static_cast<int>(count),
                  mpi_type(type), comm->mpi);
  });
  return ncclSuccess;
}

ncclResult_t ncclBroadcast(const void* /*in*/, void* out, std::size_t count, ncclDataType_t type,
                           int root, ncclComm_t comm, cudaStream_t stream) {
  queue_of(stream).add(
      [=] { MPI_Bcast(out, static_cast<int>(count), mpi_type(type), root, comm->mpi); });
  return ncclSuccess;
}

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
  return queue_message(stream, [=] {
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Isend(data, static_cast<int>(count), mpi_type(type), peer, 0, comm->mpi, &request);
    return request;
  });
}

ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
  return queue_message(stream, [=] {
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Irecv(data, static_cast<int>(count), mpi_type(type), peer, 0, comm->mpi, &request);
    return request;
  });
}
