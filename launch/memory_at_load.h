#pragma once
// OpenBLAS' constructor takes a buffer for every thread, and asks for ever when it is refused one: under a limit that
// leaves too little a process would hang before main.

namespace ttt::launch {

/// For a program's .preinit_array, which runs before the constructors of all libraries: ends the process with a message
/// (exit code 83) where OpenBLAS would hang. Uses the C library alone.
void check_memory_at_load(int argc, char** argv, char** environment);

}  // namespace ttt::launch
