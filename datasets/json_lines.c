// Body of json_lines.h.
#include "datasets/json_lines.h"

#include <stdbool.h>
#include <string.h>

enum { MOST = 4 };

static dr_status add_name(const char *name, int *n, dr_buf *out) {
    if (!name || !name[0] || *n >= MOST) return DR_OK;
    size_t length = strlen(name);
    for (const char *at = out->data; at && (at = strstr(at, name)); at++) { // already there as a whole name?
        bool begins = at == out->data || (at[-1] == ' ' && at[-2] == ','),
             ends = at[length] == '\0' || at[length] == ',';
        if (begins && ends) return DR_OK;
    }
    (*n)++;
    return dr_buf_printf(out, "%s%s", out->length ? ", " : "", name);
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
