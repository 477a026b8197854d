// Collects items and interactions from a source, filters them, and makes the data set. Sources only read; all
// rules live here.
#ifndef DR_DATASETS_BUILDER_H
#define DR_DATASETS_BUILDER_H

#include <stdbool.h>

#include "core/base/alloc.h"
#include "core/store/dataset.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dr_build_options {
    int32_t k_core;      // users and items with fewer interactions are dropped, again and again; 0 or 1: off
    double min_rating;   // interactions below are dropped
    int32_t max_history; // keeps the latest so many of each user; 0: all
    bool keep_repeats;   // else only the earliest of a user's interactions with the same item stays
    int64_t bad_rows;    // refused beyond so many; -1: one in a hundred, at least 10
} dr_build_options;

typedef struct dr_builder dr_builder;
dr_status dr_builder_create(dr_builder **out_builder);
void dr_builder_destroy(dr_builder *builder);

// An item of the catalogue. Texts are raw: bytes that are no UTF-8 are read as latin-1, HTML entities are
// replaced, white space is collapsed. A key given twice keeps the first title.
dr_status dr_builder_item(dr_builder *builder, const char *key, const char *title, const char *categories);
// An interaction; time orders a user's sequence, ties stay as they come. rating NAN: the source has none.
dr_status dr_builder_event(dr_builder *builder, const char *user, const char *item, double rating,
                           double time);
// A row that can't be read: counted, the first five named.
void dr_builder_bad_row(dr_builder *builder, const char *path, int64_t line, const char *expected,
                        const char *found);
void dr_builder_good_row(dr_builder *builder);

// Filters and builds. name and source end up as attributes, as do the options with `details` of the source
// behind them ("" for none). Items without interactions are left out;
// an item without a title is called "Item KEY"; users with fewer than 3 interactions are dropped (training,
// validation and test need one each). Titles that only differ in case or white space are told apart by a
// number. DR_ERR_FORMAT: too many bad rows; DR_ERR_ARGUMENT: nothing left, or a filter that cannot work.
dr_status dr_builder_finish(dr_builder *builder, const dr_build_options *options, const char *name,
                            const char *source, const char *details, dr_dataset **out_dataset);

#ifdef __cplusplus
}
#endif
#endif
