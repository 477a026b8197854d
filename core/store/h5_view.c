// Virtual datasets: what stands in other files, shown as one.
#include <hdf5.h>
#include <math.h>

#include "core/store/h5_internal.h"

// Of a virtual dataset, in which a missing file is seen.
static hid_t virtual_list(dr_h5_type type) {
    static const double nothing = NAN;
    hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_obj_track_times(list, 0);
    if (type <= DR_H5_F64) H5Pset_fill_value(list, H5T_NATIVE_DOUBLE, &nothing);
    return list;
}

// is_mapped: every part was entered into the list. Closes space and list.
static dr_status virtual_create(dr_h5 *file, const char *name, dr_h5_type type, hid_t space, hid_t list,
                                bool is_mapped) {
    H5Sselect_all(space);
    bool ok = is_mapped && dr_h5_make_groups(file, name);
    hid_t dataset =
        ok ? H5Dcreate2(file->id, name, dr_h5_native_type(type), space, H5P_DEFAULT, list, H5P_DEFAULT) : -1;
    if (dataset < 0) dr_h5_note_reason(file);
    H5Pclose(list);
    H5Sclose(space);
    if (dataset < 0 || H5Dclose(dataset) < 0) return dr_h5_fail(file, "cannot create virtual dataset", name);
    return DR_OK;
}

dr_status dr_h5_write_view(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims,
                           const int64_t *shape, const dr_h5_part *parts, int32_t n_parts) {
    DR_ASSERT(n_dims >= 1 && n_dims <= DR_H5_MAX_DIMS);
    hsize_t dims[DR_H5_MAX_DIMS], start[DR_H5_MAX_DIMS] = {0}, rows[DR_H5_MAX_DIMS];
    int64_t total = 0;
    for (int32_t i = 0; i < n_parts; i++) total += parts[i].rows;
    DR_CHECK(total == shape[0], DR_ERR_ARGUMENT, "%s: view \"%s\" has %lld rows, its parts %lld", file->path,
             name, (long long)shape[0], (long long)total);
    for (int32_t i = 0; i < n_dims; i++) rows[i] = dims[i] = (hsize_t)shape[i];
    hid_t space = H5Screate_simple(n_dims, dims, NULL), list = virtual_list(type);
    bool ok = true;
    for (int32_t i = 0; i < n_parts; start[0] += rows[0], i++) {
        rows[0] = (hsize_t)parts[i].rows;
        hid_t source = H5Screate_simple(n_dims, rows, NULL);
        ok = ok && H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, rows, NULL) >= 0 &&
             H5Pset_virtual(list, space, parts[i].file, parts[i].name, source) >= 0;
        H5Sclose(source);
    }
    return virtual_create(file, name, type, space, list, ok);
}

// A run's values from number `at` of the dataset on, in blocks: what is left of a row, whole rows, the
// beginning of one.
static bool map_run(hid_t list, hid_t space, int32_t n_dims, int64_t columns, const dr_h5_run *run,
                    int64_t at) {
    hsize_t length = (hsize_t)run->length, first = (hsize_t)run->first;
    hid_t source = H5Screate_simple(1, &length, NULL);
    bool ok = source >= 0;
    for (int64_t left = run->count, n; ok && left > 0; left -= n, at += n, first += (hsize_t)n) {
        int64_t column = at % columns;
        bool is_whole = column == 0 && left >= columns;
        n = is_whole ? left / columns * columns : left < columns - column ? left : columns - column;
        hsize_t start[] = {(hsize_t)(at / columns), (hsize_t)column}, count = (hsize_t)n,
                block[] = {(hsize_t)(is_whole ? n / columns : 1), (hsize_t)(is_whole ? columns : n)};
        if (n_dims == 1) start[0] = (hsize_t)at, block[0] = count;
        ok = H5Sselect_hyperslab(source, H5S_SELECT_SET, &first, NULL, &count, NULL) >= 0 &&
             H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, block, NULL) >= 0 &&
             H5Pset_virtual(list, space, run->file, run->name, source) >= 0;
    }
    H5Sclose(source);
    return ok;
}

dr_status dr_h5_write_runs(dr_h5 *file, const char *name, dr_h5_type type, int32_t n_dims,
                           const int64_t *shape, const dr_h5_run *runs, int32_t n_runs) {
    DR_ASSERT(n_dims == 1 || n_dims == 2);
    int64_t columns = shape[n_dims - 1], values = shape[0] * (n_dims == 2 ? columns : 1), total = 0;
    for (int32_t i = 0; i < n_runs; i++) total += runs[i].count;
    DR_CHECK(total == values, DR_ERR_ARGUMENT, "%s: view \"%s\" has %lld values, its runs %lld", file->path,
             name, (long long)values, (long long)total);
    hsize_t dims[2] = {(hsize_t)shape[0], (hsize_t)columns};
    hid_t space = H5Screate_simple(n_dims, dims, NULL), list = virtual_list(type);
    bool ok = true;
    int64_t at = 0;
    for (int32_t i = 0; i < n_runs; at += runs[i].count, i++)
        ok = ok && map_run(list, space, n_dims, columns, &runs[i], at);
    return virtual_create(file, name, type, space, list, ok);
}
