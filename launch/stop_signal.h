#pragma once
// Stopping on request: SIGUSR1, SIGTERM and SIGINT ask for a checkpoint and a clean end; another
// one, more than a second later, ends the process at once.

namespace ttt::launch {

/// Installs the handlers. Call once, early.
void install_stop_handlers();

/// True once a stop was asked for in this process. Ranks must agree on it before acting.
bool stop_requested();

}  // namespace ttt::launch
