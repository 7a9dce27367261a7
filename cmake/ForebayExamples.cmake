# Examples: one program for each examples/*.cc, in <build>/examples. Each takes one argument, an image, and a test runs it
# on an empty one of 1 MiB. And one for each folder examples/*/, of all that is in it; a test of its own runs it
# (tests/*.py).

file(GLOB sources CONFIGURE_DEPENDS examples/*.cc)
foreach(source IN LISTS sources)
  cmake_path(GET source STEM name)
  add_executable(forebay_example_${name} "${source}")
  target_link_libraries(forebay_example_${name} PRIVATE forebay)
  set_target_properties(forebay_example_${name} PROPERTIES
    OUTPUT_NAME ${name}
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/examples")
  add_test(NAME example.${name}
    COMMAND sh -c "rm -f ${name}.img && truncate -s 1M ${name}.img && ./${name} ${name}.img"
    WORKING_DIRECTORY "${PROJECT_BINARY_DIR}/examples")
  set_tests_properties(example.${name} PROPERTIES TIMEOUT 60 LABELS integration)
endforeach()

file(GLOB mains CONFIGURE_DEPENDS examples/*/main.cc)
foreach(main IN LISTS mains)
  cmake_path(GET main PARENT_PATH folder)
  cmake_path(GET folder STEM name)
  file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.cc")
  add_executable(forebay_example_${name} ${sources})
  target_include_directories(forebay_example_${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_link_libraries(forebay_example_${name} PRIVATE forebay)
  set_target_properties(forebay_example_${name} PROPERTIES
    OUTPUT_NAME ${name}
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/examples")
endforeach()
