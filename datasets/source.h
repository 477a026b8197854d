// The table of sources: each reads its files into the builder.
#ifndef DR_DATASETS_SOURCE_H
#define DR_DATASETS_SOURCE_H

#include "datasets/builder.h"

#ifdef __cplusplus
extern "C" {
#endif

// Where to read from; a source takes what it needs. Texts are borrowed, "" when not given.
typedef struct dr_source_input {
    const char *dir;          // folder with the source's usual file names
    const char *interactions; // file, in place of the usual name
    const char *item_file;    // likewise
    int32_t users, items;     // synthetic
    double mean_length;       // synthetic
    uint64_t seed;            // synthetic
} dr_source_input;

typedef struct dr_source {
    const char *name, *help;
    dr_status (*read)(const dr_source_input *input, dr_builder *builder);
} dr_source;

extern const dr_source dr_sources[];
extern const int32_t dr_sources_count;
const dr_source *dr_source_find(const char *name); // NULL when unknown

dr_status dr_source_synthetic(const dr_source_input *input, dr_builder *builder);
dr_status dr_source_plain(const dr_source_input *input, dr_builder *builder);
dr_status dr_source_movielens_1m(const dr_source_input *input, dr_builder *builder);
dr_status dr_source_movielens_100k(const dr_source_input *input, dr_builder *builder);
dr_status dr_source_movielens_latest(const dr_source_input *input, dr_builder *builder);
dr_status dr_source_recbole(const dr_source_input *input, dr_builder *builder);
dr_status dr_source_amazon(const dr_source_input *input, dr_builder *builder);
dr_status dr_source_authors(const dr_source_input *input, dr_builder *builder);

#ifdef __cplusplus
}
#endif
#endif
