#pragma once
// The ranks a test program runs on; tests/support/mpi_main.cpp sets them up.

#include "dist/communicator.h"

namespace ttt::test {

/// Every test runs on every rank at once, so collectives can be called in a test's body.
dist::Communicator& world();

}  // namespace ttt::test
