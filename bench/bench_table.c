// bench_table: a table of what was asked (bench/goals.txt) and what was measured: the JSON lines of
// bench_engine, bench_ops and the peers. A file that is not there was not measured; a line that cannot be
// read is an error.
// The verdict is that of the goal's backend, the one that runs use; what others gave stands below, unjudged.
//   bench_table GOALS OURS.json … [--peers PEERS.json …] [--cut CUT.json …] [--cut-peers CUT.json …]
// --cut, --cut-peers: lines with name and model of figures that no time was left for.
#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/alloc.h"
#include "core/base/log.h"
#include "core/base/status.h"

enum { MOST_LINE = 4096, MOST_FIGURES = 4 };

typedef enum goal_kind { RATE, SHARE, MFU, GAIN, TIMES, COUNT, COST } goal_kind;
static const char *const kinds[] = {"rate", "share", "mfu", "gain", "times", "count", "cost"};

typedef struct goal {
    char *label, *model, *backend, *peer;
    char *figures[MOST_FIGURES];
    int n_figures;
    goal_kind kind;
    double target;
} goal;

typedef struct lines {
    json_t *ours, *peers, *cut, *cut_peers; // arrays of objects
} lines;

// ---- what was measured ----

static dr_status read_lines(const char *path, json_t *into) {
    char text[MOST_LINE];
    FILE *file = fopen(path, "r");
    if (!file) return errno == ENOENT ? DR_OK : DR_FAIL(DR_ERR_IO, "%s: %s", path, strerror(errno));
    dr_status status = DR_OK;
    for (int n = 1; status == DR_OK && fgets(text, sizeof text, file); n++) {
        json_error_t error;
        json_t *line = json_loads(text, 0, &error);
        if (!line || json_array_append_new(into, line) != 0)
            status = DR_FAIL(DR_ERR_FORMAT, "%s:%d: %s", path, n, line ? "no memory" : error.text);
    }
    if (status == DR_OK && ferror(file)) status = DR_FAIL(DR_ERR_IO, "%s: cannot read", path);
    fclose(file);
    return status;
}

static bool has_text(const json_t *line, const char *key, const char *want) {
    const char *text = json_string_value(json_object_get(line, key));
    return text && strcmp(text, want) == 0;
}

static double number(const json_t *line, const char *key) { // 0: null or not there
    return json_number_value(json_object_get(line, key));
}

// By the fewest seconds where both say them, for a value may be a rate or a time.
static bool is_better(const json_t *a, const json_t *b) {
    double mine = number(a, "seconds"), theirs = number(b, "seconds");
    return mine > 0 && theirs > 0 ? mine < theirs : number(a, "value") > number(b, "value");
}

static bool is_of(const json_t *line, const char *name, const char *model) { // model "-": any
    return has_text(line, "name", name) && (strcmp(model, "-") == 0 || has_text(line, "model", model));
}

// The fastest of the lines of that name, model and backend (NULL: any). NULL: not measured.
static const json_t *best_line(const json_t *all, const char *name, const char *model, const char *backend) {
    const json_t *best = NULL, *line;
    size_t i;
    json_array_foreach(all, i, line) {
        if (!is_of(line, name, model) || (backend && !has_text(line, "backend", backend))) continue;
        if (!best || is_better(line, best)) best = line;
    }
    return best;
}

static bool is_cut(const json_t *cut, const char *name, const char *model) {
    return best_line(cut, name, model, NULL) != NULL;
}

// ---- what was asked ----

// The next field of a line, without the blanks around it; NULL: none.
static char *next_field(char **at) {
    char *field = *at, *end;
    if (!field) return NULL;
    end = strchr(field, '|');
    *at = end ? end + 1 : NULL;
    if (!end) end = field + strlen(field);
    field += strspn(field, " \t");
    while (end > field && strchr(" \t\n", end[-1])) end--;
    *end = '\0';
    return field;
}

static dr_status read_goal(char *text, const char *where, int line, goal *out) {
    enum { FIELDS = 7 };
    char *fields[FIELDS], *at = text, *end = NULL;
    goal g = {0};
    for (int i = 0; i < FIELDS; i++) {
        fields[i] = next_field(&at);
        DR_CHECK(fields[i] && *fields[i], DR_ERR_FORMAT, "%s:%d: %d fields, expected %d", where, line, i,
                 FIELDS);
    }
    g.label = fields[0];
    g.model = fields[1];
    g.backend = fields[3];
    g.peer = fields[4];
    for (char *name = strtok(fields[2], " "); name; name = strtok(NULL, " ")) {
        DR_CHECK(g.n_figures < MOST_FIGURES, DR_ERR_FORMAT, "%s:%d: more than %d figures", where, line,
                 MOST_FIGURES);
        g.figures[g.n_figures++] = name;
    }
    while (g.kind < COST && strcmp(kinds[g.kind], fields[5]) != 0) g.kind++;
    g.target = strtod(fields[6], &end);
    DR_CHECK(strcmp(kinds[g.kind], fields[5]) == 0 && !*end, DR_ERR_FORMAT, "%s:%d: kind %s, target %s",
             where, line, fields[5], fields[6]);
    DR_CHECK(g.n_figures == 2 || g.kind != GAIN, DR_ERR_FORMAT, "%s:%d: a gain is of two figures", where,
             line);
    *out = g;
    return DR_OK;
}

