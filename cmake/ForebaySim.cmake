# sim/: simulated devices and clocks, for tests, fuzzers and benchmarks only. ${sim_library} is empty while there is none.

file(GLOB_RECURSE sim_sources CONFIGURE_DEPENDS sim/*.cc)
list(FILTER sim_sources EXCLUDE REGEX "_(test|bench)\\.cc$")
set(sim_library "")
if(sim_sources)
  add_library(forebay_sim STATIC ${sim_sources})
  target_include_directories(forebay_sim PUBLIC "${PROJECT_SOURCE_DIR}")
  target_link_libraries(forebay_sim PUBLIC forebay)
  set(sim_library forebay_sim)
endif()
