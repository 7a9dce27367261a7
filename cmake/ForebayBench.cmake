# Benchmarks: forebay_<layer>_bench from the layer's *_bench.cc (Google Benchmark), and one program for each bench/*.cc,
# in <build>/bench. None is built by default: they hang on the target bench_programs.

find_package(benchmark REQUIRED)

add_custom_target(bench_programs)

function(forebay_bench_program name)
  cmake_parse_arguments(arg "" "OUTPUT" "SOURCES;LIBS" ${ARGN})
  add_executable(${name} EXCLUDE_FROM_ALL ${arg_SOURCES})
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${arg_LIBS} ${sim_library} forebay)
  set_target_properties(${name} PROPERTIES
    OUTPUT_NAME ${arg_OUTPUT}
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
  add_dependencies(bench_programs ${name})
endfunction()

foreach(layer IN LISTS FOREBAY_LAYERS)
  file(GLOB sources CONFIGURE_DEPENDS forebay/${layer}/*_bench.cc)
  if(sources)
    forebay_bench_program(forebay_${layer}_bench OUTPUT ${layer}_bench
      SOURCES ${sources} LIBS benchmark::benchmark benchmark::benchmark_main)
  endif()
endforeach()

file(GLOB sources CONFIGURE_DEPENDS bench/*.cc)
foreach(source IN LISTS sources)
  cmake_path(GET source STEM stem)
  set(libs "")
  file(STRINGS "${source}" uses_libnbd REGEX "#include <libnbd\\.h>")
  if(uses_libnbd)
    pkg_check_modules(libnbd REQUIRED IMPORTED_TARGET libnbd)
    list(APPEND libs PkgConfig::libnbd)
  endif()
  file(STRINGS "${source}" uses_benchmark REGEX "#include <benchmark/benchmark\\.h>")
  if(uses_benchmark)
    list(APPEND libs benchmark::benchmark)
  endif()
  forebay_bench_program(forebay_bench_${stem} OUTPUT ${stem} SOURCES "${source}" LIBS ${libs})
endforeach()
