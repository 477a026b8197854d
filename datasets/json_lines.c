// Body of json_lines.h.
#include "datasets/json_lines.h"

#include <stdbool.h>
#include <string.h>

enum { MOST = 4 };

// Is `name` one of the names in `list`?
static bool is_listed(const char *list, const char *name) {
    size_t length = strlen(name);
    for (const char *at = list; *at;) {
        const char *end = strstr(at, ", ");
        size_t n = end ? (size_t)(end - at) : strlen(at);
        if (n == length && memcmp(at, name, n) == 0) return true;
        at += n + (end ? 2 : 0);
    }
    return false;
}

// A comma inside a name would make two names of it: "Creams, Gels & Lotions" becomes "Creams/Gels & Lotions".
static dr_status add_name(const char *name, int *n, dr_buf *out) {
    if (!name || !name[0] || *n >= MOST) return DR_OK;
    dr_buf clean = {0};
    dr_status status = DR_OK;
    for (const char *at = name; *at && status == DR_OK; at++) {
        status = dr_buf_append(&clean, *at == ',' ? "/" : at, 1);
        while (*at == ',' && at[1] == ' ') at++;
    }
    if (status == DR_OK && !is_listed(out->data, clean.data)) {
        (*n)++;
        status = dr_buf_printf(out, "%s%s", out->length ? ", " : "", clean.data);
    }
    dr_buf_reset(&clean);
    return status;
}

dr_status dr_categories_from_json(const json_t *value, dr_buf *out) {
    int n = 0;
    dr_buf_clear(out);
    DR_TRY(dr_buf_text(out, ""));
    if (json_is_string(value)) return dr_buf_text(out, json_string_value(value));
    for (size_t i = 0; i < json_array_size(value); i++) {
        const json_t *entry = json_array_get(value, i);
        if (json_is_string(entry) && (i > 0 || json_array_size(value) == 1))
            DR_TRY(add_name(json_string_value(entry), &n, out));
        for (size_t k = json_array_size(entry) > 1; k < json_array_size(entry); k++)
            DR_TRY(add_name(json_string_value(json_array_get(entry, k)), &n, out));
    }
    return DR_OK;
}
