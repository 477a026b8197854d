// `deeprec trm train`: the retrieval model of a data set.
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/host_memory.h"
#include "core/base/log.h"
#include "core/base/progress.h"
#include "core/learn/memory_plan.h"
#include "core/model/text_encoders.h"
#include "core/rec/trm_train.h"
#include "launch/backend_choice.h"
#include "launch/cli.h"

static const dr_setting options[] = {
    DR_TEXT("dataset", NULL, "FILE", "prepared data set (.h5)"),
    DR_TEXT("out", NULL, "FOLDER", "folder of the trained model"),
    DR_INT("epochs", "30", 1, 100000, "epochs", "at most"),
    DR_INT("patience", "4", 1, 1000, "epochs", "epochs without a better validation NDCG@10 before it stops"),
    DR_INT("batch", "512", 1, 65536, "samples", "samples of one update"),
    DR_INT("samples", "0", 0, 1e12, "samples", "samples of one epoch at most; 0: every training position"),
    DR_FLOAT("rate", "0.001", 0, 1, "", "learning rate of AdamW"),
    DR_FLOAT("dropout", "0.2", 0, 0.95, "", "dropout of the transformer"),
    DR_FLOAT("text-dropout", "0.5", 0, 1, "", "share of samples without a preference text"),
    DR_FLOAT("word-dropout", "0.3", 0, 1, "", "dropout of each category in a preference text"),
    DR_FLOAT("title-words", "0.25", 0, 1, "", "share of preference texts with words of the title"),
    DR_FLOAT("text-noise", "0", 0, 1, "",
             "share of preference texts that describe an item of the history in the target's place"),
    DR_INT("leave-last", "1", 0, 1000, "targets",
           "last training targets of each user that are left to the policy's training"),
    DR_INT("hidden", "128", 8, 256, "", "width"),
    DR_INT("experts", "8", 1, 64, "", "experts of the text adaptor"),
    DR_INT("text-dim", "1024", 8, 65536, "", "width of text vectors of hashed-ngram; a folder has its own"),
    DR_INT("max-history", "20", 2, 64, "items", "items of the history, an even number"),
    DR_FLOAT("temperature", "0.07", 1e-4, 10, "", "of the softmax over cosines"),
    DR_TEXT("text-encoder", "hashed-ngram", "NAME",
            "hashed-ngram, or the folder of a sentence encoder of the BERT family (Hugging Face layout)"),
    DR_TEXT("query-instruction", DR_QUERY_INSTRUCTION_AUTO, "TEXT",
            "stands in front of preference texts; auto: nothing for hashed-ngram, for a folder its "
            "prompts.query or, where it pools by [CLS], the sentence of BGE"),
    DR_INT("max-text-tokens", "256", 8, 65536, "tokens", "of a text at most, for a folder"),
    DR_CHOICE("precision", "fp32", "fp32|bf16",
              "operands of matrix products in training; the model serves in fp32"),
    DR_CHOICE("backend", "cpu", DR_BACKEND_CHOICES, "what trains the model"),
    DR_INT("threads", "0", 0, 1024, "", "processor threads, 0: all"),
    DR_INT("seed", "1", 0, 9e15, "", "seed"),
};

static void on_epoch(void *context, int32_t epoch, double loss, double recall, double ndcg, double seconds,
                     bool is_best) {
    dr_progress_finish(context);
    dr_info("epoch %d: loss %.4f, validation Recall@10 %.4f NDCG@10 %.4f, %.1f s%s", epoch, loss, recall,
            ndcg, seconds, is_best ? ", best so far" : "");
}

static void on_batch(void *context, int64_t done, int64_t total) {
    dr_progress *progress = context;
    if (progress->total != total || done < progress->done)
        *progress = dr_progress_start("training", "samples", total);
    dr_progress_update(progress, done);
}

static dr_trm_train_options read_options(const dr_config *o) {
    dr_trm_train_options t = dr_trm_train_defaults();
    t.max_epochs = (int32_t)dr_config_int(o, "epochs");
    t.patience = (int32_t)dr_config_int(o, "patience");
    t.batch = (int32_t)dr_config_int(o, "batch");
    t.samples_per_epoch = dr_config_int(o, "samples");
    t.learning_rate = (float)dr_config_float(o, "rate");
    t.text_dropout = (float)dr_config_float(o, "text-dropout");
    t.word_dropout = (float)dr_config_float(o, "word-dropout");
    t.title_words = (float)dr_config_float(o, "title-words");
    t.text_noise = (float)dr_config_float(o, "text-noise");
    t.leave_last = (int32_t)dr_config_int(o, "leave-last");
    t.seed = (uint64_t)dr_config_int(o, "seed");
    t.config.dropout = (float)dr_config_float(o, "dropout");
    t.config.hidden = (int32_t)dr_config_int(o, "hidden");
    t.config.n_experts = (int32_t)dr_config_int(o, "experts");
    t.config.text_dim = (int32_t)dr_config_int(o, "text-dim");
    t.config.max_history = (int32_t)dr_config_int(o, "max-history");
    t.config.temperature = (float)dr_config_float(o, "temperature");
    t.config.max_text_tokens = (int32_t)dr_config_int(o, "max-text-tokens");
    return t;
}

