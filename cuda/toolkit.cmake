# What is built with which CUDA toolkit. By version numbers alone: tests/test_cuda_toolkit.cmake asks for toolkits that are
# not there.
set(DR_CUDA_OLDEST 12.0)       # tensor maps
set(DR_CUDA_OLDEST_WGMMA 12.1) # ptxas 12.0 spills in the gradient of attention
set(DR_CUDA_OLDEST_100 12.8)

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
