// Recursion by link name with calls that mean the same in HDF5 1.10 to 1.14. The library's own error print is
// off while the file is walked: what it says is put into ours.
#include "core/store/h5_describe.h"

#include <stdio.h>
#include <string.h>

#include <hdf5.h>

#include "core/base/alloc.h"
#include "core/base/file.h"

enum { MAX_DEPTH = 16, MAX_OBJECTS = 100000, MAX_NAME = 512, MAX_PATH = 2048, MAX_TEXT = 400, MAX_SHOWN = 8 };

typedef struct walk {
    const char *file;
    const dr_h5_visitor *visitor;
    int32_t n_objects;
    const char *path; // of the object whose attributes are walked
    dr_status status; // of the attribute callback
} walk;

int dr_h5_is_hdf5(const char *path) {
    static const unsigned char signature[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    unsigned char head[8] = {0};
    FILE *file = fopen(path, "rb");
    if (!file) return 0;
    size_t got = fread(head, 1, sizeof head, file);
    fclose(file);
    return got == sizeof head && memcmp(head, signature, sizeof head) == 0;
}

static dr_status damaged(const walk *w, const char *path, const char *what) {
    return DR_FAIL(DR_ERR_FORMAT, "%s: %s: HDF5 cannot read %s", w->file, path, what);
}

static void type_name(hid_t type, char out[24]) {
    size_t bits = H5Tget_size(type) * 8;
    switch (H5Tget_class(type)) {
    case H5T_INTEGER:
        snprintf(out, 24, "%sint%zu", H5Tget_sign(type) == H5T_SGN_NONE ? "u" : "", bits);
        return;
    case H5T_FLOAT:
        snprintf(out, 24, "float%zu", bits);
        return;
    case H5T_STRING:
        snprintf(out, 24, "text");
        return;
    case H5T_ENUM:
        snprintf(out, 24, "enum%zu", bits);
        return;
    case H5T_COMPOUND:
        snprintf(out, 24, "record");
        return;
    case H5T_VLEN:
        snprintf(out, 24, "lists");
        return;
    default:
        snprintf(out, 24, "other");
        return;
    }
}

static void layout_text(hid_t dataset, char out[64]) {
    hid_t list = H5Dget_create_plist(dataset);
    if (list < 0) return;
    int used = 0;
    switch (H5Pget_layout(list)) {
    case H5D_COMPACT:
        snprintf(out, 64, "compact");
        break;
    case H5D_CONTIGUOUS:
        snprintf(out, 64, "contiguous");
        break;
    case H5D_VIRTUAL:
        snprintf(out, 64, "virtual");
        break;
    case H5D_CHUNKED: {
        hsize_t chunk[8] = {0};
        int n = H5Pget_chunk(list, 8, chunk), n_filters = H5Pget_nfilters(list);
        used = snprintf(out, 64, "chunks of ");
        for (int i = 0; i < n && i < 8 && used < 60; i++)
            used += snprintf(out + used, 64 - (size_t)used, "%s%llu", i ? " x " : "",
                             (unsigned long long)chunk[i]);
        for (int i = 0; i < n_filters && used < 60; i++) {
            unsigned flags = 0;
            size_t n_values = 0;
            char name[32] = "";
            H5Pget_filter2(list, (unsigned)i, &flags, &n_values, NULL, sizeof name, name, NULL);
            used += snprintf(out + used, 64 - (size_t)used, ", %s", name);
        }
        break;
    }
    default:
        break;
    }
    H5Pclose(list);
}

// Text of an attribute of strings: the first one, and how many there are.
static dr_status string_attribute(hid_t attribute, hid_t type, int64_t n, char out[MAX_TEXT]) {
    if (H5Tis_variable_str(type) > 0) {
        char **values = NULL;
        DR_TRY(dr_alloc(&values, "attribute", n, sizeof *values));
        hid_t memory = H5Tcopy(H5T_C_S1), space = H5Aget_space(attribute);
        H5Tset_size(memory, H5T_VARIABLE);
        H5Tset_cset(memory, H5Tget_cset(type));
        int is_read = H5Aread(attribute, memory, values) >= 0;
        if (is_read) snprintf(out, MAX_TEXT, "%s", values[0] ? values[0] : "");
        if (is_read) H5Dvlen_reclaim(memory, space, H5P_DEFAULT, values);
        H5Sclose(space);
        H5Tclose(memory);
        dr_free(values);
        return is_read ? DR_OK : DR_ERR_FORMAT;
    }
    size_t size = H5Tget_size(type);
    char *bytes = NULL;
    if (size > (size_t)1 << 24) return DR_ERR_FORMAT;
    DR_TRY(dr_alloc(&bytes, "attribute", n, size + 1));
    int is_read = H5Aread(attribute, type, bytes) >= 0;
    if (is_read) snprintf(out, MAX_TEXT, "%.*s", (int)(size < MAX_TEXT ? size : MAX_TEXT - 1), bytes);
    dr_free(bytes);
    return is_read ? DR_OK : DR_ERR_FORMAT;
}

static dr_status number_attribute(hid_t attribute, hid_t type, int64_t n, char out[MAX_TEXT]) {
    int is_float = H5Tget_class(type) == H5T_FLOAT, is_unsigned = H5Tget_sign(type) == H5T_SGN_NONE, used = 0;
    union {
        double number;
        int64_t integer;
    } *values = NULL;
    DR_TRY(dr_alloc(&values, "attribute", n, sizeof *values));
    hid_t memory = is_float ? H5T_NATIVE_DOUBLE : is_unsigned ? H5T_NATIVE_UINT64 : H5T_NATIVE_INT64;
    dr_status status = H5Aread(attribute, memory, values) >= 0 ? DR_OK : DR_ERR_FORMAT;
    for (int64_t i = 0; status == DR_OK && i < n && i < MAX_SHOWN; i++) {
        const char *gap = i ? ", " : "";
        if (is_float)
            used += snprintf(out + used, MAX_TEXT - (size_t)used, "%s%.9g", gap, values[i].number);
        else if (is_unsigned)
            used += snprintf(out + used, MAX_TEXT - (size_t)used, "%s%llu", gap,
                             (unsigned long long)values[i].integer);
        else
            used +=
                snprintf(out + used, MAX_TEXT - (size_t)used, "%s%lld", gap, (long long)values[i].integer);
    }
    dr_free(values);
    return status;
}

static dr_status attribute_text(hid_t attribute, char out[MAX_TEXT]) {
    hid_t type = H5Aget_type(attribute), space = H5Aget_space(attribute);
    dr_status status = DR_ERR_FORMAT;
    out[0] = '\0';
    if (type >= 0 && space >= 0) {
        int64_t n = H5Sget_simple_extent_npoints(space);
        H5T_class_t class_of = H5Tget_class(type);
        if (n < 0 || n > 1 << 20)
            status = DR_ERR_FORMAT;
        else if (n == 0)
            status = DR_OK;
        else if (class_of == H5T_STRING)
            status = string_attribute(attribute, type, n, out);
        else if (class_of == H5T_INTEGER || class_of == H5T_FLOAT)
            status = number_attribute(attribute, type, n, out);
        else {
            snprintf(out, MAX_TEXT, "(of another type)");
            status = DR_OK;
        }
        size_t used = strlen(out);
        int64_t shown = class_of == H5T_STRING ? 1 : MAX_SHOWN;
        if (status == DR_OK && n > shown && used < MAX_TEXT - 32)
            snprintf(out + used, MAX_TEXT - used, " … (%lld values)", (long long)n);
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return status;
}

static herr_t visit_attribute(hid_t location, const char *name, const H5A_info_t *info, void *user) {
    (void)info;
    walk *w = user;
    char text[MAX_TEXT];
    hid_t attribute = H5Aopen(location, name, H5P_DEFAULT);
    w->status = attribute < 0 ? DR_ERR_FORMAT : attribute_text(attribute, text);
    if (attribute >= 0) H5Aclose(attribute);
    if (w->status == DR_ERR_FORMAT)
        w->status = damaged(w, w->path, name);
    else if (w->status == DR_OK)
        w->status = w->visitor->attribute(w->visitor->context, w->path, name, text);
    return w->status == DR_OK ? 0 : -1;
}

static dr_status visit_attributes(walk *w, hid_t object, const char *path) {
    hsize_t at = 0;
    w->path = path;
    w->status = DR_OK;
    herr_t result = H5Aiterate2(object, H5_INDEX_NAME, H5_ITER_INC, &at, visit_attribute, w);
    if (w->status != DR_OK) return w->status;
    return result < 0 ? damaged(w, path, "its attributes") : DR_OK;
}

static dr_status describe_dataset(walk *w, hid_t dataset, const char *path) {
    dr_h5_object object = {.path = path, .is_dataset = 1};
    hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset);
    dr_status status = DR_OK;
    hsize_t shape[H5S_MAX_RANK] = {0};
    int n_dims = space < 0 ? -1 : H5Sget_simple_extent_dims(space, shape, NULL);
    if (type < 0 || n_dims < 0) {
        status = damaged(w, path, "its type and shape");
    } else {
        type_name(type, object.type);
        object.n_dims = n_dims < 8 ? n_dims : 8;
        for (int i = 0; i < object.n_dims; i++) object.shape[i] = (int64_t)shape[i];
        object.stored_bytes = (int64_t)H5Dget_storage_size(dataset);
        layout_text(dataset, object.layout);
        status = w->visitor->object(w->visitor->context, &object);
    }
    if (space >= 0) H5Sclose(space);
    if (type >= 0) H5Tclose(type);
    return status;
}

static dr_status walk_group(walk *w, hid_t group, const char *path, int depth);

static dr_status walk_member(walk *w, hid_t group, const char *path, hsize_t index, int depth) {
    char name[MAX_NAME], below[MAX_PATH];
    if (H5Lget_name_by_idx(group, ".", H5_INDEX_NAME, H5_ITER_INC, index, name, sizeof name, H5P_DEFAULT) < 0)
        return damaged(w, path, "a name in it");
    int length = snprintf(below, sizeof below, "%s/%s", strcmp(path, "/") == 0 ? "" : path, name);
    if (length >= (int)sizeof below || ++w->n_objects > MAX_OBJECTS || depth > MAX_DEPTH)
        return DR_FAIL(DR_ERR_FORMAT, "%s: %s: too many or too deeply nested objects", w->file, path);
    hid_t object = H5Oopen(group, name, H5P_DEFAULT);
    if (object < 0) return damaged(w, below, "this object (a link to nowhere?)");
    dr_status status = DR_OK;
    if (H5Iget_type(object) == H5I_GROUP) {
        status = walk_group(w, object, below, depth + 1);
    } else if (H5Iget_type(object) == H5I_DATASET) {
        status = describe_dataset(w, object, below);
        if (status == DR_OK) status = visit_attributes(w, object, below);
    }
    H5Oclose(object);
    return status;
}

static dr_status walk_group(walk *w, hid_t group, const char *path, int depth) {
    H5G_info_t info;
    dr_h5_object object = {.path = path};
    DR_TRY(w->visitor->object(w->visitor->context, &object));
    DR_TRY(visit_attributes(w, group, path));
    if (H5Gget_info(group, &info) < 0) return damaged(w, path, "the group");
    for (hsize_t i = 0; i < info.nlinks; i++) DR_TRY(walk_member(w, group, path, i, depth));
    return DR_OK;
}

dr_status dr_h5_describe(const char *path, const dr_h5_visitor *visitor) {
    DR_CHECK(dr_file_size(path) >= 0, DR_ERR_IO, "%s: no such file", path);
    DR_CHECK(dr_h5_is_hdf5(path), DR_ERR_FORMAT, "%s: not an HDF5 file", path);
    walk w = {.file = path, .visitor = visitor};
    H5E_auto2_t kept = NULL;
    void *kept_data = NULL;
    H5Eget_auto2(H5E_DEFAULT, &kept, &kept_data);
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    dr_status status = DR_OK;
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
    hid_t root = file < 0 ? -1 : H5Gopen2(file, "/", H5P_DEFAULT);
    if (root < 0)
        status = DR_FAIL(DR_ERR_FORMAT, "%s: HDF5 cannot open it: truncated, damaged, or still being written",
                         path);
    else
        status = walk_group(&w, root, "/", 1);
    if (root >= 0) H5Gclose(root);
    if (file >= 0) H5Fclose(file);
    H5Eset_auto2(H5E_DEFAULT, kept, kept_data);
    return status;
}
