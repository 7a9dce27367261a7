# Everything that CTest runs: unit tests (one GoogleTest program for each layer), tests/ (the whole program with real
# clients), the house rules, and with FOREBAY_TEST_BUILDS the unit tests of the sanitizer trees as well.
#
# Labels: unit, integration, house, asan, tsan. Environment of every test in tests/: FOREBAY (path of the program),
# FOREBAY_SOURCE (this tree), FOREBAY_BUILD (the build tree).

include(GoogleTest)
find_package(GTest REQUIRED)
find_package(rapidcheck REQUIRED)

set(test_programs "")  # names of layers with tests; also sim, tools, integration
set(tsan_programs "")  # those of them that are in the thread sanitizer's tree

# A test source with a line "// One thread: ..." starts no thread in any test, so the thread sanitizer could say nothing of
# it, and its tree leaves it out. tests/one_thread.cc, in all programs of the trees without a sanitizer, fails a test that
# breaks this word.
function(forebay_threaded_sources result)
  set(threaded "")
  foreach(source IN LISTS ARGN)
    file(STRINGS "${source}" one_thread REGEX "^// One thread: " LIMIT_COUNT 1)
    if(NOT one_thread)
      list(APPEND threaded "${source}")
    endif()
  endforeach()
  set(${result} ${threaded} PARENT_SCOPE)
endfunction()

