# The two libraries and the command-line tool.
#   lcomp::math   core, linalg, quant, sparse, lowrank: mathematics on tensors, no model, no files
#   lcomp::lcomp  everything
#   lcomp_cli     the program `lcomp`
include(GNUInstallDirs)

# Flags for our own code, kept off the exported targets.
add_library(lcomp_build_flags INTERFACE)
if(LCOMP_DEVELOPER)
  target_compile_options(lcomp_build_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Werror)
  # GCC 12 sees overflows in std::string concatenation that are not there (GCC bugs 105329 and 105651).
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
    target_compile_options(lcomp_build_flags INTERFACE -Wno-restrict -Wno-stringop-overflow)
  endif()
endif()
# GCC takes the unnamed namespaces of the sources of a unity build for those of a header.
if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  target_compile_options(lcomp_build_flags INTERFACE -Wno-subobject-linkage)
endif()
# No -ffast-math, and no contraction: the same source gives the same bytes on every machine.
target_compile_options(lcomp_build_flags INTERFACE -ffp-contract=off)
if(LCOMP_SANITIZE)
  # The instrumentation hides from GCC that variables are initialised: its warning would be wrong.
  target_compile_options(lcomp_build_flags INTERFACE -fsanitize=${LCOMP_SANITIZE} -fno-sanitize-recover=all
                         -fno-omit-frame-pointer -g1 -Wno-maybe-uninitialized)
  target_link_options(lcomp_build_flags INTERFACE -fsanitize=${LCOMP_SANITIZE})
endif()
# Only the fuzz targets of such a build can be linked: they bring along what the compiler's calls go to.
if(LCOMP_FUZZER STREQUAL coverage)
  target_compile_options(lcomp_build_flags INTERFACE -fsanitize-coverage=trace-pc)
elseif(LCOMP_FUZZER STREQUAL libfuzzer)
  target_compile_options(lcomp_build_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# lcomp_sources(OUT FOLDER...): the sources below src/FOLDER, found by folder, so that a new file needs no edit here.
function(lcomp_sources out)
  set(found)
  foreach(folder IN LISTS ARGN)
    file(GLOB_RECURSE in_folder CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/${folder}/*.cpp)
    list(APPEND found ${in_folder})
  endforeach()
  # Sources that cannot share a translation unit with others (CMAKE_UNITY_BUILD): kernels that Highway compiles once for
  # each instruction set, and the two pages of the report, whose sections have the same names.
  foreach(source IN LISTS found)
    file(STRINGS ${source} kernels REGEX "foreach_target" LIMIT_COUNT 1)
    if(kernels OR source MATCHES "/report/html[.]cpp$")
      set_source_files_properties(${source} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    endif()
  endforeach()
  set(${out} ${found} PARENT_SCOPE)
endfunction()

lcomp_sources(math_sources core linalg quant sparse lowrank)
add_library(lcomp_math STATIC ${math_sources})
add_library(lcomp::math ALIAS lcomp_math)
target_compile_features(lcomp_math PUBLIC cxx_std_20)
target_include_directories(lcomp_math
  PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
  PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(lcomp_math
  PUBLIC torch
  PRIVATE $<BUILD_INTERFACE:lcomp_build_flags> $<BUILD_INTERFACE:Eigen3::Eigen> fmt::fmt Threads::Threads
          OpenMP::OpenMP_CXX lcomp_dnnl PkgConfig::hwy PkgConfig::xxhash PkgConfig::openblas)
target_precompile_headers(lcomp_math PRIVATE ${PROJECT_SOURCE_DIR}/cmake/pch.h)

lcomp_sources(lcomp_sources io model calib distill eval pipeline report)
add_library(lcomp STATIC ${lcomp_sources})
add_library(lcomp::lcomp ALIAS lcomp)
target_include_directories(lcomp PRIVATE ${PROJECT_SOURCE_DIR}/src)
target_link_libraries(lcomp
  PUBLIC lcomp_math
  PRIVATE $<BUILD_INTERFACE:lcomp_build_flags> $<BUILD_INTERFACE:nlohmann_json::nlohmann_json> fmt::fmt PkgConfig::pcre2
          PkgConfig::utf8proc PkgConfig::xxhash PkgConfig::hwy Threads::Threads OpenMP::OpenMP_CXX)
target_precompile_headers(lcomp REUSE_FROM lcomp_math)

lcomp_sources(cli_sources cli)
if(cli_sources)
  add_executable(lcomp_cli ${cli_sources})
  set_target_properties(lcomp_cli PROPERTIES OUTPUT_NAME lcomp RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
  target_include_directories(lcomp_cli PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_link_libraries(lcomp_cli PRIVATE lcomp lcomp_build_flags CLI11::CLI11 nlohmann_json::nlohmann_json fmt::fmt
                        Threads::Threads)
endif()
