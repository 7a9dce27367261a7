# Language level, warnings and sanitizers of everything below this directory. As a sub-project this reaches only
# Forebay's own targets: directory properties do not leave the directory.

set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
if(PROJECT_IS_TOP_LEVEL)
  set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
endif()

add_compile_options(
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wold-style-cast -Wcast-qual
  -Wimplicit-fallthrough -Wextra-semi -Wundef -Wvla
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>
  # Without it an unoptimized GCC build makes no tail calls, and a coroutine that awaits many others which end at once grows
  # the stack with each.
  $<$<CXX_COMPILER_ID:GNU>:-foptimize-sibling-calls>
  $<$<CXX_COMPILER_ID:GNU>:-Wduplicated-cond>
  $<$<CXX_COMPILER_ID:GNU>:-Wlogical-op>)
if(FOREBAY_WERROR)
  add_compile_options(-Werror)
endif()

# FOREBAY_DCHECK and the standard library's own checks: in debug and sanitizer builds.
if(CMAKE_BUILD_TYPE STREQUAL "Debug" OR FOREBAY_SANITIZE)
  add_compile_definitions(FOREBAY_DEBUG _GLIBCXX_ASSERTIONS)
endif()

if(FOREBAY_SANITIZE)
  add_compile_options(-fsanitize=${FOREBAY_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${FOREBAY_SANITIZE})
endif()

# What most files of the library include; parsed once for each tree. No header of the project: a change in it would
# compile everything anew. A file still has to include what it uses: scripts/tidy compiles each one without these.
set(FOREBAY_COMMON_HEADERS
  <algorithm> <array> <atomic> <bit> <chrono> <concepts> <coroutine> <cstdint> <cstring> <expected> <functional> <memory>
  <mutex> <new> <optional> <span> <string> <string_view> <thread> <utility> <vector> <fmt/format.h>)
