// The list itself.
#include "datasets/source.h"

#include <string.h>

const dr_source dr_sources[] = {
    {"synthetic", "a seeded catalogue with genres, series and drifting tastes: needs no files",
     dr_source_synthetic},
    {"plain",
     "one line a user, \"user item item ...\", and an item file (id::title::a|b, JSON lines, or "
     "tab-separated)",
     dr_source_plain},
    {"ml-1m", "MovieLens 1M: ratings.dat and movies.dat", dr_source_movielens_1m},
    {"ml-100k", "MovieLens 100K: u.data, u.item and u.genre", dr_source_movielens_100k},
    {"ml-latest", "MovieLens latest: ratings.csv and movies.csv", dr_source_movielens_latest},
    {"amazon", "Amazon reviews 2018 or 2023: JSON lines of reviews and of metadata, plain or .gz",
     dr_source_amazon},
    {"recbole", "RecBole atomic files: one .inter and one .item", dr_source_recbole},
    {"authors",
     "the folder of DeepRec's authors: test_id.jsonl, valid_id.jsonl, train_id.jsonl (whole sequences are "
     "put "
     "together from their windows) and meta.json",
     dr_source_authors},
};
const int32_t dr_sources_count = (int32_t)(sizeof dr_sources / sizeof *dr_sources);

const dr_source *dr_source_find(const char *name) {
    for (int32_t i = 0; i < dr_sources_count; i++)
        if (strcmp(dr_sources[i].name, name) == 0) return &dr_sources[i];
    return NULL;
}
