#pragma once
// Stopping on request: SIGUSR1, SIGTERM and SIGINT ask for a checkpoint and a clean end; another
// one, more than a second later, ends the process at once.

#include <string_view>

namespace ttt::launch {

/// Installs the handlers. Call once, early.
void install_stop_handlers();

/// True once a stop was asked for in this process. Ranks must agree on it before acting.
bool stop_requested();

/// For work that has nothing left to save: throws kStoppedEarly, naming it, once a stop was asked for. One rank that does
/// ends all.
void stop_if_requested(std::string_view work);

}  // namespace ttt::launch
