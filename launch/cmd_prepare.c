// `deeprec prepare`: any source → one self-describing data set file.
#include <stdio.h>
#include <string.h>

#include "core/base/log.h"
#include "datasets/source.h"
#include "launch/cli.h"

static const dr_setting options[] = {
    DR_TEXT("out", NULL, "FILE", "data set to write (.h5)"),
    DR_TEXT("input", "", "FOLDER", "folder with the source's usual file names"),
    DR_TEXT("interactions", "", "FILE", "interactions, in place of the usual file"),
    DR_TEXT("items", "", "FILE", "items, in place of the usual file; synthetic: --catalogue"),
    DR_TEXT("name", "", "NAME", "name of the data set; the source's by default"),
    DR_INT("k-core", "0", 0, 1000, "", "drops users and items with fewer interactions, again and again"),
    DR_FLOAT("min-rating", "-1e9", -1e9, 1e9, "", "drops interactions rated lower"),
    DR_INT("max-history", "0", 0, 1000000000, "items",
           "keeps the latest so many of each user, at least 3; 0: all"),
    DR_BOOL("keep-repeats", "false", "keeps interactions of a user with the same item again"),
    DR_INT("bad-row-limit", "-1", -1, 1e15, "rows",
           "refuses a source with more bad rows; -1: one in a hundred"),
    DR_INT("users", "1000", 10, 100000000, "", "synthetic: users"),
    DR_INT("catalogue", "400", 50, 4096, "items", "synthetic: items"),
    DR_FLOAT("length", "26", 5, 1000, "items", "synthetic: mean length of a sequence"),
    DR_INT("seed", "1", 0, 9e15, "", "synthetic: seed"),
};

static dr_status prepare(const dr_cli *cli, const dr_source *source, dr_dataset **out) {
    const dr_config *o = cli->options;
    dr_source_input input = {.dir = dr_config_string(o, "input"),
                             .interactions = dr_config_string(o, "interactions"),
                             .item_file = dr_config_string(o, "items"),
                             .users = (int32_t)dr_config_int(o, "users"),
                             .items = (int32_t)dr_config_int(o, "catalogue"),
                             .mean_length = dr_config_float(o, "length"),
                             .seed = (uint64_t)dr_config_int(o, "seed")};
    dr_build_options build = {.k_core = (int32_t)dr_config_int(o, "k-core"),
                              .min_rating = dr_config_float(o, "min-rating"),
                              .max_history = (int32_t)dr_config_int(o, "max-history"),
                              .keep_repeats = dr_config_bool(o, "keep-repeats"),
                              .bad_rows = dr_config_int(o, "bad-row-limit")};
    const char *name = dr_config_string(o, "name");
    char details[160] = "";
    dr_builder *builder = NULL;
    DR_TRY(dr_builder_create(&builder));
    if (source->read == dr_source_synthetic)
        snprintf(details, sizeof details, "%d users, catalogue of %d, mean length %g, seed %llu", input.users,
                 input.items, input.mean_length, (unsigned long long)input.seed);
    dr_status status = source->read(&input, builder);
    if (status == DR_OK)
        status =
            dr_builder_finish(builder, &build, name[0] ? name : source->name, source->name, details, out);
    dr_builder_destroy(builder);
    return status;
}

static dr_status prepare_command(const dr_cli *cli) {
    const dr_source *source = dr_source_find(cli->args[0]);
    if (!source) {
        fprintf(stderr, "sources:\n");
        for (int32_t i = 0; i < dr_sources_count; i++)
            fprintf(stderr, "  %-10s %s\n", dr_sources[i].name, dr_sources[i].help);
        return dr_cli_usage(cli, "unknown source \"%s\"", cli->args[0]);
    }
    dr_dataset *dataset = NULL;
    DR_TRY(prepare(cli, source, &dataset));
    dr_status status = dr_dataset_save(dataset, dr_config_string(cli->options, "out"));
    if (status == DR_OK)
        printf("%s: %d users, %d items, %lld interactions; %s\n", dr_config_string(cli->options, "out"),
               dataset->n_users, dataset->n_items, (long long)dataset->offsets[dataset->n_users],
               dataset->tie_order);
    dr_dataset_destroy(dataset);
    return status;
}

const dr_command dr_command_prepare = {
    .name = "prepare",
    .summary = "turns a source of interactions into a data set",
    .help =
        "Sources; --input names the folder with their usual files, plain or .gz:\n"
        "  synthetic  a seeded catalogue: needs no files\n"
        "  plain      sequences.txt (\"user item item ...\") and movies.dat, items.jsonl or items.tsv\n"
        "  ml-1m      MovieLens 1M: ratings.dat and movies.dat\n"
        "  ml-100k    MovieLens 100K: u.data, u.item and u.genre\n"
        "  ml-latest  MovieLens latest: ratings.csv and movies.csv\n"
        "  amazon     Amazon reviews 2018 or 2023: NAME.jsonl, .json or .csv, and meta_NAME.jsonl or .json\n"
        "  recbole    atomic files: NAME.inter and NAME.item\n"
        "  authors    the folder of DeepRec's authors: {test,valid,train}_id.jsonl and meta.json\n\n"
        "Writes items with title and categories, sequences in time order, and how they were made, into one "
        "HDF5 file. Interactions of equal time keep the order of the source. datasets/get.sh downloads "
        "known data sets.",
    .arguments = "SOURCE",
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .n_options = sizeof options / sizeof *options,
    .run = prepare_command,
};
