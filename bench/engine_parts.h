// The parts of bench_engine: what they share, and one entry each. Every part checks the results of what it is
// about to time and fails (DR_ERR_INTERNAL) when one is wrong; only then are its figures added to the report.
#ifndef DR_BENCH_ENGINE_PARTS_H
#define DR_BENCH_ENGINE_PARTS_H

#include "bench/ceiling.h"
#include "bench/device.h"
#include "bench/report.h"
#include "core/model/lm.h"
#include "core/rec/trm.h"
#include "core/store/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { BENCH_VOCAB = sized(4096, 640) };

typedef struct bench_engine {
    dr_backend *backend;
    bench_device device;
    bench_ceilings *ceilings;
    bench_report *report;
    double seconds;       // aimed at for one figure
    dr_lm_config model;   // of the decode and train parts
    int32_t pack, length; // tokens of a training pack, and of each of its sequences
    bool is_large;        // no preset
    bool is_slow;         // a large model on the processor, seconds a step: smaller batches, a shorter pack
} bench_engine;

// A shape by its name: "tiny", "small", the presets, or "0.5b", "1.5b", "7b": sizes of Qwen2.5's models.
// DR_ERR_ARGUMENT for another.
dr_status bench_model_shape(const char *name, dr_lm_config *out);

dr_status bench_decode_figures(bench_engine *engine);
// The model that decoding is measured with, as a Hugging Face folder, and check.safetensors in it: "ids" [64]
// and "logits" [64, vocab], for other engines to compare themselves with.
dr_status bench_write_model(dr_backend *backend, const dr_lm_config *config, const char *dir);
dr_status bench_train_figures(bench_engine *engine);
dr_status bench_handover_figures(bench_engine *engine);
dr_status bench_retrieve_figures(bench_engine *engine);
dr_status bench_rollout_figures(bench_engine *engine);
dr_status bench_sample_figures(bench_engine *engine);
dr_status bench_long_figures(bench_engine *engine); // minutes: only when asked for

// ---- shared between parts ----

// Floating-point operations a second beside the device's peak, as ", MFU 41.2% of 989 TFLOP/s"; "" where no
// peak is known or products are not bf16.
double bench_mfu(const bench_engine *engine, double flops_per_s); // the share alone, 0 where none is known
void bench_mfu_note(const bench_engine *engine, double flops_per_s, char *out, size_t size);

// A synthetic catalogue of 3,700 items, and a retrieval model of the usual size on it, hardly trained, on the
// processor.
typedef struct bench_world {
    dr_backend *backend; // of the retrieval model
    dr_dataset *dataset;
    dr_trm *trm;
} bench_world;
dr_status bench_world_create(dr_precision precision, int n_threads, bench_world *out);
dr_status bench_world_to_device(bench_world *world); // its retrieval model to device 0, in fp32
void bench_world_reset(bench_world *world);

// The linear layers of one pass of T rows, of which n_logits go through the last layer's second half and the
// head; 8 products, the head last.
enum { BENCH_LM_PRODUCTS = 8 };
void bench_lm_products(const dr_lm_config *config, int64_t T, int64_t n_logits,
                       bench_product out[BENCH_LM_PRODUCTS]);
double bench_lm_weight_bytes(const dr_backend *backend, const dr_lm_config *config); // read by one pass
// Keys and values of one position, all layers
double bench_kv_bytes(const dr_backend *backend, const dr_lm_config *config);
// Floating-point operations of causal attention for one query token that looks at `context` positions.
double bench_attention_flops(const dr_lm_config *config, double context);

// Random ids of this vocabulary.
void bench_fill_ids(uint64_t stream, int32_t vocab, int64_t n, int32_t *out);

// Decoding sequences in step, on cache pages of their own. Contexts only grow.
typedef struct bench_decoder bench_decoder;
dr_status bench_decoder_create(bench_engine *engine, dr_lm *lm, int32_t n_seqs, int32_t longest,
                               bench_decoder **out);
void bench_decoder_destroy(bench_decoder *decoder);
// All sequences to that context, a multiple of a page.
dr_status bench_decoder_extend(bench_decoder *decoder, int32_t context);
// The first `batch` sequences anew at that context, n_alike of them forked off each prefix of `shared`
// positions, whole pages.
dr_status bench_decoder_share(bench_decoder *decoder, int32_t batch, int32_t n_alike, int32_t shared,
                              int32_t context);
// Median seconds of a step of the first `batch` sequences at that context.
dr_status bench_decoder_step(bench_decoder *decoder, int32_t batch, double seconds, double *out_seconds);
// The same as rollouts decode: in one burst, each token drawn before the next pass. Seconds of a step for
// each row that drew; *out_kept: ids that a draw kept, on average (0: top-p 1).
dr_status bench_decoder_burst(bench_decoder *decoder, int32_t batch, dr_sampling sampling, double seconds,
                              double *out_seconds, double *out_kept);
double bench_positions_read(int32_t context); // by a sequence in one of these steps, on average

#ifdef __cplusplus
}
#endif
#endif
