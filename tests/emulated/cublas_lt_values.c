// What linear_lt.c relies on of cublasLt.h: values, sizes, and that functions take what it gives them.
// Compiled against the emulated library's header and, where it is found, against the real one: that both
// compile is the test.
#include <cublasLt.h>

#define SAME(what, value) _Static_assert((what) == (value), #what)

SAME(CUBLAS_STATUS_SUCCESS, 0);
SAME(CUBLAS_STATUS_NOT_INITIALIZED, 1);
SAME(CUBLAS_STATUS_ALLOC_FAILED, 3);
SAME(CUBLAS_STATUS_INVALID_VALUE, 7);
SAME(CUBLAS_STATUS_EXECUTION_FAILED, 13);
SAME(CUBLAS_STATUS_NOT_SUPPORTED, 15);
SAME(CUDA_R_32F, 0);
SAME(CUDA_R_16BF, 14);
SAME(CUBLAS_COMPUTE_32F, 68);
SAME(CUBLAS_OP_N, 0);
SAME(CUBLAS_OP_T, 1);
SAME(CUBLASLT_MATRIX_LAYOUT_COLS, 3);
SAME(CUBLASLT_MATMUL_DESC_TRANSA, 3);
SAME(CUBLASLT_MATMUL_DESC_TRANSB, 4);
SAME(CUBLASLT_MATMUL_DESC_EPILOGUE, 7);
SAME(CUBLASLT_MATMUL_DESC_BIAS_POINTER, 8);
SAME(CUBLASLT_EPILOGUE_DEFAULT, 1);
SAME(CUBLASLT_EPILOGUE_BIAS, 4);
SAME(CUBLASLT_REDUCTION_SCHEME_NONE, 0);
SAME(CUBLASLT_REDUCTION_SCHEME_INPLACE, 1);
SAME(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE, 2);
SAME(CUBLASLT_REDUCTION_SCHEME_MASK, 7);
SAME(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, 1);
SAME(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, 3);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, 5);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, 6);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, 7);
SAME(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, 8);
SAME(CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 2);
SAME(CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 3);

SAME(sizeof(cublasStatus_t), sizeof(int));
SAME(sizeof(cublasLtMatmulAlgo_t), 64);
SAME(sizeof(cublasLtMatmulHeuristicResult_t), 96);
SAME(offsetof(cublasLtMatmulHeuristicResult_t, algo), 0);
SAME(offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize), 64);
SAME(offsetof(cublasLtMatmulHeuristicResult_t, state), 72);
SAME(offsetof(cublasLtMatmulHeuristicResult_t, wavesCount), 76);

#define FUNCTION(name, ...)                                                                                  \
    _Static_assert(__builtin_types_compatible_p(__typeof__(name), cublasStatus_t(__VA_ARGS__)), #name)

FUNCTION(cublasLtCreate, cublasLtHandle_t *);
FUNCTION(cublasLtDestroy, cublasLtHandle_t);
FUNCTION(cublasLtMatmulDescCreate, cublasLtMatmulDesc_t *, cublasComputeType_t, cudaDataType);
FUNCTION(cublasLtMatmulDescDestroy, cublasLtMatmulDesc_t);
FUNCTION(cublasLtMatmulDescSetAttribute, cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *,
         size_t);
FUNCTION(cublasLtMatrixLayoutCreate, cublasLtMatrixLayout_t *, cudaDataType, uint64_t, uint64_t, int64_t);
FUNCTION(cublasLtMatrixLayoutDestroy, cublasLtMatrixLayout_t);
FUNCTION(cublasLtMatrixLayoutSetAttribute, cublasLtMatrixLayout_t, cublasLtMatrixLayoutAttribute_t,
         const void *, size_t);
FUNCTION(cublasLtMatmulPreferenceCreate, cublasLtMatmulPreference_t *);
FUNCTION(cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreference_t);
FUNCTION(cublasLtMatmulPreferenceSetAttribute, cublasLtMatmulPreference_t,
         cublasLtMatmulPreferenceAttributes_t, const void *, size_t);
FUNCTION(cublasLtMatmulAlgoGetHeuristic, cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
         cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t,
         int, cublasLtMatmulHeuristicResult_t *, int *);
FUNCTION(cublasLtMatmulAlgoCheck, cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
         cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *,
         cublasLtMatmulHeuristicResult_t *);
FUNCTION(cublasLtMatmulAlgoConfigGetAttribute, const cublasLtMatmulAlgo_t *,
         cublasLtMatmulAlgoConfigAttributes_t, void *, size_t, size_t *);
FUNCTION(cublasLtMatmul, cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *,
         cublasLtMatrixLayout_t, const void *, cublasLtMatrixLayout_t, const void *, const void *,
         cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, void *, size_t,
         cudaStream_t);
_Static_assert(__builtin_types_compatible_p(__typeof__(cublasLtGetStatusString),
                                            const char *(cublasStatus_t)),
               "cublasLtGetStatusString");
