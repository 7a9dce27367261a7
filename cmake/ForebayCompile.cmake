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

# forebay_compile_together(TARGET SIZE FILE...): with FOREBAY_UNITY, up to SIZE of these sources of the target at a time,
# for a tree that is compiled once: `make test` sets it in the sanitizer trees and, but for the library, which is compiled
# there as its users do, in the release tree.
function(forebay_compile_together target size)
  if(NOT FOREBAY_UNITY)
    return()
  endif()
  set(files ${ARGN})
  list(TRANSFORM files PREPEND "${PROJECT_SOURCE_DIR}/" REGEX "^[^/]")
  execute_process(
    COMMAND "${PROJECT_SOURCE_DIR}/scripts/unity-groups" "${PROJECT_SOURCE_DIR}" ${size} ${files}
    OUTPUT_VARIABLE lines COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^;\n]+;[^\n]+" words "${lines}")
  while(words)
    list(POP_FRONT words group file)
    set_source_files_properties("${file}" PROPERTIES UNITY_GROUP ${group})
  endwhile()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
  # A local name of one file may be one of another's anonymous namespace.
  target_compile_options(${target} PRIVATE -Wno-shadow)
endfunction()
