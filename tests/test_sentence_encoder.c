// The sentence encoder: embeddings against transformers, rows that are exact, folders that are refused, and a
// retrieval model that is trained with one.
// labels: cpu
#include "tests/check.h"

#include "core/base/json.h"
#include "core/model/text_encoders.h"
#include "core/rec/trm_train.h"
#include "tests/golden.h"
#include "tests/guarded_backend.h"
#include "tests/tiny_catalogue.h"
#include "tests/tiny_sentence.h"

#define GOLDEN check_golden("sentence_bert")
#define BY_MEAN "{\"pooling_mode_cls_token\": false, \"pooling_mode_mean_tokens\": true}"
enum { DIM = 24, TEXTS = 10, MOST_TOKENS = 20 };

static dr_backend *one, *two, *bf16;
static const char *texts[TEXTS]; // of the goldens
static json_t *golden_texts;

static int group_setup(void **state) {
    (void)state;
    if (dr_backend_cpu_create(DR_FP32, 1, &one) != DR_OK ||
        dr_backend_cpu_create(DR_FP32, 2, &two) != DR_OK ||
        dr_backend_cpu_create(DR_BF16, 1, &bf16) != DR_OK ||
        dr_json_load(check_golden("sentence_bert/texts.json"), &golden_texts) != DR_OK)
        return -1;
    const json_t *list = json_object_get(golden_texts, "texts");
    if (json_array_size(list) != TEXTS ||
        json_integer_value(json_object_get(golden_texts, "max_tokens")) != MOST_TOKENS)
        return -1;
    for (size_t i = 0; i < TEXTS; i++) texts[i] = json_string_value(json_array_get(list, i));
    return 0;
}

static int group_teardown(void **state) {
    (void)state;
    dr_backend_cpu_destroy(one);
    dr_backend_cpu_destroy(two);
    dr_backend_cpu_destroy(bf16);
    json_decref(golden_texts);
    return 0;
}

static dr_status open_folder(dr_backend *b, const char *dir, dr_text_encoder **out) {
    dr_text_encoder_choice choice = {.name = dir, .max_tokens = MOST_TOKENS, .query_instruction = ""};
    return dr_text_encoder_open(b, &choice, out);
}

static dr_text_encoder *opened(dr_backend *b, const char *dir) {
    dr_text_encoder *encoder = NULL;
    check_ok(open_folder(b, dir, &encoder));
    return encoder;
}

static const char *folder(tiny_sentence t) {
    const char *dir = check_scratch_dir();
    tiny_sentence_write(dir, &t);
    return dir;
}

static void encode(const dr_text_encoder *encoder, const char *const *of, int64_t n, float *out) {
    check_ok(encoder->ops->encode(encoder, of, n, out));
}

// ---- embeddings ----

static void test_golden(void **state) {
    (void)state;
    static const char *const names[] = {"first", "mean"};
    char golden[1024]; // outlasts the paths of this test
    snprintf(golden, sizeof golden, "%s", GOLDEN);
    const char *dirs[] = {golden, folder((tiny_sentence){.pooling = BY_MEAN})};
    dr_safetensors *file = NULL;
    check_ok(dr_safetensors_open(check_golden("sentence_bert/golden.safetensors"), &file));
    for (int i = 0; i < 2; i++) {
        dr_text_encoder *encoder = opened(one, dirs[i]);
        float *want = read_golden(file, names[i], NULL), got[TEXTS * DIM];
        assert_int_equal(encoder->dim, DIM);
        assert_string_equal(encoder->ops->name, "bert");
        encode(encoder, texts, TEXTS, got);
        check_close(names[i], got, want, (int64_t)TEXTS * DIM, 2e-6, 0);
        dr_free(want);
        dr_text_encoder_destroy(encoder);
    }
    dr_safetensors_close(file);
}

