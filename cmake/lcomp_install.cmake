# `cmake --install`: archives, headers, the tool, and what `find_package(lcomp)` reads.
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/lcomp)

set_target_properties(lcomp_math PROPERTIES EXPORT_NAME math)
install(TARGETS lcomp_math lcomp EXPORT lcompTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT lcompTargets NAMESPACE lcomp:: DESTINATION ${package_dir})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/lcomp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN *.h)
if(TARGET lcomp_cli)
  install(TARGETS lcomp_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/lcompConfig.cmake.in
  ${PROJECT_BINARY_DIR}/lcompConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/lcompConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/lcompConfig.cmake ${PROJECT_BINARY_DIR}/lcompConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/lcomp_dependencies.cmake
        DESTINATION ${package_dir})
