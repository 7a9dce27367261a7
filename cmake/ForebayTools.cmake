# The program: <build>/forebay.

find_package(CLI11 REQUIRED)
find_package(nlohmann_json REQUIRED)
pkg_check_modules(libsystemd REQUIRED IMPORTED_TARGET libsystemd)
pkg_check_modules(liblzma REQUIRED IMPORTED_TARGET liblzma)
pkg_check_modules(libzstd REQUIRED IMPORTED_TARGET libzstd)

file(GLOB tool_sources CONFIGURE_DEPENDS tools/forebay/*.cc)
list(FILTER tool_sources EXCLUDE REGEX "_(test|bench)\\.cc$")
file(GLOB tool_test_sources CONFIGURE_DEPENDS tools/forebay/*_test.cc)

# All of the program but the file with main() is a library, so that the tests of tools/ can link it.
set(tool_main_sources "")
set(tool_library_sources "")
foreach(source IN LISTS tool_sources)
  file(STRINGS "${source}" main_lines REGEX "^(int|auto) main\\(")
  if(main_lines)
    list(APPEND tool_main_sources "${source}")
  else()
    list(APPEND tool_library_sources "${source}")
  endif()
endforeach()

add_library(forebay_tool_deps INTERFACE)
target_include_directories(forebay_tool_deps INTERFACE "${PROJECT_SOURCE_DIR}")
target_link_libraries(forebay_tool_deps INTERFACE
  forebay CLI11::CLI11 nlohmann_json::nlohmann_json PkgConfig::libsystemd PkgConfig::liblzma PkgConfig::libzstd)

set(tool_library forebay_tool_deps)
if(tool_library_sources)
  set(tool_library forebay_tool_lib)
  add_library(forebay_tool_lib STATIC ${tool_library_sources})
  # Each for itself would take as long as all of the library: most of it goes into CLI11 and the JSON library.
  forebay_compile_together(forebay_tool_lib 9 ${tool_library_sources})
  target_link_libraries(forebay_tool_lib PUBLIC forebay_tool_deps)
  target_precompile_headers(forebay_tool_lib PRIVATE
    ${FOREBAY_COMMON_HEADERS} <CLI/CLI.hpp> <nlohmann/json.hpp>)
endif()

if(tool_main_sources)
  add_executable(forebay_tool ${tool_main_sources})
  target_link_libraries(forebay_tool PRIVATE ${tool_library})
  if(TARGET forebay_tool_lib)
    target_precompile_headers(forebay_tool REUSE_FROM forebay_tool_lib)
  endif()
  set_target_properties(forebay_tool PROPERTIES
    OUTPUT_NAME forebay
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}")
endif()

# The sanitizer trees are there for the library: the program is compiled for them only on demand (and for scripts/tidy,
# which reads how it would be).
if(FOREBAY_SANITIZE)
  foreach(target IN ITEMS forebay_tool_lib forebay_tool)
    if(TARGET ${target})
      set_target_properties(${target} PROPERTIES EXCLUDE_FROM_ALL ON)
    endif()
  endforeach()
endif()

# What `make` builds: the library, and the program once there is one.
add_custom_target(program DEPENDS forebay)
if(TARGET forebay_tool)
  add_dependencies(program forebay_tool)
endif()
