# Unit tests (one GoogleTest program per layer), tests/ (whole program), house rules, and the benchmark programs.

include(GoogleTest)
find_package(GTest REQUIRED)
find_package(rapidcheck REQUIRED)

set(test_programs "")  # short names: base, os, ..., sim, tools, integration

# forebay_test_program(NAME SOURCES... [LIBS ...]): forebay_<NAME>_test from SOURCES, linked with LIBS.
function(forebay_test_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
  add_executable(forebay_${name}_test ${arg_SOURCES})
  target_include_directories(forebay_${name}_test PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(forebay_${name}_test PRIVATE
    ${arg_LIBS} forebay GTest::gmock GTest::gtest GTest::gtest_main rapidcheck)
  set(test_programs ${test_programs} ${name} PARENT_SCOPE)
endfunction()

file(GLOB_RECURSE sim_sources CONFIGURE_DEPENDS sim/*.cc)
list(FILTER sim_sources EXCLUDE REGEX "_(test|bench)\\.cc$")
set(sim_library "")
if(sim_sources)
  add_library(forebay_sim STATIC ${sim_sources})
  target_include_directories(forebay_sim PUBLIC "${PROJECT_SOURCE_DIR}")
  target_link_libraries(forebay_sim PUBLIC forebay)
  set(sim_library forebay_sim)
endif()

foreach(layer IN LISTS FOREBAY_LAYERS)
  file(GLOB sources CONFIGURE_DEPENDS forebay/${layer}/*_test.cc)
  if(sources)
    forebay_test_program(${layer} SOURCES ${sources} LIBS ${sim_library})
  endif()
endforeach()

file(GLOB_RECURSE sources CONFIGURE_DEPENDS sim/*_test.cc)
if(sources)
  forebay_test_program(sim SOURCES ${sources} LIBS ${sim_library})
endif()

if(tool_test_sources)
  forebay_test_program(tools SOURCES ${tool_test_sources} LIBS ${tool_library} ${sim_library})
endif()

file(GLOB sources CONFIGURE_DEPENDS tests/*_test.cc)
if(sources)
  pkg_check_modules(libnbd REQUIRED IMPORTED_TARGET libnbd)
  forebay_test_program(integration SOURCES ${sources} LIBS PkgConfig::libnbd ${sim_library})
endif()

foreach(name IN LISTS test_programs)
  gtest_discover_tests(forebay_${name}_test
    TEST_PREFIX "${name}." DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT 120)
endforeach()