// ---- a row ----

typedef struct answer {
    const json_t *first, *peer; // lines; peer NULL: not measured
    double got, times;          // by the goal's kind; the peer's seconds over ours, 0: not known
    bool is_known;
} answer;

// How many times as fast as the peer: by rates, or by seconds where one counts bytes and the other
// operations.
static double times_of(const json_t *ours, const json_t *peer) {
    const char *unit = json_string_value(json_object_get(ours, "unit"));
    if (unit && has_text(peer, "unit", unit)) return number(ours, "value") / number(peer, "value");
    return number(ours, "seconds") > 0 ? number(peer, "seconds") / number(ours, "seconds") : 0;
}

static answer answer_of(const lines *all, const goal *g, const char *backend) {
    answer a = {0};
    double seconds = 0, value = 0;
    for (int i = 0; i < g->n_figures; i++) {
        const json_t *line = best_line(all->ours, g->figures[i], g->model, backend);
        if (!line) return a;
        if (i == 0) a.first = line;
        seconds += number(line, "seconds");
        value = number(line, "value");
    }
    if (strcmp(g->peer, "-") != 0) a.peer = best_line(all->peers, g->peer, g->model, NULL);
    if (a.peer && seconds > 0 && g->kind == TIMES) a.times = number(a.peer, "seconds") / seconds;
    if (a.peer && g->kind != TIMES) a.times = times_of(a.first, a.peer);
    const double got[] = {[RATE] = number(a.first, "value"),
                          [SHARE] = 100 * number(a.first, "share"),
                          [MFU] = 100 * number(a.first, "mfu"),
                          [GAIN] = value > 0 ? 100 * (number(a.first, "value") / value - 1) : 0,
                          [TIMES] = a.times,
                          [COUNT] = number(a.first, "value"),
                          [COST] = number(a.first, "value")};
    a.got = got[g->kind];
    // A share of a ceiling or a peak that is not known here is no answer.
    bool needs_more = g->kind == SHARE || g->kind == MFU || g->kind == TIMES;
    a.is_known = !needs_more || a.got > 0;
    return a;
}

static const char *verdict_of(const goal *g, const answer *a) {
    bool asks_nothing = g->kind == COST || (g->kind == RATE && g->target == 0 && a->times == 0);
    if (!a->is_known || asks_nothing) return "";
    if (g->kind == COUNT) return a->got <= g->target ? "met" : "NOT MET";
    bool is_slower = a->times > 0 && a->times < 1 && g->kind != TIMES;
    return a->got >= g->target && !is_slower ? "met" : "NOT MET";
}

static void print_target(const goal *g, const char *unit) {
    if (g->kind == COST || (g->kind == RATE && g->target == 0))
        printf(" |");
    else if (g->kind == RATE || g->kind == COUNT)
        printf(" %.0f %s |", g->target, unit);
    else if (g->kind == TIMES)
        printf(" %.1f times the peer |", g->target);
    else
        printf(" %.0f %%%s |", g->target,
               g->kind == MFU    ? " MFU"
               : g->kind == GAIN ? " more"
                                 : " of the ceiling");
}

static void print_got(const lines *all, const goal *g, const answer *a) {
    const char *unit = json_string_value(json_object_get(a->first, "unit")),
               *backend = json_string_value(json_object_get(a->first, "backend"));
    if (!a->first)
        printf(" not measured%s |", is_cut(all->cut, g->figures[0], g->model) ? ": no time left" : "");
    else if (!a->is_known && g->kind == TIMES)
        printf(" no peer measured |");
    else if (!a->is_known)
        printf(" %.5g %s, no %s known here |", number(a->first, "value"), unit,
               g->kind == MFU ? "peak" : "ceiling");
    else if (g->kind == TIMES)
        printf(" %.2f times |", a->got);
    else if (g->kind == RATE || g->kind == COUNT || g->kind == COST)
        printf(" %.5g %s%s%s |", a->got, unit, backend ? ", " : "", backend ? backend : "");
    else
        printf(" %.1f %% (%.5g %s%s%s) |", a->got, number(a->first, "value"), unit, backend ? ", " : "",
               backend ? backend : "");
}

