// A decoder language model of the Qwen2, Qwen3, Llama and Mistral families on one page: configuration,
// weights, training pass, cached pass. One flat fp32 buffer holds every weight: rollout reads what the
// optimizer wrote, there is no second copy to sync (a frozen model has no such buffer, and of a policy that
// several learners train in bf16 each has a part of it: lm_shard.h). Weights, gradients
// and logits are backend memory; ids, packs, chunks and what comes out a number a token are the host's.
#ifndef DR_CORE_MODEL_LM_H
#define DR_CORE_MODEL_LM_H

#include <stdbool.h>
#include <stdint.h>

#include "core/compute/backend.h"
#include "core/store/safetensors.h"

#ifdef __cplusplus
extern "C" {
#endif

// Rotary frequencies stretched for contexts longer than those of the first training, as Llama 3.1 does it
// (formula in lm_rope.c). factor 0: none.
typedef struct dr_rope_llama3 {
    float factor, low_freq_factor, high_freq_factor;
    int32_t original_positions;
} dr_rope_llama3;

typedef struct dr_lm_config {
    char architecture[32]; // Qwen2, Qwen3, Llama or Mistral (no window), each with "ForCausalLM"
    int32_t n_layers, hidden, n_heads, n_kv_heads, head_size, intermediate, vocab;
    int32_t max_positions;
    float rms_eps, rope_theta;
    bool tied_head; // lm_head.weight is model.embed_tokens.weight
    bool qkv_bias;  // Qwen2: true; the others: false
    bool qk_norm;   // Qwen3: an RMSNorm over each head of queries and keys before rotation
    dr_rope_llama3 rope_llama3;
    int32_t bos_id, eos_id, pad_id; // -1 when absent
} dr_lm_config;

// One named tensor inside the flat buffer, under its Hugging Face name.
typedef struct dr_lm_tensor {
    char name[96];
    int64_t offset;     // in the flat parameters, in floats
    int64_t rows, cols; // rows = 1 for vectors ([cols])
    dr_dtype dtype;     // of the file that it was loaded from; F32 in a fresh model
} dr_lm_tensor;

typedef struct dr_lm dr_lm;

// Presets: "small" (about 5 M parameters, the laptop default), "base" (about 18 M), "tiny" (tests).
// Vocabulary given.
dr_status dr_lm_preset(const char *name, int32_t vocab, dr_lm_config *out_config);

// Fresh weights: normal(0, 0.02 sqrt(1024 / hidden)), output projections scaled by 1/sqrt(2 n_layers);
// seeded. backend is borrowed.
dr_status dr_lm_create(dr_backend *backend, const dr_lm_config *config, uint64_t seed, dr_lm **out_lm);
// Writes a circuit that continues what stood in the context before into fresh weights (lm_copying.c): a small
// model then learns to copy titles in a fraction of the updates. DR_ERR_UNSUPPORTED without two layers,
// biases and a tied head.
dr_status dr_lm_start_copying(dr_lm *lm, uint64_t seed);
void dr_lm_destroy(dr_lm *lm);
// The configuration and the names and places of a model's tensors, without memory for its weights: nothing
// can be run or saved, and dr_lm_params is NULL.
dr_status dr_lm_outline(dr_backend *backend, const dr_lm_config *config, dr_lm **out_lm);
dr_status dr_lm_outline_of(dr_backend *backend, const char *dir, dr_lm **out_lm); // of a folder's config.json

// Hugging Face folder: config.json, and model.safetensors or model.safetensors.index.json with its shards, in
// F32, BF16 or F16. What this engine does not compute (another architecture, a window, experts, another
// rotary scaling, quantised weights, biases elsewhere) is refused by name; a tensor that is missing, has
// another shape, no use or a value that is no number is named, before any memory for weights is taken where
// that can be known. The files are mapped, and each tensor's pages are let go once it stands in the
// parameters.
dr_status dr_lm_load(dr_backend *backend, const char *dir, dr_lm **out_lm);
// The same for reading only: in DR_BF16 matrices are rounded on their way in and nothing else of them is
// kept, 2 bytes a weight. dr_lm_params is NULL, and changes, gradients and saving are refused
// (DR_ERR_UNSUPPORTED). Logits and log-probabilities are those of dr_lm_load, bit for bit. In fp32 it is
// dr_lm_load.
dr_status dr_lm_load_frozen(dr_backend *backend, const char *dir, dr_lm **out_lm);
// Writes the weights under the same names, replaces each file atomically, the weights last, and adds
// generation_config.json; the tokenizer's file is the tokenizer's business. DR_SAVE_FP32 loses nothing;
// DR_SAVE_AS_LOADED writes each tensor in the type that it was loaded in (a fresh model's: F32), so that a
// folder loaded and saved is equal tensor by tensor, and what was trained in between is rounded. More than
// max_shard_bytes of weights become shards with an index (safetensors_folder.h); dr_lm_save takes
// DR_LM_SHARD_BYTES.
#define DR_LM_SHARD_BYTES 5000000000
typedef enum dr_save_type { DR_SAVE_FP32, DR_SAVE_AS_LOADED } dr_save_type;
dr_status dr_lm_save(const dr_lm *lm, const char *dir, dr_save_type type);
dr_status dr_lm_save_in_shards(const dr_lm *lm, const char *dir, dr_save_type type, int64_t max_shard_bytes);
// dr_lm_save of values from elsewhere, in pieces: read gives values first … first + n - 1 of the flat
// parameters. An outline is enough.
typedef struct dr_lm_source {
    dr_status (*read)(void *context, int64_t first, int64_t n, float *out);
    void *context;
} dr_lm_source;
dr_status dr_lm_save_from(const dr_lm *lm, const char *dir, dr_save_type type, const dr_lm_source *source);

const dr_lm_config *dr_lm_config_of(const dr_lm *lm);
dr_backend *dr_lm_backend(dr_lm *lm); // borrowed
int64_t dr_lm_n_params(const dr_lm *lm);
float *dr_lm_params(dr_lm *lm); // [n_params], backend memory; NULL: not all of them are here
int32_t dr_lm_tensors(const dr_lm *lm, const dr_lm_tensor **out_list); // returns the count
// Must follow every change of the parameters: repacks what the linear ops read, and bumps the weight version.
dr_status dr_lm_weights_changed(dr_lm *lm);
uint64_t dr_lm_weight_version(const dr_lm *lm);

// Token ids that config.json carries; -1: none.
void dr_lm_set_special_ids(dr_lm *lm, int32_t bos, int32_t eos, int32_t pad);

// ---- training ----

// Packed sequences. Loss row r reads the hidden state at packed position rows[r] and predicts targets[r].
typedef struct dr_pack {
    int64_t n_tokens;
    const int32_t *ids;        // [n_tokens]
    const int32_t *cu_seqlens; // [n_seqs + 1]; positions restart in each sequence, or go on from its prefix
    int32_t n_seqs;
    int64_t n_rows;
    const int32_t *rows, *targets; // [n_rows]; a row may serve several targets
    const int32_t *prefix;         // [n_seqs] or NULL: the sequence that each goes on from (dr_sequences)
    const dr_kept *kept;           // [n_rows] or NULL: what each target was drawn from, itself included
} dr_pack;

// Activations of one micro-batch; reserved once for max_tokens, reused. DR_RECOMPUTE keeps the input of each
// layer only and runs the layer again in the backward pass (Chen et al., arXiv 1604.06174): the same bits,
// about a third more work, and memory for long trajectories.
typedef enum dr_activations { DR_KEEP_ACTIVATIONS, DR_RECOMPUTE } dr_activations;
typedef struct dr_lm_workspace dr_lm_workspace;
dr_status dr_lm_workspace_create(dr_lm *lm, int64_t max_tokens, dr_activations activations,
                                 dr_lm_workspace **out_workspace);
void dr_lm_workspace_destroy(dr_lm_workspace *workspace);
int64_t dr_lm_workspace_bytes(const dr_lm_workspace *workspace);

// logprob [n_rows] under softmax(logits / temperature) over each row's kept set, entropy [n_rows] of the
// whole softmax. DR_ERR_RANGE if the pack is larger than the workspace, its bounds do not rise, a sequence is
// longer than max_positions with its prefix, a prefix does not stand where dr_sequences wants it, an id is
// outside the vocabulary, or a kept set does not rise or lacks its target.
dr_status dr_lm_forward(dr_lm *lm, dr_lm_workspace *workspace, const dr_pack *pack, float temperature,
                        float *out_logprob, float *out_entropy);
// Who is told, while a backward pass runs, that it has added its last to values begin … end - 1 of the
// gradient: ops and copies that are issued from now on read them so. Ranges come from the end of the vector
// to its start, each ends where the one before began, and together they name every value once. An error ends
// the pass.
typedef struct dr_gradient_ready {
    dr_status (*tell)(void *context, int64_t begin, int64_t end);
    void *context;
} dr_gradient_ready;
// After dr_lm_forward on the same pack: gradient [n_params] (backend memory) += d(Σ dlogprob[r]·logprob[r]).
// ready NULL: nobody is told.
dr_status dr_lm_backward(dr_lm *lm, dr_lm_workspace *workspace, const dr_pack *pack, float temperature,
                         const float *dlogprob, float *gradient, const dr_gradient_ready *ready);
// Full logits of the given packed rows, [n_rows, vocab], backend memory: for goldens and tools, not for
// training.
dr_status dr_lm_logits(dr_lm *lm, dr_lm_workspace *workspace, const dr_pack *pack, float *out_logits);

// ---- cached inference ----

// Paged key/value cache: pages of DR_KV_PAGE positions, reference-counted so that sequences share a common
// prefix.
enum { DR_KV_PAGE = 16 };
typedef struct dr_kv_cache dr_kv_cache;
dr_status dr_kv_create(dr_lm *lm, int32_t n_pages, int32_t max_seqs, dr_kv_cache **out_kv);
void dr_kv_destroy(dr_kv_cache *kv);
int32_t dr_kv_free_pages(const dr_kv_cache *kv);
// A sequence is a small number. open: empty. fork: shares full pages, copies the partial last one.
// DR_ERR_RANGE: no free sequence; DR_ERR_MEMORY: no free page (nothing changed).
dr_status dr_kv_open(dr_kv_cache *kv, int32_t *out_seq);
dr_status dr_kv_fork(dr_kv_cache *kv, int32_t seq, int32_t *out_seq);
void dr_kv_close(dr_kv_cache *kv, int32_t seq);
int32_t dr_kv_length(const dr_kv_cache *kv, int32_t seq);
// Forgets what is behind the first `length` positions, at most those there are, and gives its pages back. A
// last page that stays in part must be the sequence's own: what it goes on with would be a fork's too.
void dr_kv_truncate(dr_kv_cache *kv, int32_t seq, int32_t length);

// New tokens of one sequence: decode (n = 1) and chunked prefill are the same call.
typedef struct dr_lm_chunk {
    int32_t seq;
    int32_t n;
    const int32_t *ids; // [n]
    bool want_logits;   // of the last token
} dr_lm_chunk;

// Runs all chunks in one batch and appends them to the cache. out_logits [number of chunks with want_logits,
// vocab], in order, backend memory. Row-exact: a sequence's logits do not depend on the other chunks. A
// sequence may stand in one chunk only (DR_ERR_ARGUMENT). DR_ERR_MEMORY: pages short, nothing changed.
dr_status dr_lm_decode(dr_lm *lm, dr_kv_cache *kv, const dr_lm_chunk *chunks, int32_t n_chunks,
                       float *out_logits);
// The same for n more tokens of one sequence, with the logits after each of them: out_logits [n, vocab].
dr_status dr_lm_decode_rows(dr_lm *lm, dr_kv_cache *kv, int32_t seq, const int32_t *ids, int32_t n,
                            float *out_logits);

// A burst: the pass of dr_lm_decode, a draw for each chunk that wants logits (a row, in their order), then
// n_steps - 1 times a pass of those rows alone, each with the token that it just drew, and a draw. All is
// decided beforehand, so that on a device the host waits once, at the end; pages but those of the first pass
// are taken of the free ones as rows come to them. A row that is finished (dr_burst) idles. What is drawn
// does not depend on n_steps, on the limits or on the other rows; how many draws a row makes may, when pages
// run out.
typedef struct dr_lm_burst {
    const dr_lm_chunk *chunks;
    int32_t n_chunks, n_steps;
    const dr_sampling *sampling; // [n_rows]
    const dr_draw_key *keys;     // [n_rows] of each row's first draw
    const int32_t *limits;       // [n_rows], 1 … n_steps: most tokens that a row draws
    const dr_stop_table *stops;  // or NULL
    const uint8_t *states;       // [n_rows], with stops
    float *logits;               // [dr_lm_burst_rows(n_rows), vocab], backend memory: scratch
} dr_lm_burst;
typedef struct dr_lm_drawn {
    dr_sampled *tokens; // [n_steps, n_rows], of row r the first counts[r]; kept ids until the next draw
    int32_t *counts;    // [n_rows]
    double draw_s;      // seconds that the host spent on draws, and at the end waiting for them
    dr_burst_room room; // what kept sets found
} dr_lm_drawn;
// Rows that passes of n_rows single rows run in a burst: idle ones with them where the backend repeats passes
// of few sizes only. Rises with n_rows.
int32_t dr_lm_burst_rows(const dr_lm *lm, int32_t n_rows);
// The arrays of *out are the caller's. Afterwards a sequence holds its chunk and all that its row drew but
// the last token. A row draws at least once. Errors are those of dr_lm_decode and of the burst's ops; after
// them no sequence has grown.
dr_status dr_lm_decode_burst(dr_lm *lm, dr_kv_cache *kv, const dr_lm_burst *burst, dr_lm_drawn *out);

// ---- memory: what the above takes, in bytes; an outline is enough ----

// dr_lm_weights_memory, of what is kept as fp32, is lm_shard.h's.
// All of dr_lm_load_frozen, of a model like lm; *out_loading: what it takes beside that until it returns.
int64_t dr_lm_frozen_memory(const dr_lm *lm, int64_t *out_loading);
// On the host, where the backend's memory is not the host's: the copy of all values that saving takes, and an
// optimizer whose learners meet on the host. Loading and checkpoints hold less at a time.
int64_t dr_lm_copy_memory(const dr_lm *lm);
int64_t dr_lm_products_memory(const dr_lm *lm); // what the linear ops keep beside it
int64_t dr_lm_workspace_memory(const dr_lm *lm, int64_t max_tokens, dr_activations activations);
int64_t dr_kv_memory(const dr_lm *lm, int64_t n_pages);
int64_t dr_lm_decode_memory(const dr_lm *lm, int64_t tokens); // scratch of a call with so many in all chunks
// The model's part of a shape: T tokens; what is drawn, cached and shared is 0.
dr_pass_shape dr_lm_pass_shape(const dr_lm *lm, int64_t T);

#ifdef __cplusplus
}
#endif
#endif
