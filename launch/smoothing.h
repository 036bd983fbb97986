#pragma once
// Noisy curves made readable.

#include <string>

#include "launch/svg_plot.h"

namespace ttt::launch {

/// The mean over a window of up to a twentieth of the points around each; gaps stay gaps.
Series smoothed(const Series& raw);

/// Adds the raw points, pale, under their smoothed curve; few points as they are. Without a name the
/// legend says which is which.
void add_curve(Plot& plot, Series series, const std::string& name);

}  // namespace ttt::launch
