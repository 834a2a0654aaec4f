# Installs the headers and a package: find_package(pagedkv [COMPONENTS cuda]). The package is the same on every machine.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/pagedkv)

install(DIRECTORY include/pagedkv DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/pagedkv)
install(TARGETS pagedkv EXPORT pagedkvTargets)
install(EXPORT pagedkvTargets NAMESPACE pagedkv:: DESTINATION ${package_dir})

configure_package_config_file(cmake/pagedkvConfig.cmake.in ${PROJECT_BINARY_DIR}/pagedkvConfig.cmake
  INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/pagedkvConfigVersion.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/pagedkvConfig.cmake ${PROJECT_BINARY_DIR}/pagedkvConfigVersion.cmake
  DESTINATION ${package_dir})
