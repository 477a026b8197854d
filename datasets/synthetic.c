// The embedded default: a seeded catalogue with genres, series and neighbours, and users whose taste drifts
// from session to session. The next item mostly stays in the session's genre and near the last item, so both
// the order and a good guess of the genre help.
#include <stdio.h>
#include <string.h>

#include "core/base/rng.h"
#include "datasets/source.h"

enum { GENRES = 16, WORDS = 64, NEIGHBOURS = 6, MOST_ITEMS = WORDS * WORDS };

static const char *const genre_names[GENRES] = {
    "Action",  "Adventure", "Animation", "Comedy", "Crime",    "Drama", "Fantasy", "Horror",
    "Musical", "Mystery",   "Romance",   "Sci-Fi", "Thriller", "War",   "Western", "History"};
static const char *const first_words[WORDS] = {
    "Silent",   "Golden",   "Broken",    "Crimson", "Hidden",  "Last",     "Distant", "Frozen",
    "Burning",  "Secret",   "Lonely",    "Savage",  "Gentle",  "Electric", "Hollow",  "Iron",
    "Midnight", "Restless", "Scarlet",   "Wild",    "Bitter",  "Pale",     "Quiet",   "Sunken",
    "Ancient",  "Amber",    "Blind",     "Brave",   "Bright",  "Copper",   "Crooked", "Crystal",
    "Dark",     "Drifting", "Eastern",   "Empty",   "Endless", "Faded",    "Fallen",  "Final",
    "First",    "Flying",   "Forgotten", "Glass",   "Grand",   "Green",    "Heavy",   "Honest",
    "Humble",   "Inner",    "Ivory",     "Jade",    "Little",  "Lost",     "Marble",  "Northern",
    "Painted",  "Patient",  "Perfect",   "Rising",  "Rolling", "Royal",    "Rusty",   "Sacred"};
static const char *const second_words[WORDS] = {
    "Harbour",  "Forest",  "River",     "Empire",   "Garden",   "Machine",  "Mirror",    "Road",
    "Storm",    "Tower",   "Island",    "Circus",   "Letter",   "Shadow",   "Kingdom",   "Orchard",
    "Signal",   "Voyage",  "Winter",    "Lantern",  "Bridge",   "Canyon",   "Witness",   "Summer",
    "Anchor",   "Archive", "Arrow",     "Ballad",   "Beacon",   "Border",   "Butterfly", "Cabin",
    "Candle",   "Castle",  "Cathedral", "Century",  "Champion", "Compass",  "Corner",    "Crown",
    "Dancer",   "Desert",  "Diary",     "Dream",    "Engine",   "Falcon",   "Feather",   "Fortune",
    "Frontier", "Gallery", "Ghost",     "Guardian", "Heart",    "Horizon",  "Hunter",    "Journey",
    "Ladder",   "Legend",  "Market",    "Meadow",   "Monument", "Mountain", "Ocean",     "Palace"};

typedef struct item {
    char title[64], categories[96];
    uint32_t genres; // bit set
    int32_t series;  // first item of its series
    float popularity;
    int32_t neighbours[NEIGHBOURS];
} item;

typedef struct world {
    item *items; // [n + 1]
    int32_t n;
    dr_rng rng;
} world;

static void write_item(world *w, int32_t i, int32_t pair, int part, uint32_t genres, int32_t series) {
    item *it = &w->items[i];
    it->genres = genres;
    it->series = series;
    it->popularity = 1.0f / (0.08f + dr_rng_float(&w->rng));
    if (part > 1)
        snprintf(it->title, sizeof it->title, "%s %s %d", first_words[pair / WORDS],
                 second_words[pair % WORDS], part);
    else
        snprintf(it->title, sizeof it->title, "%s %s", first_words[pair / WORDS], second_words[pair % WORDS]);
    it->categories[0] = '\0';
    for (int g = 0; g < GENRES; g++)
        if (genres >> g & 1) {
            size_t used = strlen(it->categories);
            snprintf(it->categories + used, sizeof it->categories - used, "%s%s", used ? ", " : "",
                     genre_names[g]);
        }
}