static dr_status copy_text(const dr_config *o, const char *key, size_t size, char *out) {
    const char *text = dr_config_string(o, key);
    DR_CHECK(strlen(text) < size, DR_ERR_ARGUMENT, "--%s has %zu bytes, at most %zu", key, strlen(text),
             size - 1);
    memcpy(out, text, strlen(text) + 1);
    return DR_OK;
}

// A folder by its absolute path: the model then opens from wherever it is used.
static dr_status copy_encoder(const dr_config *o, size_t size, char *out) {
    const char *text = dr_config_string(o, "text-encoder");
    DR_TRY(copy_text(o, "text-encoder", size, out));
    char whole[PATH_MAX];
    if (!dr_text_encoder_is_folder(text)) return DR_OK;
    if (!realpath(text, whole)) return DR_OK; // refused where it is opened, with the names that are known
    DR_CHECK(strlen(whole) < size, DR_ERR_ARGUMENT,
             "--text-encoder %s: its absolute path has %zu bytes, at most %zu", text, strlen(whole),
             size - 1);
    memcpy(out, whole, strlen(whole) + 1);
    return DR_OK;
}

// What training will take, in one line, before it takes it.
static dr_status plan_memory(const dr_backend_choice *choice, dr_backend *b, const dr_dataset *dataset,
                             const dr_trm_train_options *train) {
    dr_memory_place place = {.n_workers = 1, .n_on_host = 1};
    dr_memory_plan plan;
    dr_buf line = {0};
    int64_t host_total = 0;
    DR_TRY(b->ops->memory_free(b, &place.free, &place.total));
    DR_TRY(dr_host_memory(&place.host_free, &host_total));
    DR_TRY(dr_memory_plan_make_retrieval(b, dataset, train, dr_backend_reserve(choice, b, NULL), &plan));
    dr_status status = dr_memory_plan_print(&plan, &place, &line);
    if (status == DR_OK) dr_info("memory of the training: %s", line.data);
    dr_buf_reset(&line);
    return status == DR_OK ? dr_memory_plan_check(&plan, &place) : status;
}

static dr_status trm_train_command(const dr_cli *cli) {
    const dr_config *o = cli->options;
    dr_trm_train_options train = read_options(o);
    dr_progress progress = {0};
    dr_dataset *dataset = NULL;
    dr_backend *backend = NULL;
    dr_trm *trm = NULL;
    train.on_epoch = on_epoch;
    train.on_batch = on_batch;
    train.context = &progress;
    DR_TRY(copy_encoder(o, sizeof train.config.text_encoder, train.config.text_encoder));
    DR_TRY(copy_text(o, "query-instruction", sizeof train.config.query_instruction,
                     train.config.query_instruction));
    DR_TRY(dr_dataset_load(dr_config_string(o, "dataset"), &dataset));
    dr_status status;
    const dr_backend_choice choice = dr_backend_choice_of(o, "precision");
    DR_TRY_GOTO(status, dr_backend_choose(&choice, &backend), destroy_dataset);
    DR_TRY_GOTO(status, plan_memory(&choice, backend, dataset, &train), destroy_backend);
    DR_TRY_GOTO(status, dr_trm_train(backend, dataset, &train, &trm), destroy_backend);
    status = dr_trm_save(trm, dr_config_string(o, "out"));
    if (status == DR_OK) dr_info("retrieval model written to %s", dr_config_string(o, "out"));
    dr_trm_destroy(trm);
destroy_backend:
    dr_backend_destroy(backend);
destroy_dataset:
    dr_dataset_destroy(dataset);
    return status;
}

const dr_command dr_command_trm_train = {
    .name = "trm train",
    .summary = "trains the preference-aware retrieval model",
    .help = "Full-softmax training on every position of the training sequences, with preference texts made "
            "from the target's "
            "categories (and at times words of its title). Keeps the weights of the best validation NDCG@10 "
            "without text.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = trm_train_command,
};
