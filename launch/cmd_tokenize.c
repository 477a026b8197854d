// `deeprec tokenize`: lines of text to lines of token ids, and back.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/base/alloc.h"
#include "core/base/json.h"
#include "core/text/normalize.h"
#include "core/text/tokenizer.h"
#include "launch/cli.h"

static const dr_setting options[] = {
    DR_TEXT("model", NULL, "FOLDER", "folder with tokenizer.json"),
    DR_TEXT("input", "", "FILE", "what to read; standard input when it is not given"),
    DR_BOOL("decode", "false", "ids to text: each line is a JSON array of ids"),
    DR_BOOL("json", "false", "texts are JSON strings, so that they can have line breaks; they must be UTF-8"),
    DR_BOOL("plain", "false", "added tokens in a text are text, not control tokens"),
    DR_BOOL("special", "false", "with the tokens that the file's post-processor puts around a text"),
};

typedef struct job {
    dr_tokenizer *tokenizer;
    const dr_config *options;
    const char *name; // of the input
    int64_t line;
    bool decode, json, plain, special;
    int32_t *ids;
    int64_t n_ids, capacity;
    dr_buf text, out;
} job;

static dr_status put_id(dr_buf *out, int32_t id, bool is_first) {
    char digits[16];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + id % 10);
    while ((id /= 10) > 0);
    if (!is_first) digits[--at] = ',';
    return dr_buf_append(out, digits + at, sizeof digits - at);
}

static dr_status put_ids(job *j) {
    DR_TRY(dr_buf_text(&j->out, "["));
    for (int64_t i = 0; i < j->n_ids; i++) DR_TRY(put_id(&j->out, j->ids[i], i == 0));
    return dr_buf_text(&j->out, "]\n");
}

static dr_status encode_line(job *j, const char *line, size_t length) {
    json_t *text = NULL;
    if (j->json) {
        char where[512];
        snprintf(where, sizeof where, "%s:%lld", j->name, (long long)j->line);
        DR_TRY(dr_json_parse(where, line, length, &text));
        if (!json_is_string(text)) {
            dr_status status =
                DR_FAIL(DR_ERR_FORMAT, "%s: expected a string, found %s", where, dr_json_type_name(text));
            json_decref(text);
            return status;
        }
        line = json_string_value(text);
        length = json_string_length(text);
    }
    j->n_ids = 0;
    dr_status status = j->special ? dr_tokenizer_encode_framed(j->tokenizer, line, length, !j->plain,
                                                               INT64_MAX, &j->ids, &j->n_ids, &j->capacity)
                                  : dr_tokenizer_encode(j->tokenizer, line, length, !j->plain, &j->ids,
                                                        &j->n_ids, &j->capacity);
    json_decref(text);
    return status == DR_OK ? put_ids(j) : status;
}

static dr_status read_ids(job *j, const char *where, const json_t *list) {
    DR_CHECK(json_is_array(list), DR_ERR_FORMAT, "%s: expected an array of ids, found %s", where,
             dr_json_type_name(list));
    int64_t n = (int64_t)json_array_size(list);
    if (n > j->capacity) {
        DR_TRY(dr_grow(&j->ids, "token ids", j->capacity, 2 * n, sizeof *j->ids));
        j->capacity = 2 * n;
    }
    for (int64_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(list, (size_t)i);
        DR_CHECK(json_is_integer(id) && json_integer_value(id) >= 0 &&
                     json_integer_value(id) < dr_tokenizer_size(j->tokenizer),
                 DR_ERR_RANGE, "%s: entry %lld: expected an id from 0 to %d", where, (long long)i,
                 dr_tokenizer_size(j->tokenizer) - 1);
        j->ids[i] = (int32_t)json_integer_value(id);
    }
    j->n_ids = n;
    return DR_OK;
}

