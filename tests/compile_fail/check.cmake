# Compiles FILE twice: with MUST_COMPILE defined it has to compile, without it has to fail with the text of its "// error:" line.
# The first half makes sure that the second fails for the right reason.
cmake_minimum_required(VERSION 3.25)
file(STRINGS ${FILE} lines REGEX "^// error: ")
list(GET lines 0 expected)
string(REPLACE "// error: " "" expected "${expected}")

set(only_check -fsyntax-only)
if(FILE MATCHES "\\.cu$")
  set(only_check -arch=sm_80 -ptx -o /dev/null)  # nvcc's nearest to it
endif()
set(command ${COMPILER} -std=c++20 ${only_check} -I${INCLUDE} ${FILE})
execute_process(COMMAND ${command} -DMUST_COMPILE RESULT_VARIABLE result ERROR_VARIABLE errors)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "the correct half does not compile:\n${errors}")
endif()
execute_process(COMMAND ${command} RESULT_VARIABLE result ERROR_VARIABLE errors)
if(result EQUAL 0)
  message(FATAL_ERROR "this compiles, and must not")
endif()
if(NOT errors MATCHES "${expected}")
  message(FATAL_ERROR "fails to compile, but without \"${expected}\":\n${errors}")
endif()
