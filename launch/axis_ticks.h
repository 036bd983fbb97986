#pragma once
// Where the ticks of a plot's axis are, and what they say.

#include <string>
#include <vector>

namespace ttt::launch {

/// Tick places inside [low, high]: about `count`, at steps of 1, 2 or 5 times a power of ten. On a
/// log axis: at powers of ten, with 3 (then 2, 3 and 5) times these when the axis spans few of them.
std::vector<double> nice_ticks(double low, double high, int count, bool is_log);

/// "0.001", "12k", "3e-07": short and without false digits, given the distance between ticks.
std::string format_tick(double value, double spacing);

}  // namespace ttt::launch
