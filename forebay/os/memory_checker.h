// The memory checkers that a program may run under: the address sanitizer (built in) and valgrind
// (found out at run time; only in builds that found its header). They are told which bytes of an
// allocator's memory nobody may touch.
//
// Where there is neither, memory_checker_active() is false and the others do nothing. Any thread.
#pragma once

#include <cstddef>

namespace forebay {

bool memory_checker_active() noexcept;

// From now on a read or write of these bytes is reported.
void forbid_access(const void* at, std::size_t bytes) noexcept;
// From now on it is not. Valgrind takes the contents for undefined unless `defined`.
void permit_access(const void* at, std::size_t bytes, bool defined) noexcept;

}  // namespace forebay
