#pragma once
// Checked calls of MPI's C interface. Needs no mpi.h, so that MPI stays in the .cpp files.

namespace ttt::dist {

/// Throws kPeerLost with MPI's own text unless `code` is MPI_SUCCESS; kInternal for a message longer
/// than its receiver expects. `call` is the source text of the call.
void check_mpi(int code, const char* call);

}  // namespace ttt::dist

#define TTT_MPI_CHECK(call) ::ttt::dist::check_mpi((call), #call)