static dr_status put_text(job *j, const char *where) {
    if (!j->json) {
        DR_TRY(dr_buf_append(&j->out, j->text.data, j->text.length));
        return dr_buf_text(&j->out, "\n");
    }
    json_t *string = json_stringn(j->text.data, j->text.length);
    DR_CHECK(string, DR_ERR_FORMAT, "%s: the bytes of these ids are no UTF-8, so they are no JSON string",
             where);
    char *text = json_dumps(string, JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
    json_decref(string);
    DR_CHECK(text, DR_ERR_MEMORY, "%s: no memory for a line", where);
    dr_status status = dr_buf_text(&j->out, text);
    json_free_t release;
    json_get_alloc_funcs(NULL, &release);
    release(text);
    return status == DR_OK ? dr_buf_text(&j->out, "\n") : status;
}

static dr_status decode_line(job *j, const char *line, size_t length) {
    json_t *list = NULL;
    char where[512];
    snprintf(where, sizeof where, "%s:%lld", j->name, (long long)j->line);
    DR_TRY(dr_json_parse(where, line, length, &list));
    dr_status status = read_ids(j, where, list);
    json_decref(list);
    dr_buf_clear(&j->text);
    if (status == DR_OK) status = dr_tokenizer_decode(j->tokenizer, j->ids, j->n_ids, &j->text);
    return status == DR_OK ? put_text(j, where) : status;
}

static dr_status flush(job *j) {
    size_t n = fwrite(j->out.data, 1, j->out.length, stdout);
    DR_CHECK(n == j->out.length && fflush(stdout) == 0, DR_ERR_IO, "standard output: %s", strerror(errno));
    dr_buf_clear(&j->out);
    return DR_OK;
}

static dr_status one_line(job *j, const char *line, size_t length) {
    j->line++;
    DR_TRY(j->decode ? decode_line(j, line, length) : encode_line(j, line, length));
    return j->out.length > 1 << 16 ? flush(j) : DR_OK;
}

// Whole lines as they come in; what a last line without its end is, is a line.
static dr_status run_lines(job *j, int file) {
    dr_buf input = {0};
    dr_status status = DR_OK;
    static char block[1 << 16];
    for (ssize_t n = 1; n > 0 && status == DR_OK;) {
        n = read(file, block, sizeof block);
        if (n < 0 && errno == EINTR) {
            n = 1;
            continue;
        }
        if (n < 0) status = DR_FAIL(DR_ERR_IO, "%s: %s", j->name, strerror(errno));
        size_t seen = input.length, begin = 0;
        if (n > 0) status = dr_buf_append(&input, block, (size_t)n);
        for (const char *end; status == DR_OK && n > 0; seen = begin) {
            end = memchr(input.data + seen, '\n', input.length - seen);
            if (!end) break;
            status = one_line(j, input.data + begin, (size_t)(end - input.data) - begin);
            begin = (size_t)(end - input.data) + 1;
        }
        if (status == DR_OK && n == 0 && input.length > 0) status = one_line(j, input.data, input.length);
        if (begin > 0) memmove(input.data, input.data + begin, input.length - begin);
        input.length -= begin;
        if (status == DR_OK) status = flush(j);
    }
    dr_buf_reset(&input);
    return status;
}

static dr_status tokenize_command(const dr_cli *cli) {
    const dr_config *o = cli->options;
    const char *path = dr_config_string(o, "input");
    job j = {.name = path[0] ? path : "standard input",
             .decode = dr_config_bool(o, "decode"),
             .json = dr_config_bool(o, "json"),
             .plain = dr_config_bool(o, "plain"),
             .special = dr_config_bool(o, "special")};
    DR_TRY(dr_tokenizer_load(dr_config_string(o, "model"), &j.tokenizer));
    int file = path[0] ? open(path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    dr_status status = file < 0 ? DR_FAIL(DR_ERR_IO, "%s: %s", path, strerror(errno)) : run_lines(&j, file);
    if (path[0] && file >= 0) close(file);
    dr_tokenizer_destroy(j.tokenizer);
    dr_free(j.ids);
    dr_buf_reset(&j.text);
    dr_buf_reset(&j.out);
    return status;
}

const dr_command dr_command_tokenize = {
    .name = "tokenize",
    .summary = "lines of text to lines of token ids, and back with --decode",
    .help = "Writes a JSON array of ids for each line of text, to standard output. Added tokens in a text "
            "(<|im_end|>) "
            "become their ids. With byte-level BPE, bytes that are no UTF-8 become the tokens of these bytes "
            "and come back as they were; WordPiece reads each as U+FFFD, and --decode gives its normalised "
            "words.",
    .arguments = "",
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = tokenize_command,
};
