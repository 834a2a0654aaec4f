# Tests of the house rather than of the code: each header alone, the layers, the docs, the package as strangers use it, what must not compile, what ptxas makes of the kernels.

# Every header twice in a translation unit of its own: it needs no other include before it, and tolerates a second one.
function(pagedkv_add_headers_alone target glob extension)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS RELATIVE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/include/${glob})
  set(sources "")
  foreach(header ${headers})
    set(source ${CMAKE_CURRENT_BINARY_DIR}/headers_alone/${header}.${extension})
    file(CONFIGURE OUTPUT ${source} CONTENT "// Generated: the header alone.\n#include \"${header}\"\n#include \"${header}\"\n")
    list(APPEND sources ${source})
  endforeach()
  if(sources)
    add_library(${target} OBJECT ${sources})
    target_link_libraries(${target} PRIVATE pagedkv_warnings ${ARGN})
    set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES 90a)
  endif()
endfunction()
pagedkv_add_headers_alone(headers_alone *.hpp cpp pagedkv::pagedkv)
if(PAGEDKV_HAS_CUDA)
  pagedkv_add_headers_alone(headers_alone_cuda *.cuh cu pagedkv::cuda)
endif()

function(pagedkv_add_script_test name)
  add_test(NAME house/${name} COMMAND ${CMAKE_COMMAND} ${ARGN})
  set_tests_properties(house/${name} PROPERTIES LABELS house)
endfunction()

pagedkv_add_script_test(layers
  -DROOT=${PROJECT_SOURCE_DIR} -P ${CMAKE_CURRENT_SOURCE_DIR}/check_layers.cmake)
pagedkv_add_script_test(layers_finds_every_breach
  -DWORK=${CMAKE_CURRENT_BINARY_DIR}/breaches -P ${CMAKE_CURRENT_SOURCE_DIR}/check_layers_test.cmake)

pagedkv_add_script_test(docs -DROOT=${PROJECT_SOURCE_DIR} -P ${CMAKE_CURRENT_SOURCE_DIR}/check_docs.cmake)

add_executable(no_exceptions consumer/no_exceptions.cpp)
target_compile_options(no_exceptions PRIVATE -fno-exceptions)
target_link_libraries(no_exceptions PRIVATE pagedkv::pagedkv pagedkv_warnings Threads::Threads)
add_test(NAME house/no_exceptions COMMAND no_exceptions)
set_tests_properties(house/no_exceptions PROPERTIES LABELS house)

file(GLOB files CONFIGURE_DEPENDS compile_fail/*.cpp)
if(PAGEDKV_HAS_CUDA)
  file(GLOB gpu_files CONFIGURE_DEPENDS compile_fail/*.cu)
endif()
foreach(file ${files} ${gpu_files})
  cmake_path(GET file STEM name)
  set(compiler ${CMAKE_CXX_COMPILER})
  if(file IN_LIST gpu_files)
    set(compiler ${CMAKE_CUDA_COMPILER})
  endif()
  pagedkv_add_script_test(must_not_compile/${name}
    -DFILE=${file} -DCOMPILER=${compiler} -DINCLUDE=${PROJECT_SOURCE_DIR}/include
    -P ${CMAKE_CURRENT_SOURCE_DIR}/compile_fail/check.cmake)
endforeach()

if(PAGEDKV_HAS_CUDA)
  foreach(arch 80 90a)
    # Bytes stored and loaded. What spills for sm_80 is the readable kernel's row of 256.
    if(arch STREQUAL "80")
      set(allowed 168)
    else()
      set(allowed 0)
    endif()
    pagedkv_add_script_test(spills_${arch}
      -DFILE=${CMAKE_CURRENT_SOURCE_DIR}/ptx/decode.cu -DCOMPILER=${CMAKE_CUDA_COMPILER} -DARCH=${arch} -DALLOWED=${allowed}
      -DINCLUDE=${PROJECT_SOURCE_DIR}/include -DTABLE=${CMAKE_CURRENT_BINARY_DIR}/ptx/registers_${arch}.txt
      -P ${PROJECT_SOURCE_DIR}/cmake/PtxasReport.cmake)
    pagedkv_add_script_test(ptx_${arch}
      -DFILE=${CMAKE_CURRENT_SOURCE_DIR}/ptx/instructions.cu -DCOMPILER=${CMAKE_CUDA_COMPILER} -DARCH=${arch}
      -DINCLUDE=${PROJECT_SOURCE_DIR}/include -DWORK=${CMAKE_CURRENT_BINARY_DIR}/ptx
      -P ${CMAKE_CURRENT_SOURCE_DIR}/ptx/check.cmake)
  endforeach()
endif()

function(pagedkv_add_consumer name)
  pagedkv_add_script_test(consumer/${name} ${ARGN}
    -DWORK=${CMAKE_CURRENT_BINARY_DIR}/consumer/${name} -DGENERATOR=${CMAKE_GENERATOR}
    -DPAGEDKV_SOURCE=${PROJECT_SOURCE_DIR} -DPAGEDKV_BINARY=${PROJECT_BINARY_DIR}
    -P ${CMAKE_CURRENT_SOURCE_DIR}/consumer/build.cmake)
endfunction()
pagedkv_add_consumer(subdirectory -DHOW=subdirectory)
pagedkv_add_consumer(fetch_content -DHOW=fetch_content)
if(PAGEDKV_INSTALL)
  pagedkv_add_consumer(installed -DHOW=installed)
  if(PAGEDKV_HAS_CUDA)
    pagedkv_add_consumer(installed_cuda -DHOW=installed -DCOMPONENTS=cuda -DNVCC=${CMAKE_CUDA_COMPILER})
  endif()
endif()
