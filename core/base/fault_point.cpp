#include "core/base/fault_point.h"

namespace ttt {

void fault_point(std::string_view /*point*/, const FaultSite& /*site*/) {}

}  // namespace ttt