// A text alone, in any order, among so many that they take several passes, with two threads, and on memory
// that the host cannot use.
static void test_rows_are_exact(void **state) {
    (void)state;
    enum { MANY = 500 };
    static const char *many[MANY];
    static float want[TEXTS * DIM], got[MANY * DIM];
    dr_backend guarded = guarded_backend(one);
    dr_backend *backends[] = {one, two, &guarded};
    for (int mean = 0; mean < 2; mean++) {
        const char *dir = folder((tiny_sentence){.pooling = mean ? BY_MEAN : NULL});
        dr_text_encoder *alone = opened(one, dir);
        for (int i = 0; i < TEXTS; i++) encode(alone, texts + i, 1, want + (int64_t)i * DIM);
        for (int i = 0; i < MANY; i++) many[i] = texts[(i * 7 + i / 10) % TEXTS];
        for (size_t b = 0; b < sizeof backends / sizeof *backends; b++) {
            dr_text_encoder *encoder = opened(backends[b], dir);
            memset(got, 0, sizeof got);
            encode(encoder, many, MANY, got);
            for (int i = 0; i < MANY; i++)
                check_same_bits("a text among many", got + (int64_t)i * DIM,
                                want + (int64_t)((i * 7 + i / 10) % TEXTS) * DIM, DIM);
            encode(encoder, texts, 0, NULL);
            assert_string_equal(encoder->digest, alone->digest);
            dr_text_encoder_destroy(encoder);
        }
        dr_text_encoder_destroy(alone);
    }
    guarded_backend_close();
}

// Names with "bert." before them and a pooler's beside them are the same model.
static void test_names(void **state) {
    (void)state;
    float want[TEXTS * DIM], got[TEXTS * DIM];
    dr_text_encoder *plain = opened(one, GOLDEN);
    dr_text_encoder *prefixed =
        opened(one, folder((tiny_sentence){.prefix = "bert.", .added = "cls.predictions.bias"}));
    encode(plain, texts, TEXTS, want);
    encode(prefixed, texts, TEXTS, got);
    check_same_bits("with a prefix", got, want, (int64_t)TEXTS * DIM);
    assert_string_equal(prefixed->digest, plain->digest);
    assert_int_equal(strlen(plain->digest), 16);
    static const tiny_sentence others[] = {
        {.poked = "encoder.layer.1.output.dense.bias", .value = 0.25f},
        {.pooling = BY_MEAN},
        {.from = "\"layer_norm_eps\": 1e-12", .to = "\"layer_norm_eps\": 1e-6"}};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        dr_text_encoder *other = opened(one, folder(others[i]));
        assert_string_not_equal(other->digest, plain->digest);
        dr_text_encoder_destroy(other);
    }
    dr_text_encoder_destroy(plain);
    dr_text_encoder_destroy(prefixed);
}

// ---- queries ----

static void check_query(const dr_text_encoder *encoder, const char *instruction) {
    const char *queries[] = {"a film", "x"};
    char joined[2][256];
    const char *whole[] = {joined[0], joined[1]};
    float got[2 * 64], want[2 * 64];
    assert_true(encoder->dim <= 64);
    for (int i = 0; i < 2; i++) snprintf(joined[i], sizeof joined[i], "%s%s", instruction, queries[i]);
    check_ok(dr_text_encode_queries(encoder, queries, 2, got));
    encode(encoder, whole, 2, want);
    check_same_bits("queries", got, want, 2L * encoder->dim);
}

static void test_queries(void **state) {
    (void)state;
    static const char bge[] = "Represent this sentence for searching relevant passages: ";
    static const struct {
        tiny_sentence folder;
        const char *given, *want;
    } cases[] = {{{0}, "auto", bge},
                 {{.pooling = BY_MEAN}, "auto", ""},
                 {{.prompts = "{\"prompts\": {\"query\": \"query: \"}}"}, "auto", "query: "},
                 {{.prompts = "{\"prompts\": {}}"}, "auto", bge},
                 {{0}, "", ""},
                 {{0}, "find: ", "find: "}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        dr_text_encoder_choice choice = {
            .name = folder(cases[i].folder), .max_tokens = 96, .query_instruction = cases[i].given};
        dr_text_encoder *encoder = NULL;
        check_ok(dr_text_encoder_open(one, &choice, &encoder));
        assert_string_equal(encoder->query_instruction, cases[i].want);
        check_query(encoder, cases[i].want);
        dr_text_encoder_destroy(encoder);
    }
    for (int i = 0; i < 2; i++) {
        dr_text_encoder_choice choice = {
            .name = "hashed-ngram", .dim = 64, .query_instruction = i ? "find: " : "auto"};
        dr_text_encoder *encoder = NULL;
        check_ok(dr_text_encoder_open(NULL, &choice, &encoder));
        check_query(encoder, i ? "find: " : "");
        dr_text_encoder_destroy(encoder);
    }
}