// Titles are distinct pairs of words in a seeded order; a third of them grow into series of two or three.
static void make_items(world *w) {
    int32_t pairs[MOST_ITEMS], next = 0;
    for (int32_t i = 0; i < MOST_ITEMS; i++) pairs[i] = i;
    dr_rng_shuffle(&w->rng, pairs, MOST_ITEMS);
    for (int32_t i = 1; i <= w->n;) {
        uint32_t genres = 0, count = 1 + dr_rng_below(&w->rng, 3);
        for (uint32_t g = 0; g < count; g++) genres |= 1u << dr_rng_below(&w->rng, GENRES);
        int parts = 1 + (dr_rng_float(&w->rng) < 0.3f) + (dr_rng_float(&w->rng) < 0.1f);
        int32_t series = i, pair = pairs[next++];
        for (int part = 1; part <= parts && i <= w->n; part++) write_item(w, i++, pair, part, genres, series);
    }
    for (int32_t i = 1; i <= w->n; i++)
        for (int k = 0; k < NEIGHBOURS; k++)
            for (int tries = 0; tries < 200; tries++) {
                int32_t other = 1 + (int32_t)dr_rng_below(&w->rng, (uint32_t)w->n);
                w->items[i].neighbours[k] = other;
                if (other != i && (w->items[other].genres & w->items[i].genres)) break;
            }
}

static int draw_genre(world *w, const float *taste) {
    float total = 0, at = 0;
    for (int g = 0; g < GENRES; g++) total += taste[g];
    float mark = dr_rng_float(&w->rng) * total;
    for (int g = 0; g < GENRES; g++) {
        at += taste[g];
        if (at > mark) return g;
    }
    return GENRES - 1;
}

// Few strong genres: squares of squares of uniform draws.
static void draw_taste(world *w, float *taste, float share) {
    for (int g = 0; g < GENRES; g++) {
        float u = dr_rng_float(&w->rng);
        taste[g] = (1 - share) * taste[g] + share * u * u * u * u * u * u;
    }
}

// A weighted draw among unseen items that `fits` accepts; 0 when there is none.
static int32_t draw_item(world *w, const uint8_t *seen, int genre, int32_t near) {
    float total = 0;
    int32_t chosen = 0;
    for (int32_t i = 1; i <= w->n; i++) {
        const item *it = &w->items[i];
        if (seen[i] || (genre >= 0 && !(it->genres >> genre & 1))) continue;
        float weight = it->popularity;
        if (near > 0) {
            weight *= 0.02f;
            if (it->series == w->items[near].series) weight = 40.0f;
            for (int k = 0; k < NEIGHBOURS; k++)
                if (w->items[near].neighbours[k] == i) weight = 14.0f;
        }
        total += weight;
        if (dr_rng_float(&w->rng) * total < weight) chosen = i;
    }
    return chosen;
}

static dr_status write_user(world *w, int32_t user, double mean_length, uint8_t *seen, dr_builder *b) {
    float taste[GENRES] = {0};
    char name[16], key[16];
    draw_taste(w, taste, 1.0f);
    memset(seen, 0, (size_t)w->n + 1);
    int genre = draw_genre(w, taste);
    int32_t last = 0, length = (int32_t)(mean_length * (0.7 + 0.6 * dr_rng_float(&w->rng)));
    snprintf(name, sizeof name, "u%d", user + 1);
    for (int32_t t = 0; t < length; t++) {
        if (dr_rng_float(&w->rng) < 0.2f) genre = draw_genre(w, taste);
        if (dr_rng_float(&w->rng) < 0.05f) draw_taste(w, taste, 0.3f);
        int32_t next = draw_item(w, seen, genre, dr_rng_float(&w->rng) < 0.5f ? last : 0);
        if (next == 0) next = draw_item(w, seen, -1, 0);
        if (next == 0) break;
        seen[next] = 1;
        last = next;
        snprintf(key, sizeof key, "i%d", next);
        DR_TRY(dr_builder_event(b, name, key, 5, t));
        dr_builder_good_row(b);
    }
    return DR_OK;
}

dr_status dr_source_synthetic(const dr_source_input *input, dr_builder *b) {
    world w = {.n = input->items, .rng = dr_rng_make(input->seed, 0x5E7)};
    uint8_t *seen = NULL;
    DR_CHECK(w.n >= 50 && w.n <= MOST_ITEMS && input->users >= 10, DR_ERR_ARGUMENT,
             "synthetic: %d items and %d users, expected 50 to %d items and at least 10 users", w.n,
             input->users, MOST_ITEMS);
    DR_TRY(dr_alloc(&w.items, "items", (int64_t)w.n + 1, sizeof *w.items));
    dr_status status = dr_alloc(&seen, "seen items", (int64_t)w.n + 1, 1);
    if (status == DR_OK) make_items(&w);
    for (int32_t i = 1; i <= w.n && status == DR_OK; i++) {
        char key[16];
        snprintf(key, sizeof key, "i%d", i);
        status = dr_builder_item(b, key, w.items[i].title, w.items[i].categories);
    }
    for (int32_t u = 0; u < input->users && status == DR_OK; u++)
        status = write_user(&w, u, input->mean_length, seen, b);
    dr_free(seen);
    dr_free(w.items);
    return status;
}
