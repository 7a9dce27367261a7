// Which things a user wants to be checked: environment variables that hold names.
#pragma once

#include <string_view>

namespace forebay {

// Whether the environment variable `variable` names `name`: it holds "*", "all" or "1" for
// everything, or names with commas between them. Not while another thread changes the environment.
bool named_in_environment(const char* variable, std::string_view name) noexcept;

}  // namespace forebay
