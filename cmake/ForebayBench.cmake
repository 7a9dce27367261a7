# Benchmarks: forebay_<layer>_bench from the layer's *_bench.cc (Google Benchmark), and one program for each bench/*.cc,
# in <build>/bench, and the allocators that bench/memory/measures.py compares, one program each. None is built by default:
# they hang on the target bench_programs.

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

# bench/memory: the same loops around Forebay, DPDK and each library that replaces malloc. A peer whose package is not
# installed has no program, and the table says so.
add_library(forebay_bench_memory OBJECT EXCLUDE_FROM_ALL bench/memory/program.cc bench/memory/crew.cc)
target_include_directories(forebay_bench_memory PUBLIC "${PROJECT_SOURCE_DIR}")
target_link_libraries(forebay_bench_memory PUBLIC Threads::Threads)

function(forebay_bench_memory_program name)
  cmake_parse_arguments(arg "" "" "SOURCES;LIBS" ${ARGN})
  set(target forebay_bench_memory_${name})
  add_executable(${target} EXCLUDE_FROM_ALL ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE forebay_bench_memory ${arg_LIBS})
  # A shared library is called through one indirect jump, as in a program that cares would have it.
  target_compile_options(${target} PRIVATE -fno-plt)
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME memory_${name}
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
  add_dependencies(bench_programs ${target})
endfunction()

forebay_bench_memory_program(forebay SOURCES bench/memory/forebay.cc LIBS forebay)
forebay_bench_memory_program(glibc SOURCES bench/memory/malloc.cc LIBS ${CMAKE_DL_LIBS})
foreach(allocator IN ITEMS jemalloc=jemalloc tcmalloc=tcmalloc_minimal mimalloc=mimalloc)
  string(REGEX MATCH "^([a-z]+)=(.+)$" allocator "${allocator}")
  set(name ${CMAKE_MATCH_1})
  find_library(FOREBAY_BENCH_${name} NAMES ${CMAKE_MATCH_2})
  mark_as_advanced(FOREBAY_BENCH_${name})
  if(FOREBAY_BENCH_${name})
    # Whole, or the linker would leave out a library of which nothing but malloc is wanted.
    forebay_bench_memory_program(${name} SOURCES bench/memory/malloc.cc
      LIBS -Wl,--no-as-needed ${FOREBAY_BENCH_${name}} -Wl,--as-needed ${CMAKE_DL_LIBS})
  endif()
endforeach()
pkg_check_modules(libdpdk IMPORTED_TARGET libdpdk)
find_library(FOREBAY_BENCH_mempool_ring NAMES rte_mempool_ring)  # the mempool's ring is a plugin
mark_as_advanced(FOREBAY_BENCH_mempool_ring)
if(libdpdk_FOUND AND FOREBAY_BENCH_mempool_ring)
  forebay_bench_memory_program(dpdk SOURCES bench/memory/dpdk.cc
    LIBS PkgConfig::libdpdk -Wl,--no-as-needed ${FOREBAY_BENCH_mempool_ring} -Wl,--as-needed)
endif()

# bench/ring: the loop of tools/forebay/ring_pipe.h around our rings and each library's, as above.
add_library(forebay_bench_ring OBJECT EXCLUDE_FROM_ALL bench/ring/program.cc)
target_include_directories(forebay_bench_ring PUBLIC "${PROJECT_SOURCE_DIR}")
target_link_libraries(forebay_bench_ring PUBLIC forebay)

function(forebay_bench_ring_program name)
  set(target forebay_bench_ring_${name})
  add_executable(${target} EXCLUDE_FROM_ALL bench/ring/${name}.cc)
  target_link_libraries(${target} PRIVATE forebay_bench_ring ${ARGN})
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME ring_${name}
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
  add_dependencies(bench_programs ${target})
endfunction()

forebay_bench_ring_program(forebay)
if(libdpdk_FOUND)
  forebay_bench_ring_program(dpdk PkgConfig::libdpdk)
endif()
find_path(FOREBAY_BENCH_boost_lockfree boost/lockfree/spsc_queue.hpp)
find_path(FOREBAY_BENCH_moodycamel concurrentqueue/concurrentqueue.h)
mark_as_advanced(FOREBAY_BENCH_boost_lockfree FOREBAY_BENCH_moodycamel)
if(FOREBAY_BENCH_boost_lockfree)
  forebay_bench_ring_program(boost)
endif()
if(FOREBAY_BENCH_moodycamel)
  forebay_bench_ring_program(moodycamel)
endif()

# bench/cache: one program for all, so that they share a process and its memory.
find_path(FOREBAY_BENCH_rocksdb rocksdb/cache.h)
mark_as_advanced(FOREBAY_BENCH_rocksdb)
add_executable(forebay_bench_cache EXCLUDE_FROM_ALL bench/cache/hits.cc)
target_link_libraries(forebay_bench_cache PRIVATE forebay)
if(FOREBAY_BENCH_rocksdb)
  target_compile_definitions(forebay_bench_cache PRIVATE FOREBAY_BENCH_ROCKSDB)
  target_link_libraries(forebay_bench_cache PRIVATE rocksdb)
endif()
set_target_properties(forebay_bench_cache PROPERTIES
  OUTPUT_NAME cache_forebay
  RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
add_dependencies(bench_programs forebay_bench_cache)

# bench/packets: one program for both, as above.
add_executable(forebay_bench_packets EXCLUDE_FROM_ALL bench/packets/buffers.cc)
target_link_libraries(forebay_bench_packets PRIVATE forebay)
target_compile_options(forebay_bench_packets PRIVATE -fno-plt)
if(libdpdk_FOUND AND FOREBAY_BENCH_mempool_ring)
  target_compile_definitions(forebay_bench_packets PRIVATE FOREBAY_BENCH_DPDK)
  target_link_libraries(forebay_bench_packets PRIVATE
    PkgConfig::libdpdk -Wl,--no-as-needed ${FOREBAY_BENCH_mempool_ring} -Wl,--as-needed)
endif()
set_target_properties(forebay_bench_packets PROPERTIES
  OUTPUT_NAME packets_forebay
  RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
add_dependencies(bench_programs forebay_bench_packets)

# And ports: a program for each, in the loop of bench/packets/port_loop.h.
function(forebay_bench_port_program name)
  set(target forebay_bench_packet_port_${name})
  add_executable(${target} EXCLUDE_FROM_ALL bench/packets/port_${name}.cc)
  target_include_directories(${target} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(${target} PRIVATE ${ARGN})
  set_target_properties(${target} PROPERTIES
    OUTPUT_NAME packet_port_${name}
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bench")
  add_dependencies(bench_programs ${target})
endfunction()

forebay_bench_port_program(forebay forebay)
find_library(FOREBAY_BENCH_net_af_xdp NAMES rte_net_af_xdp)  # a plugin, as the mempool's ring
mark_as_advanced(FOREBAY_BENCH_net_af_xdp)
if(libdpdk_FOUND AND FOREBAY_BENCH_mempool_ring AND FOREBAY_BENCH_net_af_xdp)
  forebay_bench_port_program(dpdk
    PkgConfig::libdpdk -Wl,--no-as-needed ${FOREBAY_BENCH_net_af_xdp} ${FOREBAY_BENCH_mempool_ring} -Wl,--as-needed)
endif()
