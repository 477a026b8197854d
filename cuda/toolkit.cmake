# What is built with which CUDA toolkit. By version numbers alone: tests/test_cuda_toolkit.cmake asks for toolkits that are
# not there.
set(DR_CUDA_OLDEST 12.0)       # tensor maps
set(DR_CUDA_OLDEST_WGMMA 12.1) # ptxas 12.0 spills in the gradient of attention
set(DR_CUDA_OLDEST_100 12.8)

# Folder of a header of an optional library: empty where one of `known` has it already, or nobody; else that of a Python
# package, whose library the header stands beside (PACKAGES/nvidia/nccl/lib and include).
function(dr_wheel_folder header known packages out)
  set(${out} "" PARENT_SCOPE)
  foreach(folder ${known})
    if(EXISTS ${folder}/${header})
      return()
    endif()
  endforeach()
  file(GLOB found ${packages}/nvidia/*/include/${header})
  if(packages AND found)
    list(GET found 0 found)
    get_filename_component(folder ${found} DIRECTORY)
    set(${out} ${folder} PARENT_SCOPE)
  endif()
endfunction()

# Architectures of a build that names none: A100 and H100, and code that the driver compiles for what is newer.
function(dr_cuda_architectures version out)
  if(version VERSION_GREATER_EQUAL DR_CUDA_OLDEST_100)
    set(${out} 80-real 90-real 100-virtual PARENT_SCOPE)
  else()
    message(STATUS "CUDA ${version}: no code for compute capability 10.0, which wants ${DR_CUDA_OLDEST_100}; newer devices get that of 9.0")
    set(${out} 80-real 90-real 90-virtual PARENT_SCOPE)
  endif()
endfunction()

# Architectures of the kernels with what compute capability 9.0 alone has; empty: functions that say no.
function(dr_cuda_wgmma_architectures version architectures out)
  set(${out} "" PARENT_SCOPE)
  if(NOT "${architectures}" MATCHES "(^|;)90a?(-real|-virtual)?(;|$)")
    return()
  endif()
  if(version VERSION_GREATER_EQUAL DR_CUDA_OLDEST_WGMMA)
    set(${out} 90a-real PARENT_SCOPE)
  else()
    message(STATUS "CUDA ${version}: no attention with wgmma, which wants ${DR_CUDA_OLDEST_WGMMA}")
  endif()
endfunction()