// ---- refused ----

static void test_bad_folders(void **state) {
    (void)state;
    static const struct {
        tiny_sentence folder;
        dr_status status;
        const char *text;
    } cases[] = {
        {{.from = "\"bert\"", .to = "\"roberta\""}, DR_ERR_UNSUPPORTED, "model_type is \"roberta\""},
        {{.from = "\"gelu\"", .to = "\"relu\""}, DR_ERR_UNSUPPORTED, "hidden_act is \"relu\""},
        {{.from = "\"layer_norm_eps\": 1e-12", .to = "\"layer_norm_eps\": 0"},
         DR_ERR_FORMAT,
         "layer_norm_eps"},
        {{.from = "\"is_decoder\": false", .to = "\"is_decoder\": true"}, DR_ERR_UNSUPPORTED, "is_decoder"},
        {{.from = "\"num_attention_heads\": 3", .to = "\"num_attention_heads\": 5"},
         DR_ERR_FORMAT,
         "5 heads"},
        {{.from = "\"num_attention_heads\": 3", .to = "\"num_attention_heads\": \"3\""}, DR_ERR_FORMAT, NULL},
        {{.from = "\"intermediate_size\": 40", .to = "\"intermediate_size\": 41"},
         DR_ERR_FORMAT,
         "intermediate.dense.weight"},
        {{.from = "\"vocab_size\": 292", .to = "\"vocab_size\": 200"}, DR_ERR_FORMAT, "tokenizer has"},
        {{.left_out = "encoder.layer.1.output.LayerNorm.bias"}, DR_ERR_FORMAT, "output.LayerNorm.bias"},
        {{.added = "classifier.weight"}, DR_ERR_UNSUPPORTED, "classifier.weight"},
        {{.poked = "embeddings.token_type_embeddings.weight", .value = NAN}, DR_ERR_NUMERIC, "token_type"},
        {{.pooling = "{\"pooling_mode_max_tokens\": true}"}, DR_ERR_UNSUPPORTED, "pooling_mode_max_tokens"},
        {{.pooling = "{\"pooling_mode_cls_token\": true, \"pooling_mode_mean_tokens\": true}"},
         DR_ERR_UNSUPPORTED,
         "2 ways to pool"},
        {{.pooling = "{}"}, DR_ERR_UNSUPPORTED, "0 ways to pool"},
        {{.pooling = "{\"pooling_mode_mean_tokens\": true, \"include_prompt\": false}"},
         DR_ERR_UNSUPPORTED,
         "include_prompt"},
    };
    dr_text_encoder *encoder = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_error(open_folder(one, folder(cases[i].folder), &encoder), cases[i].status, cases[i].text);
    check_error(open_folder(bf16, GOLDEN, &encoder), DR_ERR_UNSUPPORTED, "fp32 only");
    check_error(open_folder(one, check_golden("sentence_bert/nowhere"), &encoder), DR_ERR_ARGUMENT,
                "known by name: hashed-ngram");
    dr_text_encoder_choice choice = {.name = GOLDEN, .max_tokens = 2, .query_instruction = "auto"};
    check_error(dr_text_encoder_open(one, &choice, &encoder), DR_ERR_ARGUMENT, "2 are special ones");
    choice = (dr_text_encoder_choice){.name = GOLDEN, .max_tokens = MOST_TOKENS, .query_instruction = "auto"};
    check_error(dr_text_encoder_open(one, &choice, &encoder), DR_ERR_ARGUMENT,
                "instruction of queries takes");
    assert_null(encoder);
}

