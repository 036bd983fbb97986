#pragma once
// Places where tests disturb a run: kill it, stop it, damage a number. In the program each is a call of an empty function, which
// the test programs replace when they are linked (tests/README.md, "Fault points").

#include <cstdint>
#include <functional>
#include <string_view>

#include "core/base/tensor.h"

namespace ttt {

struct FaultSite {
  std::int64_t step = 0;   // begins here, from 1; 0: the one that began last
  std::int64_t begin = 0;  // of `values` in the flat buffer that they are a part of
  /// What may be damaged here: called only for that, makes it the host's.
  std::function<TensorView()> values = {};
};

/// `point` names the place.
void fault_point(std::string_view point, const FaultSite& site = {});

}  // namespace ttt
