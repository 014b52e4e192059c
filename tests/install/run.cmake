# Configures, builds and runs the outside project in consumer/. Called by CTest with WAY, LCOMP_SOURCE_DIR,
# LCOMP_BINARY_DIR, SCRATCH and GENERATOR.
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(arguments -G ${GENERATOR} -DWAY=${WAY} -DLCOMP_SOURCE_DIR=${LCOMP_SOURCE_DIR})
if(WAY STREQUAL find_package)
  file(REMOVE_RECURSE ${SCRATCH})
  run(${CMAKE_COMMAND} --install ${LCOMP_BINARY_DIR} --prefix ${SCRATCH}/prefix)
  list(APPEND arguments -DCMAKE_PREFIX_PATH=${SCRATCH}/prefix)
endif()
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR}/consumer -B ${SCRATCH}/build ${arguments})
run(${CMAKE_COMMAND} --build ${SCRATCH}/build --target consumer)
run(${SCRATCH}/build/consumer)