// ---- what sentence-transformers puts beside config.json ----

#define MODULE(type, path) "{\"type\": \"sentence_transformers." type "\", \"path\": \"" path "\"}"
#define TRANSFORMER MODULE("models.Transformer", "")
#define POOLING MODULE("models.Pooling", "1_Pooling")

static void test_bad_neighbours(void **state) {
    (void)state;
    static const struct {
        tiny_sentence folder;
        dr_status status;
        const char *text;
    } cases[] = {
        // modules
        {{.modules = "{}"}, DR_ERR_FORMAT, "modules.json: expected an array"},
        {{.modules = "[]"}, DR_ERR_UNSUPPORTED, "0 modules, expected a Transformer and Pooling"},
        {{.modules = "[{\"type\": 3, \"path\": \"\"}]"}, DR_ERR_FORMAT, "modules.json: 'type'"},
        {{.modules = "[" MODULE("models.Dense", "") "]"}, DR_ERR_UNSUPPORTED, "models.Dense; supported"},
        {{.modules = "[{\"type\": \"mine.Transformer\", \"path\": \"\"}]"},
         DR_ERR_UNSUPPORTED,
         "module 0 is mine.Transformer"},
        {{.modules = "[{\"type\": \"sentence_transformers\", \"path\": \"\"}]"},
         DR_ERR_UNSUPPORTED,
         "module 0 is sentence_transformers;"},
        {{.modules = "[" MODULE("models.Transformer", "0_Transformer") "]"},
         DR_ERR_UNSUPPORTED,
         "path of the Transformer is \"0_Transformer\""},
        {{.modules = "[" TRANSFORMER "]"}, DR_ERR_UNSUPPORTED, "1 modules"},
        {{.modules = "[" TRANSFORMER ", " POOLING "]"},
         DR_ERR_FORMAT,
         "1_Pooling/config.json: there is no such"},
        {{.modules = "[" TRANSFORMER ", " MODULE("models.Normalize", "2_Normalize") "]"},
         DR_ERR_UNSUPPORTED,
         "module 1 is sentence_transformers.models.Normalize"},
        {{.pooling = BY_MEAN,
          .modules = "[" TRANSFORMER ", " POOLING ", " MODULE("models.Dense", "2_Dense") "]"},
         DR_ERR_UNSUPPORTED,
         "module 2 is sentence_transformers.models.Dense"},
        {{.pooling = BY_MEAN,
          .modules = "[" TRANSFORMER ", " POOLING ", " MODULE("models.Normalize", "2_Normalize") "]",
          .normalize = "{\"module_input_name\": \"token_embeddings\"}"},
         DR_ERR_UNSUPPORTED,
         "2_Normalize/config.json: module_input_name is \"token_embeddings\""},
        // pooling
        {{.pooling = "{\"pooling_mode_mean_tokens\": \"yes\"}"}, DR_ERR_FORMAT, "pooling_mode_mean_tokens"},
        {{.pooling = "{\"pooling_mode\": \"max\"}"}, DR_ERR_UNSUPPORTED, "pooling_mode is \"max\""},
        {{.pooling = "{\"pooling_mode\": [\"cls\", \"mean\"]}"}, DR_ERR_UNSUPPORTED, "pooling_mode: 2 ways"},
        {{.pooling = "{\"pooling_mode\": 1}"}, DR_ERR_FORMAT, "pooling_mode: expected a string"},
        {{.pooling = "{\"pooling_mode_mean_tokens\": true, \"word_embedding_dimension\": 25}"},
         DR_ERR_FORMAT,
         "word_embedding_dimension is 25, hidden_size of config.json 24"},
        {{.pooling = "{\"pooling_mode_mean_tokens\": true, \"weights\": 1}"},
         DR_ERR_UNSUPPORTED,
         "1_Pooling/config.json: weights is not supported"},
        {{.pooling = "{\"pooling_mode_cls_token\": true, \"include_prompt\": false}"},
         DR_ERR_UNSUPPORTED,
         "include_prompt"},
        // the transformer
        {{.transformer = "[]"}, DR_ERR_FORMAT, "sentence_bert_config.json: expected an object"},
        {{.transformer = "{\"max_seq_length\": 0}"}, DR_ERR_FORMAT, "max_seq_length"},
        {{.transformer = "{\"max_seq_length\": \"256\"}"}, DR_ERR_FORMAT, "max_seq_length"},
        {{.transformer = "{\"max_seq_length\": 2}"}, DR_ERR_ARGUMENT, "2 are special ones"},
        {{.transformer = "{\"do_lower_case\": 1}"}, DR_ERR_FORMAT, "do_lower_case"},
        {{.transformer = "{\"do_lower_case\": true}"}, DR_ERR_UNSUPPORTED, "do_lower_case is true"},
        {{.transformer = "{\"query_length\": 32}"}, DR_ERR_UNSUPPORTED, "query_length is not supported"},
        {{.transformer = "{\"tokenizer_args\": {\"model_max_length\": 8}}"},
         DR_ERR_UNSUPPORTED,
         "tokenizer_args is not supported"},
        {{.transformer = "{\"transformer_task\": \"fill-mask\"}"},
         DR_ERR_UNSUPPORTED,
         "transformer_task is \"fill-mask\""},
        {{.transformer = "{\"modality_config\": {\"text\": {\"method\": \"forward\", "
                         "\"method_output_name\": \"logits\"}}}"},
         DR_ERR_UNSUPPORTED,
         "method_output_name is \"logits\""},
        {{.tokenizer = "{\"model_max_length\": 0}"}, DR_ERR_FORMAT, "model_max_length"},
        // prompts
        {{.prompts = "{\"prompts\": {\"query\": 1}}"}, DR_ERR_FORMAT, "query"},
        {{.prompts = "{\"prompts\": {\"passage\": \"passage: \"}}"},
         DR_ERR_UNSUPPORTED,
         "prompts.passage is \"passage: \""},
        {{.prompts = "{\"prompts\": {\"all\": \"a: \"}, \"default_prompt_name\": \"all\"}"},
         DR_ERR_UNSUPPORTED,
         "default_prompt_name is \"all\""},
        {{.prompts = "{\"model_type\": \"SparseEncoder\"}"}, DR_ERR_UNSUPPORTED, "model_type is"},
        {{.prompts = "{\"truncate_dim\": 8}"}, DR_ERR_UNSUPPORTED, "truncate_dim is not supported"},
    };
    dr_text_encoder *encoder = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        check_error(open_folder(one, folder(cases[i].folder), &encoder), cases[i].status, cases[i].text);
    assert_null(encoder);
}

