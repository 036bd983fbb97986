#pragma once
// data/interchange/python/*.py, compiled in so that an exported model carries its own code.

#include <string_view>

namespace ttt::data {

extern const std::string_view kConfigurationPython;
extern const std::string_view kModelingPython;

}  // namespace ttt::data
