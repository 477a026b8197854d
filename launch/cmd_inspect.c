// deeprec inspect: says what a file or folder is by its content and summarises it.
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/file.h"
#include "core/store/h5_describe.h"
#include "launch/cli.h"
#include "launch/inspect.h"

static const dr_setting options[] = {
    DR_BOOL("all", "false", "lists everything, also what is long"),
};

static int ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

// First byte that is not white space, 0 when there is none near the start.
static int first_byte(const char *path) {
    char head[256] = "";
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    size_t got = fread(head, 1, sizeof head, file);
    fclose(file);
    for (size_t i = 0; i < got; i++)
        if (!strchr(" \t\r\n", head[i]) || head[i] == '\0') return (unsigned char)head[i];
    return 0;
}

static dr_status inspect_file(const char *path, int lists_all) {
    DR_CHECK(dr_file_size(path) >= 0, DR_ERR_IO, "%s: no such file", path);
    if (dr_h5_is_hdf5(path)) return dr_inspect_hdf5(path, lists_all);
    if (ends_with(path, ".safetensors")) return dr_inspect_safetensors(path, lists_all);
    if (ends_with(path, ".jsonl")) return dr_inspect_json_lines(path);
    if (ends_with(path, ".yaml") || ends_with(path, ".yml")) return dr_inspect_settings(path);
    int first = first_byte(path);
    if (ends_with(path, ".json") || first == '{' || first == '[') return dr_inspect_json(path);
    return DR_FAIL(DR_ERR_FORMAT,
                   "%s: %lld bytes of a kind this program does not write (expected HDF5, safetensors, "
                   "JSON, JSON lines or YAML)",
                   path, (long long)dr_file_size(path));
}

// True when the folder has that file.
static int has(const char *folder, const char *name) {
    char *path = NULL;
    if (dr_path_join(&path, folder, name) != DR_OK) return 0;
    int is_there = dr_file_exists(path);
    dr_free(path);
    return is_there;
}

static const char *folder_kind(const char *folder) {
    if (has(folder, "metrics.jsonl") || has(folder, "run.json")) return "run folder";
    if (has(folder, "manifest.json")) return "checkpoint";
    int weights = has(folder, "model.safetensors") || has(folder, "model.safetensors.index.json");
    if (weights && has(folder, "tokenizer.json")) return "policy (Hugging Face folder)";
    if (weights) return "retrieval model";
    return "folder";
}

static int is_ours(const char *name) {
    static const char *const ends[] = {".h5", ".safetensors", ".json", ".jsonl", ".yaml"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (ends_with(name, ends[i])) return 1;
    return 0;
}

static int is_visible(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

static dr_status inspect_entry(const char *folder, const char *name, int lists_all) {
    char *path = NULL;
    DR_TRY(dr_path_join(&path, folder, name));
    dr_status status = DR_OK;
    if (dr_dir_exists(path))
        printf("%s: %s\n", path, folder_kind(path));
    else if (is_ours(name))
        status = inspect_file(path, lists_all);
    else
        printf("%s: %lld bytes\n", path, (long long)dr_file_size(path));
    dr_free(path);
    return status;
}

// Every file is looked at even after one failed; the first failure is what is returned. (scandir hands out
// plain blocks, which is what dr_free frees.)
static dr_status inspect_folder(const char *folder, int lists_all) {
    struct dirent **entries = NULL;
    int n = scandir(folder, &entries, is_visible, alphasort);
    DR_CHECK(n >= 0, DR_ERR_IO, "%s: cannot list the folder", folder);
    dr_status first = DR_OK;
    printf("%s: %s\n", folder, folder_kind(folder));
    for (int i = 0; i < n; i++) {
        dr_status status = inspect_entry(folder, entries[i]->d_name, lists_all);
        if (first == DR_OK) first = status;
        dr_free(entries[i]);
    }
    dr_free(entries);
    return first;
}

static dr_status run(const dr_cli *cli) {
    int lists_all = dr_config_bool(cli->options, "all");
    dr_status first = DR_OK;
    for (int32_t i = 0; i < cli->n_args; i++) {
        const char *path = cli->args[i];
        dr_status status =
            dr_dir_exists(path) ? inspect_folder(path, lists_all) : inspect_file(path, lists_all);
        if (first == DR_OK) first = status;
    }
    return first;
}

const dr_command dr_command_inspect = {
    .name = "inspect",
    .summary = "says what a file or folder is and summarises it",
    .help = "Knows data sets, trajectories, checkpoints and every other HDF5 file, safetensors, tokenizers, "
            "metrics, "
            "configurations, and the folders of models, retrieval models, checkpoints and runs.",
    .arguments = "FILE_OR_FOLDER [...]",
    .min_args = 1,
    .max_args = -1,
    .options = options,
    .n_options = sizeof options / sizeof options[0],
    .run = run,
};