// A folder as sentence-transformers writes it, in its old and its new words, pooled where modules.json says.
static void test_neighbours(void **state) {
    (void)state;
    static const tiny_sentence folders[] = {
        {.pooling = "{\"word_embedding_dimension\": 24, \"pooling_mode_cls_token\": false, "
                    "\"pooling_mode_mean_tokens\": true, \"pooling_mode_max_tokens\": false}",
         .modules = "[" TRANSFORMER ", " POOLING ", " MODULE("models.Normalize", "2_Normalize") "]",
         .transformer = "{\"max_seq_length\": 96, \"do_lower_case\": false}",
         .tokenizer = "{\"model_max_length\": 3}", // the transformer's own counts
         .prompts = "{\"__version__\": {\"pytorch\": \"1.8.1\"}}"},
        {.pooling = "{\"embedding_dimension\": 24, \"pooling_mode\": \"mean\", \"include_prompt\": true}",
         .modules = "[" MODULE("base.modules.transformer.Transformer", "") ", " MODULE(
             "sentence_transformer.modules.pooling.Pooling", "1_Pooling") "]",
         .transformer = "{\"transformer_task\": \"feature-extraction\", \"modality_config\": {\"text\": "
                        "{\"method\": \"forward\", \"method_output_name\": \"last_hidden_state\"}}, "
                        "\"module_output_name\": \"token_embeddings\"}",
         .tokenizer = "{\"model_max_length\": 1000000000000000019884624838656}",
         .normalize = "{\"module_input_name\": \"sentence_embedding\"}",
         .prompts = "{\"model_type\": \"SentenceTransformer\", \"default_prompt_name\": null, "
                    "\"prompts\": {\"query\": \"\", \"document\": \"\"}}"}};
    dr_safetensors *file = NULL;
    check_ok(dr_safetensors_open(check_golden("sentence_bert/golden.safetensors"), &file));
    float *want = read_golden(file, "mean", NULL), got[TEXTS * DIM];
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        dr_text_encoder *encoder = opened(one, folder(folders[i]));
        encode(encoder, texts, TEXTS, got);
        check_close("pooled by the mean", got, want, (int64_t)TEXTS * DIM, 2e-6, 0);
        assert_string_equal(encoder->query_instruction, "");
        dr_text_encoder_destroy(encoder);
    }
    dr_free(want);
    dr_safetensors_close(file);
}