static void print_peer(const lines *all, const goal *g, const answer *a) {
    if (strcmp(g->peer, "-") == 0)
        printf(" |");
    else if (!a->peer)
        printf(" not measured%s |", is_cut(all->cut_peers, g->peer, g->model) ? ": no time left" : "");
    else
        printf(" %.5g %s, ours %.2f times (%s) |", number(a->peer, "value"),
               json_string_value(json_object_get(a->peer, "unit")), a->times,
               json_string_value(json_object_get(a->peer, "note")));
}

// backend: whose figures; verdict NULL: that of the answer.
static answer print_row(const lines *all, const goal *g, const char *label, const char *backend,
                        const char *verdict) {
    answer a = answer_of(all, g, backend);
    const char *unit = json_string_value(json_object_get(a.first, "unit"));
    printf("| %s |", label);
    print_got(all, g, &a);
    print_target(g, unit ? unit : "");
    if (number(a.first, "share") > 0 && g->kind != TIMES) // those are of several figures
        printf(" %.0f %% |", 100 * number(a.first, "share"));
    else
        printf(" |");
    print_peer(all, g, &a);
    printf(" %s |\n", verdict ? verdict : verdict_of(g, &a));
    return a;
}

// The same figure by each other backend that has all of it.
static void print_others(const lines *all, const goal *g) {
    const char *seen[8];
    size_t n_seen = 0, i;
    const json_t *line;
    json_array_foreach(all->ours, i, line) {
        const char *backend = json_string_value(json_object_get(line, "backend"));
        if (!backend || strcmp(backend, g->backend) == 0 || !is_of(line, g->figures[0], g->model)) continue;
        size_t k = 0;
        while (k < n_seen && strcmp(seen[k], backend) != 0) k++;
        if (k < n_seen || n_seen == sizeof seen / sizeof *seen) continue;
        seen[n_seen++] = backend;
        char label[128];
        snprintf(label, sizeof label, "(%s, by %s)", g->label, backend);
        if (answer_of(all, g, backend).first) print_row(all, g, label, backend, "not judged");
    }
}

static dr_status print_table(const char *path, const lines *all) {
    char text[MOST_LINE];
    int n_goals = 0, n_answered = 0;
    FILE *file = fopen(path, "r");
    DR_CHECK(file, DR_ERR_IO, "%s: %s", path, strerror(errno));
    printf("| figure | got | target | share of ceiling | peer | |\n|---|---|---|---|---|---|\n");
    dr_status status = DR_OK;
    for (int n = 1; status == DR_OK && fgets(text, sizeof text, file); n++) {
        goal g = {0};
        if (text[0] == '#' || text[0] == '\n') continue;
        status = read_goal(text, path, n, &g);
        if (status != DR_OK) break;
        n_answered += print_row(all, &g, g.label, g.backend, NULL).is_known;
        print_others(all, &g);
        n_goals++;
    }
    fclose(file);
    DR_TRY(status);
    DR_CHECK(n_goals > 0, DR_ERR_FORMAT, "%s: no goals", path);
    printf("\n%d of %d answered\n", n_answered, n_goals);
    return DR_OK;
}

static dr_status run(int argc, char **argv, const lines *all) {
    json_t *into = all->ours;
    DR_CHECK(all->ours && all->peers && all->cut && all->cut_peers, DR_ERR_MEMORY, "no memory for figures");
    DR_CHECK(argc >= 2, DR_ERR_ARGUMENT,
             "usage: bench_table GOALS OURS.json ... [--peers PEERS.json ...] [--cut CUT.json ...] "
             "[--cut-peers CUT.json ...]");
    for (int i = 2; i < argc; i++) {
        if (strcmp(argv[i], "--peers") == 0)
            into = all->peers;
        else if (strcmp(argv[i], "--cut") == 0)
            into = all->cut;
        else if (strcmp(argv[i], "--cut-peers") == 0)
            into = all->cut_peers;
        else
            DR_TRY(read_lines(argv[i], into));
    }
    return print_table(argv[1], all);
}

int main(int argc, char **argv) {
    dr_log_set_level(DR_LOG_WARN);
    lines all = {json_array(), json_array(), json_array(), json_array()};
    dr_status status = run(argc, argv, &all);
    json_decref(all.ours);
    json_decref(all.peers);
    json_decref(all.cut);
    json_decref(all.cut_peers);
    if (status != DR_OK) fprintf(stderr, "bench_table: %s: %s\n", dr_status_name(status), dr_last_error());
    return status == DR_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