# forebay_test_program(NAME SOURCES... [LIBS ...]): forebay_<NAME>_test from SOURCES, linked with LIBS.
function(forebay_test_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
  forebay_threaded_sources(threaded ${arg_SOURCES})
  if(threaded)
    set(tsan_programs ${tsan_programs} ${name} PARENT_SCOPE)
  endif()
  if(FOREBAY_SANITIZE STREQUAL "thread")
    if(NOT threaded)
      return()
    endif()
    set(arg_SOURCES ${threaded})
  endif()
  add_executable(forebay_${name}_test ${arg_SOURCES})
  forebay_compile_together(forebay_${name}_test 8 ${arg_SOURCES})
  if(FOREBAY_UNITY)
    # Most of the time goes into code that the sanitizers and GoogleTest's macros make; this inlines less of it.
    target_compile_options(forebay_${name}_test PRIVATE "SHELL:$<$<CXX_COMPILER_ID:Clang>:-mllvm -inline-threshold=25>")
    # What these find in a test, the address sanitizer finds as well, or they have found it in the library.
    if(FOREBAY_SANITIZE MATCHES "undefined")
      target_compile_options(forebay_${name}_test PRIVATE
        -fno-sanitize=null,alignment,object-size,vptr,nonnull-attribute,returns-nonnull-attribute)
    endif()
  endif()
  # With less of the optimizer, too; but the explorer's scenarios run for longer than they compile.
  set(own_header NO)
  if(FOREBAY_UNITY AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    if(name STREQUAL "sim")
      set(own_header YES)  # with -O2 GCC cannot use what it has made with -O1, and ends with an internal error
    else()
      target_compile_options(forebay_${name}_test PRIVATE -O1)
    endif()
  endif()
  target_sources(forebay_${name}_test PRIVATE tests/fixed_seed.cc)
  if(NOT FOREBAY_SANITIZE)
    target_sources(forebay_${name}_test PRIVATE tests/one_thread.cc)
  endif()
  target_include_directories(forebay_${name}_test PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(forebay_${name}_test PRIVATE
    ${arg_LIBS} ${sim_library} forebay GTest::gmock GTest::gtest GTest::gtest_main rapidcheck)
  # The test frameworks are parsed once for each tree: the first program's precompiled header serves all.
  if(test_programs AND NOT own_header)
    list(GET test_programs 0 first)
    target_precompile_headers(forebay_${name}_test REUSE_FROM forebay_${first}_test)
  else()
    target_precompile_headers(forebay_${name}_test PRIVATE <gtest/gtest.h> <rapidcheck/gtest.h>)
  endif()
  set(test_programs ${test_programs} ${name} PARENT_SCOPE)
endfunction()

foreach(layer IN LISTS FOREBAY_LAYERS)
  file(GLOB sources CONFIGURE_DEPENDS forebay/${layer}/*_test.cc)
  if(sources)
    forebay_test_program(${layer} SOURCES ${sources})
  endif()
endforeach()

file(GLOB_RECURSE sources CONFIGURE_DEPENDS sim/*_test.cc)
if(sources)
  forebay_test_program(sim SOURCES ${sources} LIBS forebay_explorer)
endif()

file(GLOB sources CONFIGURE_DEPENDS tools/forebay/*_test.cc)
if(sources AND FOREBAY_BUILD_TOOLS AND NOT FOREBAY_SANITIZE)
  forebay_test_program(tools SOURCES ${sources} LIBS ${tool_library})
endif()

file(GLOB sources CONFIGURE_DEPENDS tests/*_test.cc)
if(sources)
  pkg_check_modules(libnbd REQUIRED IMPORTED_TARGET libnbd)
  # GCC warns of its local types where it is included.
  set_source_files_properties(examples/tinyfs/tinyfs.cc PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  forebay_test_program(integration SOURCES ${sources} examples/tinyfs/tinyfs.cc LIBS PkgConfig::libnbd)
endif()

# For the guests of tests/guest_load.py, where there are no libraries.
if(NOT FOREBAY_SANITIZE)
  add_executable(forebay_fsx tests/fsx.cc)
  target_link_options(forebay_fsx PRIVATE -static)
endif()

# The long ones first, or a first run ends with one of them and an idle CPU: seconds, roughly. (Of a tree that has been
# tested before, CTest knows how long each took.)
set(cost_of_tidy 70)
set(cost_of_sanitizers 20)
set(cost_of_scripts 5)

set(test_environment
  "FOREBAY=${PROJECT_BINARY_DIR}/forebay"
  "FOREBAY_SOURCE=${PROJECT_SOURCE_DIR}"
  "FOREBAY_BUILD=${PROJECT_BINARY_DIR}")

foreach(name IN LISTS test_programs)
  set(label unit)
  if(name STREQUAL "integration")
    set(label integration)
  endif()
  gtest_discover_tests(forebay_${name}_test
    TEST_PREFIX "${name}." DISCOVERY_MODE PRE_TEST
    PROPERTIES TIMEOUT 120 LABELS ${label} ENVIRONMENT "${test_environment}")
endforeach()

# --- the same programs, as built in build/asan and build/tsan ---------------------------------------------------------

set(sanitizer_environment
  "ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1"
  "UBSAN_OPTIONS=print_stacktrace=1"
  "TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1"
  "ASAN_SYMBOLIZER_PATH=/usr/bin/llvm-symbolizer-19"
  "TSAN_SYMBOLIZER_PATH=/usr/bin/llvm-symbolizer-19"
  "FOREBAY_SOURCE=${PROJECT_SOURCE_DIR}")

if(FOREBAY_TEST_BUILDS)
  set(asan_programs ${test_programs})
  foreach(tree IN ITEMS asan tsan)
    set(tree_dir "${PROJECT_SOURCE_DIR}/build/${tree}")
    list(REMOVE_ITEM ${tree}_programs tools)  # they build no program
    foreach(name IN LISTS ${tree}_programs)
      add_test(NAME ${tree}.${name} COMMAND "${tree_dir}/forebay_${name}_test" --gtest_brief=1)
      set_tests_properties(${tree}.${name} PROPERTIES
        TIMEOUT 300 LABELS ${tree} COST ${cost_of_sanitizers}
        ENVIRONMENT "${sanitizer_environment};FOREBAY=${tree_dir}/forebay;FOREBAY_BUILD=${tree_dir}")
    endforeach()
  endforeach()
endif()

# --- tests/*.sh, tests/*.py: the whole program ------------------------------------------------------------------------

# One test for each executable file, named by its stem. Exit status 77 means skipped. A line
#   # ctest: timeout=600 labels=heavy,slow processors=2 serial
# among its first 20 sets what differs from timeout=300 labels=integration processors=1.
function(forebay_script_test script)
  cmake_path(GET script STEM name)
  set(timeout 300)
  set(labels integration)
  set(processors 1)
  set(serial OFF)
  file(STRINGS "${script}" lines LIMIT_COUNT 20)
  list(FILTER lines INCLUDE REGEX "^# ctest: ")
  string(REGEX REPLACE "^# ctest: +" "" words "${lines}")
  separate_arguments(words UNIX_COMMAND "${words}")
  foreach(word IN LISTS words)
    if(word MATCHES "^(timeout|processors)=([0-9]+)$")
      set(${CMAKE_MATCH_1} ${CMAKE_MATCH_2})
    elseif(word MATCHES "^labels=(.+)$")
      string(REPLACE "," ";" labels "${CMAKE_MATCH_1}")
    elseif(word STREQUAL "serial")
      set(serial ON)
    else()
      message(FATAL_ERROR "${script}: '${word}' is not known in a `# ctest:` line")
    endif()
  endforeach()
  add_test(NAME ${name} COMMAND "${script}" WORKING_DIRECTORY "${PROJECT_BINARY_DIR}")
  set_tests_properties(${name} PROPERTIES
    TIMEOUT ${timeout} LABELS "${labels}" PROCESSORS ${processors} RUN_SERIAL ${serial} COST ${cost_of_scripts}
    SKIP_RETURN_CODE 77 ENVIRONMENT "${test_environment}")
endfunction()

file(GLOB scripts CONFIGURE_DEPENDS tests/*.sh tests/*.py)
foreach(script IN LISTS scripts)
  execute_process(COMMAND test -x "${script}" RESULT_VARIABLE not_executable)
  if(NOT not_executable)
    forebay_script_test("${script}")
  endif()
endforeach()

# --- house rules ------------------------------------------------------------------------------------------------------

function(forebay_house_test name)
  add_test(NAME house.${name} COMMAND ${ARGN} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
  set_tests_properties(house.${name} PROPERTIES
    TIMEOUT 600 LABELS house SKIP_RETURN_CODE 77 COST ${cost_of_scripts})
endfunction()

forebay_house_test(layers "${PROJECT_SOURCE_DIR}/scripts/check-layers")
forebay_house_test(style "${PROJECT_SOURCE_DIR}/scripts/check-style")
forebay_house_test(format "${PROJECT_SOURCE_DIR}/scripts/format" --check)
forebay_house_test(man "${PROJECT_SOURCE_DIR}/scripts/check-man")
forebay_house_test(reference "${PROJECT_SOURCE_DIR}/scripts/reference" "${PROJECT_BINARY_DIR}/reference")
forebay_house_test(headers "${PROJECT_SOURCE_DIR}/scripts/check-headers" "${PROJECT_BINARY_DIR}" --jobs 2 --recent)
set_tests_properties(house.headers PROPERTIES PROCESSORS 2)
if(FOREBAY_TEST_BUILDS)
  forebay_house_test(tidy "${PROJECT_SOURCE_DIR}/scripts/tidy" --jobs 2 --recent)
  set_tests_properties(house.tidy PROPERTIES PROCESSORS 2 COST ${cost_of_tidy})
endif()