// The folder's limit of tokens: of the transformer, else of the tokenizer; the end of longer texts is left
// out, whatever it is.
static void test_limits(void **state) {
    (void)state;
    static const tiny_sentence folders[] = {
        {.transformer = "{\"max_seq_length\": 8}"},
        {.tokenizer = "{\"model_max_length\": 8}"},
        {.transformer = "{\"max_seq_length\": null}", .tokenizer = "{\"model_max_length\": 8}"}};
    const char *longest = texts[TEXTS - 1];
    float want[DIM], whole[DIM], got[DIM];
    dr_text_encoder *eight = NULL, *all = opened(one, GOLDEN);
    check_ok(dr_text_encoder_open(
        one, &(dr_text_encoder_choice){.name = GOLDEN, .max_tokens = 8, .query_instruction = ""}, &eight));
    encode(eight, &longest, 1, want);
    encode(all, &longest, 1, whole);
    assert_memory_not_equal(want, whole, sizeof want);
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        dr_text_encoder *encoder = opened(one, folder(folders[i]));
        encode(encoder, &longest, 1, got);
        check_same_bits("a text that is cut", got, want, DIM);
        dr_text_encoder_destroy(encoder);
    }
    dr_text_encoder_destroy(eight);
    dr_text_encoder_destroy(all);
}

// ---- a retrieval model with one ----

static dr_trm *trained(const dr_dataset *d, const char *encoder_dir) {
    dr_trm_train_options o = dr_trm_train_defaults();
    dr_trm *trm = NULL;
    o.config.hidden = 16;
    o.config.inner = 32;
    o.config.n_experts = 2;
    o.batch = 8;
    o.max_epochs = 3;
    snprintf(o.config.text_encoder, sizeof o.config.text_encoder, "%s", encoder_dir);
    check_ok(dr_trm_train(one, d, &o, &trm));
    return trm;
}

// Item vectors are the encoder's, and lists answer to a preference that went through it as a query.
static void check_retrieval(const dr_dataset *d, dr_trm *trm, dr_hit hits[5]) {
    const dr_text_encoder *encoder = dr_trm_text_encoder(trm);
    char text[256];
    const char *item = text, *wish = "Action, War";
    float vector[DIM], query[DIM];
    dr_example e;
    for (int32_t i = 1; i <= d->n_items; i++) {
        snprintf(text, sizeof text, "%s, %s", d->titles[i], d->categories[i]);
        encode(encoder, &item, 1, vector);
        check_close("an item's vector", dr_trm_text_vectors(trm) + (int64_t)i * DIM, vector, DIM, 1e-6, 0);
    }
    check_ok(dr_text_encode_queries(encoder, &wish, 1, query));
    assert_true(dr_dataset_example(d, 0, DR_SPLIT_TEST, &e));
    dr_trm_query request = {e.history, e.n_history, query};
    check_ok(dr_trm_top_k(trm, &request, 1, 5, true, hits));
}

