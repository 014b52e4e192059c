# Everything that the libraries link to, from Debian packages. One imported target per library.
# Installed beside lcompConfig.cmake, which includes it: static libraries pass their dependencies on.
find_package(Torch REQUIRED)
find_package(fmt REQUIRED)
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)

# Debian's dnnl-config.cmake asks for OpenCL, which the CPU engine does not need: find the library itself.
find_path(DNNL_INCLUDE_DIR dnnl.hpp REQUIRED)
find_library(DNNL_LIBRARY dnnl REQUIRED)
if(NOT TARGET lcomp_dnnl)
  add_library(lcomp_dnnl INTERFACE IMPORTED)
  set_target_properties(lcomp_dnnl PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES ${DNNL_INCLUDE_DIR} INTERFACE_LINK_LIBRARIES ${DNNL_LIBRARY})
endif()

find_package(PkgConfig REQUIRED)
pkg_check_modules(hwy REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash)
pkg_check_modules(openblas REQUIRED IMPORTED_TARGET openblas)
