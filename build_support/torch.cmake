# The torch that Python_EXECUTABLE imports: TORCH_FOLDER, TORCH_VERSION, TORCH_CUDA (empty without
# CUDA). torch's own find_package(Torch) insists on a whole CUDA toolkit, so its paths are asked for.
execute_process(
  COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/torch_probe.py"
  OUTPUT_VARIABLE probe ERROR_VARIABLE probe_error RESULT_VARIABLE probe_failed
  OUTPUT_STRIP_TRAILING_WHITESPACE)
if(probe_failed)
  message(FATAL_ERROR "${probe_error}")
endif()
list(GET probe 0 TORCH_FOLDER)
list(GET probe 1 TORCH_VERSION)
list(LENGTH probe probe_length)
set(TORCH_CUDA "")
if(probe_length GREATER 2)
  list(GET probe 2 TORCH_CUDA)
endif()

# What includes torch's headers and calls its libraries links this.
add_library(torch_minimal INTERFACE)
target_include_directories(torch_minimal SYSTEM INTERFACE
  "${TORCH_FOLDER}/include" "${TORCH_FOLDER}/include/torch/csrc/api/include")
foreach(name torch_cpu c10)
  find_library(LIB_${name} ${name} PATHS "${TORCH_FOLDER}/lib" NO_DEFAULT_PATH REQUIRED)
  target_link_libraries(torch_minimal INTERFACE "${LIB_${name}}")
endforeach()
