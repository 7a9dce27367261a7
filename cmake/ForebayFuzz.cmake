# fuzz/*.cc: one libFuzzer program each, in <build>/fuzz. None is built by default: they hang on the target fuzz_programs,
# and only Clang has the library.

add_custom_target(fuzz_programs)
file(GLOB sources CONFIGURE_DEPENDS fuzz/*.cc)
foreach(source IN LISTS sources)
  cmake_path(GET source STEM stem)
  add_executable(forebay_fuzz_${stem} EXCLUDE_FROM_ALL "${source}")
  target_include_directories(forebay_fuzz_${stem} PRIVATE "${PROJECT_SOURCE_DIR}")
  target_compile_options(forebay_fuzz_${stem} PRIVATE -fsanitize=fuzzer)
  target_link_options(forebay_fuzz_${stem} PRIVATE -fsanitize=fuzzer)
  target_link_libraries(forebay_fuzz_${stem} PRIVATE forebay)
  set_target_properties(forebay_fuzz_${stem} PROPERTIES
    OUTPUT_NAME ${stem}
    RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/fuzz")
  add_dependencies(fuzz_programs forebay_fuzz_${stem})
endforeach()
