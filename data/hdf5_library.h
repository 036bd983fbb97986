#pragma once

#include <string>

namespace ttt::data {

/// What every use of HDF5 in this process needs, before its first call; calling it again costs nothing. Files cannot
/// choose code to load, and HDF5 prints no errors of its own on this thread.
void prepare_hdf5_library();

/// Why the last HDF5 call on this thread failed: the system's words if a system call did, else HDF5's own.
std::string hdf5_error();

}  // namespace ttt::data
