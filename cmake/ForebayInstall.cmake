# cmake --install: headers, static library, CMake package, pkg-config file, program, man pages, systemd units.

include(CMakePackageConfigHelpers)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/forebay")

install(TARGETS forebay EXPORT forebay-targets
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILE_SET generated_headers DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT forebay-targets NAMESPACE forebay:: FILE forebayTargets.cmake DESTINATION "${package_dir}")

configure_package_config_file(cmake/forebayConfig.cmake.in forebayConfig.cmake
  INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file(forebayConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES
  "${PROJECT_BINARY_DIR}/forebayConfig.cmake"
  "${PROJECT_BINARY_DIR}/forebayConfigVersion.cmake"
  DESTINATION "${package_dir}")

# forebay.pc finds its prefix from where it lies, so that `cmake --install --prefix` and moving the tree both work.
cmake_path(SET pc_dir NORMALIZE "/${CMAKE_INSTALL_LIBDIR}/pkgconfig")
cmake_path(RELATIVE_PATH pc_dir BASE_DIRECTORY "/" OUTPUT_VARIABLE pc_dir_in_prefix)
string(REGEX REPLACE "[^/]+" ".." pc_to_prefix "${pc_dir_in_prefix}")
configure_file(cmake/forebay.pc.in forebay.pc @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/forebay.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

if(TARGET forebay_tool)
  install(TARGETS forebay_tool RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()

file(GLOB man_pages CONFIGURE_DEPENDS docs/man/*.1)
install(FILES ${man_pages} DESTINATION "${CMAKE_INSTALL_MANDIR}/man1")

# Units may be templates (*.in) that name the program as @CMAKE_INSTALL_FULL_BINDIR@/forebay.
file(GLOB units CONFIGURE_DEPENDS systemd/*.service systemd/*.socket)
file(GLOB unit_templates CONFIGURE_DEPENDS systemd/*.service.in systemd/*.socket.in)
foreach(template IN LISTS unit_templates)
  cmake_path(GET template STEM LAST_ONLY unit)
  configure_file("${template}" "systemd/${unit}" @ONLY)
  list(APPEND units "${PROJECT_BINARY_DIR}/systemd/${unit}")
endforeach()
install(FILES ${units} DESTINATION lib/systemd/system)
