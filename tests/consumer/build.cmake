# Builds the consumer in a fresh folder WORK the way HOW says (subdirectory, fetch_content, installed) and runs it.
cmake_minimum_required(VERSION 3.25)
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGN}\n${output}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK})
if(HOW STREQUAL "installed")
  run(${CMAKE_COMMAND} --install ${PAGEDKV_BINARY} --prefix ${WORK}/prefix)
  # Moved after installing: the package must not remember where it was.
  file(RENAME ${WORK}/prefix ${WORK}/moved)
endif()
run(${CMAKE_COMMAND} -S ${PAGEDKV_SOURCE}/tests/consumer -B ${WORK}/build -G ${GENERATOR}
  -DHOW=${HOW} -DCOMPONENTS=${COMPONENTS} -DPAGEDKV_SOURCE=${PAGEDKV_SOURCE} -DCMAKE_PREFIX_PATH=${WORK}/moved
  -DCMAKE_CUDA_COMPILER=${NVCC})
run(${CMAKE_COMMAND} --build ${WORK}/build)
run(${WORK}/build/consumer)