static void test_retrieval_model(void **state) {
    (void)state;
    dr_dataset d = tiny_catalogue();
    const char *home = folder((tiny_sentence){0}), *moved = folder((tiny_sentence){.prefix = "bert."}),
               *dir = check_scratch_dir(), *hashed_dir = check_scratch_dir();
    dr_trm *trm = trained(&d, home), *again = trained(&d, home), *loaded = NULL, *hashed = NULL;
    const dr_trm_config *c = dr_trm_config_of(trm);
    dr_hit want[5], got[5];
    assert_int_equal(c->text_dim, DIM);
    assert_string_equal(c->text_encoder, home);
    assert_string_equal(c->text_digest, dr_trm_text_encoder(trm)->digest);
    assert_true(strncmp(c->query_instruction, "Represent this sentence", 23) == 0);
    check_same_bits("weights of two runs", dr_trm_params(again), dr_trm_params(trm), dr_trm_n_params(trm));
    check_retrieval(&d, trm, want);
    check_ok(dr_trm_save(trm, dir));

    for (int i = 0; i < 2; i++) { // where it was, and elsewhere
        check_ok(dr_trm_load_with(two, dir, i ? moved : "", &loaded));
        check_retrieval(&d, loaded, got);
        assert_memory_equal(got, want, sizeof want);
        assert_string_equal(dr_trm_text_encoder(loaded)->query_instruction, c->query_instruction);
        dr_trm_destroy(loaded);
    }
    loaded = NULL;
    tiny_sentence_write(moved, &(tiny_sentence){.poked = "embeddings.LayerNorm.weight", .value = 1.5f});
    check_error(dr_trm_load_with(one, dir, moved, &loaded), DR_ERR_ARGUMENT, "another text encoder");
    check_error(dr_trm_load_with(one, dir, check_golden("sentence_bert/nowhere"), &loaded), DR_ERR_ARGUMENT,
                "say where");
    check_error(dr_trm_load_with(one, dir, check_golden("lm_llama"), &loaded), DR_ERR_UNSUPPORTED,
                "model_type");
    tiny_sentence_write(home, &(tiny_sentence){.poked = "embeddings.LayerNorm.weight", .value = 1.5f});
    check_error(dr_trm_load(one, dir, &loaded), DR_ERR_ARGUMENT, "another text encoder");
    assert_null(loaded);

    hashed = trained(&d, "hashed-ngram");
    check_ok(dr_trm_save(hashed, hashed_dir));
    check_error(dr_trm_load_with(one, hashed_dir, moved, &loaded), DR_ERR_ARGUMENT, "hashed-ngram");
    check_ok(dr_trm_load(one, hashed_dir, &loaded));
    assert_string_equal(dr_trm_text_encoder(loaded)->ops->name, "hashed-ngram");
    dr_trm_destroy(loaded);
    dr_trm_destroy(hashed);
    dr_trm_destroy(trm);
    dr_trm_destroy(again);
    tiny_catalogue_reset(&d);
}

// What config.json cannot hold is refused before anything is trained.
static void test_texts_of_config(void **state) {
    (void)state;
    dr_dataset d = tiny_catalogue();
    dr_trm *trm = NULL;
    for (int i = 0; i < 2; i++) {
        dr_trm_train_options o = dr_trm_train_defaults();
        snprintf(i ? o.config.query_instruction : o.config.text_encoder, 8, "a\xFF");
        check_error(dr_trm_train(one, &d, &o, &trm), DR_ERR_ARGUMENT,
                    i ? "instruction of queries \"a" : "text encoder's name \"a");
    }
    assert_null(trm);
    tiny_catalogue_reset(&d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),          cmocka_unit_test(test_rows_are_exact),
        cmocka_unit_test(test_names),           cmocka_unit_test(test_queries),
        cmocka_unit_test(test_bad_folders),     cmocka_unit_test(test_retrieval_model),
        cmocka_unit_test(test_texts_of_config), cmocka_unit_test(test_bad_neighbours),
        cmocka_unit_test(test_neighbours),      cmocka_unit_test(test_limits),
    };
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
