// Training of the retrieval model: full-softmax cross-entropy on cosine / temperature over every position of
// the training part, with preference texts made from the target, dropped often enough that it also ranks well
// without one.
#ifndef DR_CORE_REC_TRM_TRAIN_H
#define DR_CORE_REC_TRM_TRAIN_H

#include "core/rec/trm.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_trm_train_options {
    dr_trm_config config; // n_items is taken from the data set
    int32_t max_epochs, batch, patience;
    int64_t samples_per_epoch; // at most; 0: every position
    // Last training targets of each user that are not learned from. The policy's RL targets stand there: were
    // they known to the retrieval model, its lists would be far better in training than in use.
    int32_t leave_last;
    float learning_rate, weight_decay;
    float text_dropout; // share of samples without a preference text
    float word_dropout; // of each category name
    float title_words;  // share of texts that also carry words of the target's title
    float text_noise;   // share of texts that describe an item of the history instead: guesses can be wrong
    uint64_t seed;
    // After each epoch: mean loss, validation Recall@10 and NDCG@10 (no text), seconds. NULL: silent.
    void (*on_epoch)(void *context, int32_t epoch, double loss, double recall, double ndcg, double seconds,
                     bool is_best);
    void (*on_batch)(void *context, int64_t done, int64_t total);
    void *context;
} dr_trm_train_options;

dr_trm_train_options dr_trm_train_defaults(void);

// Bytes that training takes at most, counted from sizes alone; what the data set takes is left out.
typedef struct dr_trm_train_memory {
    bool is_host;             // the backend's memory is the host's
    int64_t encoder;          // of the backend: the encoder's weights and passes
    int64_t weights, updates; // the model's; gradient, moments and the best weights
    int64_t items;            // vectors of the catalogue
    int64_t batch, serving;   // activations of an update; of lists, as validation makes them
    int64_t scratch;          // of the ops
    int64_t host_items, host_batch, host_copies, host_scratch; // of the host; copies: for a moment
} dr_trm_train_memory;
// DR_ERR_ARGUMENT, DR_ERR_FORMAT, DR_ERR_UNSUPPORTED: what dr_trm_train refuses before it takes memory.
dr_status dr_trm_train_memory_of(dr_backend *backend, const dr_dataset *dataset,
                                 const dr_trm_train_options *options, dr_trm_train_memory *out);

// Trains on the backend from fresh weights and returns the model of the best validation NDCG@10, ready to
// serve there. Same seed, same bits on the same backend; fresh weights, samples, masks and noise are the same
// on every one.
dr_status dr_trm_train(dr_backend *backend, const dr_dataset *dataset, const dr_trm_train_options *options,
                       dr_trm **out_trm);

// Loss and gradient of one batch of requests without dropout and noise: what the goldens and finite
// differences check. texts: one row (text_dim) a request through dr_trm_query.text. gradient has
// dr_trm_n_params floats of backend memory and is overwritten. DR_ERR_RANGE: a target outside 1 … n_items.
dr_status dr_trm_loss(dr_trm *trm, const dr_trm_query *queries, const int32_t *targets, int64_t n,
                      double *out_loss, float *gradient);
int64_t dr_trm_n_params(const dr_trm *trm);
float *dr_trm_params(dr_trm *trm); // backend memory
// Offset and size of a named parameter in the flat buffer; false when there is none.
bool dr_trm_find_param(const dr_trm *trm, const char *name, int64_t *out_offset, int64_t *out_count);

#ifdef __cplusplus
}
#endif
#endif
