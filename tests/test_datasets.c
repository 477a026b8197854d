// The data sources on small files written here: what each reads, what it refuses, and the builder's rules.
// labels: cpu
#include "tests/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "core/base/log.h"
#include "datasets/json_lines.h"
#include "datasets/lines.h"
#include "datasets/source.h"

static const dr_build_options plain_options = {.min_rating = -1e9, .bad_rows = -1};
static dr_builder *builder;

static int setup(void **state) {
    (void)state;
    return dr_builder_create(&builder) == DR_OK ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    dr_builder_destroy(builder);
    builder = NULL;
    return 0;
}

static void put(const char *dir, const char *name, const char *text) {
    check_write_file(check_path(dir, name), text, strlen(text));
}

static void put_gz(const char *dir, const char *name, const char *text) {
    gzFile file = gzopen(check_path(dir, name), "wb");
    assert_non_null(file);
    assert_int_equal(gzwrite(file, text, (unsigned)strlen(text)), strlen(text));
    assert_int_equal(gzclose(file), Z_OK);
}

static dr_dataset *finish(const dr_build_options *options) {
    dr_dataset *d = NULL;
    check_ok(dr_builder_finish(builder, options, "test", "here", "", &d));
    return d;
}

// Reads a source from `dir` with the builder of the test.
static dr_status read_source(const char *name, const char *dir) {
    dr_source_input input = {.dir = dir, .interactions = "", .item_file = ""};
    const dr_source *source = dr_source_find(name);
    assert_non_null(source);
    return source->read(&input, builder);
}

static dr_dataset *prepare(const char *name, const char *dir) {
    check_ok(read_source(name, dir));
    return finish(&plain_options);
}

// "user: id id id" for each user, one line.
static void check_sequences(const dr_dataset *d, const char *expected) {
    dr_buf text = {0};
    for (int32_t u = 0; u < d->n_users; u++) {
        check_ok(dr_buf_printf(&text, "%s%s:", u ? "; " : "", d->user_names[u]));
        for (int64_t i = d->offsets[u]; i < d->offsets[u + 1]; i++)
            check_ok(dr_buf_printf(&text, " %s", d->item_names[d->sequence[i]]));
    }
    assert_string_equal(text.data, expected);
    dr_buf_reset(&text);
}

// "title|categories" of the item with this id.
static void check_item(const dr_dataset *d, const char *id, const char *expected) {
    for (int32_t i = 1; i <= d->n_items; i++) {
        if (strcmp(d->item_names[i], id) != 0) continue;
        dr_buf text = {0};
        check_ok(dr_buf_printf(&text, "%s|%s", d->titles[i], d->categories[i]));
        assert_string_equal(text.data, expected);
        dr_buf_reset(&text);
        return;
    }
    fail_msg("no item %s", id);
}

static void event(const char *user, const char *item, double rating, double time) {
    check_ok(dr_builder_event(builder, user, item, rating, time));
}

static void test_order_and_ties(void **state) {
    (void)state;
    event("a", "3", 5, 9);
    event("a", "1", 5, 2);
    event("a", "7", 5, 2);
    event("a", "2", 5, 2);
    event("b", "1", 5, 1);
    event("b", "2", 5, 0.5);
    event("b", "3", 5, 1);
    event("short", "1", 5, 1);
    event("short", "2", 5, 2);
    dr_dataset *d = finish(&plain_options);
    check_sequences(d, "a: 1 7 2 3; b: 2 1 3");
    assert_string_equal(d->tie_order, "interactions of equal time keep their order in the source");
    assert_string_equal(d->options,
                        "k-core none, minimum rating none, maximum history none, repeats dropped");
    dr_dataset_destroy(d);
}

static void test_repeats(void **state) {
    (void)state;
    static const char *const items[] = {"1", "2", "1", "3", "2", "4"};
    for (int i = 0; i < 6; i++) event("a", items[i], 5, i);
    dr_dataset *d = finish(&plain_options);
    check_sequences(d, "a: 1 2 3 4");
    dr_dataset_destroy(d);
    dr_builder_destroy(builder);
    check_ok(dr_builder_create(&builder));
    for (int i = 0; i < 6; i++) event("a", items[i], 5, i);
    dr_build_options keep = plain_options;
    keep.keep_repeats = true;
    d = finish(&keep);
    check_sequences(d, "a: 1 2 1 3 2 4");
    dr_dataset_destroy(d);
}

// A filter by ratings, then a 3-core that needs several rounds: user d falls first, with it item 5, then user
// c.
static void test_filters(void **state) {
    (void)state;
    static const char *const rows[] = {"a1", "a2", "a3", "a4", "b1", "b2", "b3", "b4", "e1", "e2",
                                       "e3", "e4", "c1", "c2", "c5", "d5", "d1", "f5", "f2", "f9"};
    for (int i = 0; i < 20; i++) {
        char user[2] = {rows[i][0], '\0'};
        event(user, rows[i] + 1, strcmp(rows[i], "e4") == 0 ? 2 : 4, i);
    }
    dr_build_options o = {.k_core = 3, .min_rating = 3, .max_history = 0, .bad_rows = -1};
    dr_dataset *d = finish(&o);
    check_sequences(d, "a: 1 2 3; b: 1 2 3; e: 1 2 3"); // item 4 is left with two users
    assert_int_equal(d->n_items, 3);
    assert_string_equal(d->options, "k-core 3, minimum rating 3, maximum history none, repeats dropped");
    dr_dataset_destroy(d);
}

static void test_max_history(void **state) {
    (void)state;
    static const char *const items[] = {"1", "2", "3", "4", "5"};
    for (int i = 0; i < 5; i++) event("a", items[i], 5, i);
    dr_build_options o = plain_options;
    o.max_history = 2;
    dr_dataset *d = NULL;
    check_error(dr_builder_finish(builder, &o, "n", "s", "", &d), DR_ERR_ARGUMENT, "maximum history of 2");
    o.max_history = 3;
    d = finish(&o);
    check_sequences(d, "a: 3 4 5");
    assert_int_equal(d->n_items, 3); // what fell out of every history is no item
    dr_dataset_destroy(d);
}

static void test_impossible_filters(void **state) {
    (void)state;
    dr_dataset *d = NULL;
    dr_build_options o = plain_options;
    check_error(dr_builder_finish(builder, &o, "n", "here", "", &d), DR_ERR_ARGUMENT,
                "here: no interactions are left");
    event("a", "1", NAN, 1);
    o.min_rating = 3;
    check_error(dr_builder_finish(builder, &o, "n", "here", "", &d), DR_ERR_ARGUMENT,
                "the source has no ratings");
    assert_null(d);
}

static void test_titles(void **state) {
    (void)state;
    static const struct {
        const char *key, *title, *categories, *expected;
    } items[] = {
        {"1", "Mis\xE9rables, Les (1995)", "Drama", "Misérables, Les (1995)|Drama"},
        {"2", "Misérables, Les (1998)", "", "Misérables, Les (1998)|"},
        {"3", "Tom &amp; Jerry &#39;s\t Best\n", "Home &amp; Garden", "Tom & Jerry 's Best|Home & Garden"},
        {"4", " \t ", "", "Item 4|"},
        {"5", "Twin", "", "Twin|"},
        {"6", "TWIN", "", "TWIN [2]|"},
        {"7", "twin [2]", "", "twin [2] [2]|"},
        {"8", "Twin ", "", "Twin [3]|"},
        {"9", "Nobody's", "", NULL},
    };
    for (int i = 0; i < 9; i++)
        check_ok(dr_builder_item(builder, items[i].key, items[i].title, items[i].categories));
    check_ok(dr_builder_item(builder, "5", "Given again", "Drama")); // the first one stays
    for (int i = 0; i < 8; i++) event("u\xE9", items[i].key, 5, i);
    event("u\xE9", "no title", 5, 8);
    dr_dataset *d = finish(&plain_options);
    assert_int_equal(d->n_items, 9);
    for (int i = 0; i < 8; i++) check_item(d, items[i].key, items[i].expected);
    check_item(d, "no title", "Item no title|");
    assert_string_equal(d->user_names[0], "ué");
    const char *path = check_path(check_scratch_dir(), "titles.h5");
    check_ok(dr_dataset_save(d, path));
    dr_dataset_destroy(d);
    check_ok(dr_dataset_load(path, &d)); // which checks that titles are unique
    check_item(d, "7", "twin [2] [2]|");
    dr_dataset_destroy(d);
}

static void test_bad_rows_limit(void **state) {
    (void)state;
    dr_dataset *d = NULL;
    static const char *const items[] = {"1", "2", "3"};
    for (int i = 0; i < 3; i++) event("a", items[i], 5, i);
    for (int i = 0; i < 1500; i++) dr_builder_good_row(builder);
    for (int i = 0; i < 15; i++) dr_builder_bad_row(builder, "file", i, "this", "that");
    check_ok(dr_builder_finish(builder, &plain_options, "n", "s", "", &d)); // one in a hundred
    dr_dataset_destroy(d);
    d = NULL;
    dr_builder_bad_row(builder, "file", 16, "this", "that");
    check_error(dr_builder_finish(builder, &plain_options, "n", "s", "", &d), DR_ERR_FORMAT,
                "s: 16 bad rows, at most 15 are allowed");
    dr_build_options o = plain_options;
    o.bad_rows = 0;
    check_error(dr_builder_finish(builder, &o, "n", "s", "", &d), DR_ERR_FORMAT, "at most 0");
    o.bad_rows = 16;
    check_ok(dr_builder_finish(builder, &o, "n", "s", "", &d));
    dr_dataset_destroy(d);
}

static dr_status keep_line(void *context, const char *path, int64_t number, char *line) {
    (void)path;
    return dr_buf_printf(context, "%lld=%s;", (long long)number, line);
}

static void test_lines(void **state) {
    (void)state;
    const char *dir = check_scratch_dir(), *path = check_path(dir, "lines");
    static const char bytes[] = "\xEF\xBB\xBF"
                                "one\r\n\ntw\0o\nlast";
    dr_buf text = {0};
    check_write_file(path, bytes, sizeof bytes - 1);
    check_ok(dr_lines_read(path, keep_line, &text));
    assert_string_equal(text.data, "1=one;3=tw\x01o;4=last;");
    dr_buf_clear(&text);
    char *longer = malloc(200001); // several pieces of the reader
    memset(longer, 'x', 200000);
    memcpy(longer + 70000, "\n", 1);
    longer[200000] = '\0';
    put_gz(dir, "long.gz", longer);
    check_ok(dr_lines_read(check_path(dir, "long.gz"), keep_line, &text));
    assert_int_equal(text.length, 200000 - 1 + 6);
    free(longer);
    dr_buf_reset(&text);
    check_error(dr_lines_read(check_path(dir, "none"), keep_line, &text), DR_ERR_IO, "No such file");
    check_error(dr_lines_read(dir, keep_line, &text), DR_ERR_IO, dir);
    dr_buf_reset(&text);
}

static void test_damaged_gzip(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    dr_buf text = {0};
    size_t length;
    put_gz(dir, "good.gz", "one line\nand another line\nand a third one\n");
    char *bytes = check_read_file(check_path(dir, "good.gz"), &length);
    check_write_file(check_path(dir, "short.gz"), bytes, length - 9);
    check_error(dr_lines_read(check_path(dir, "short.gz"), keep_line, &text), DR_ERR_IO,
                "short.gz: behind line");
    bytes[length - 6] ^= 1; // the stored checksum
    check_write_file(check_path(dir, "flip.gz"), bytes, length);
    check_error(dr_lines_read(check_path(dir, "flip.gz"), keep_line, &text), DR_ERR_IO,
                "flip.gz: behind line");
    free(bytes);
    dr_buf_reset(&text);
}

static void test_fields(void **state) {
    (void)state;
    char *f[3], csv[] = "1,\"Heat, \"\"The\"\" (1995)\",", open[] = "1,\"Heat", many[] = "a::b::c::d::e";
    assert_int_equal(dr_fields_quoted(csv, ',', f, 3), 3);
    assert_string_equal(f[1], "Heat, \"The\" (1995)");
    assert_string_equal(f[2], "");
    assert_int_equal(dr_fields_quoted(open, ',', f, 3), -1);
    assert_int_equal(dr_fields_split(many, "::", f, 3), 4); // "more than three" is enough to know
    assert_string_equal(f[2], "c");
    assert_string_equal(dr_fields_join(many, ':', 4), "a::b::c::d::e");
    assert_string_equal(dr_fields_join(csv, ',', 3), "1,Heat, \"The\" (1995),");
    double value = 7;
    static const char *const bad[] = {"", "x", "1x", "nan", "inf", "1 2"};
    for (int i = 0; i < 6; i++) assert_false(dr_field_number(bad[i], &value));
    assert_true(value == 7);
    assert_true(dr_field_number("-2.5", &value) && value == -2.5);
}

static void test_find_files(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    char *path = NULL;
    put(dir, "Games.jsonl", "");
    put(dir, "meta_Games.jsonl.gz", "");
    check_ok(dr_source_path(dir, "nothing !(meta_*).jsonl?(.gz)", "", &path));
    assert_string_equal(path, check_path(dir, "Games.jsonl"));
    dr_free(path);
    check_error(dr_source_path(dir, "*.csv *.tsv", "", &path), DR_ERR_IO, "no file like *.csv *.tsv");
    check_error(dr_source_path(dir, "*.jsonl*", "", &path), DR_ERR_ARGUMENT, "say which one");
    check_error(dr_source_path("", "", "no/such", &path), DR_ERR_IO, "no/such: no such file");
    check_error(dr_source_path("no/such", "*", "", &path), DR_ERR_IO, "no/such");
}

static void test_json_categories(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"\"Drama, War\"", "Drama, War"},
        {"[\"Root\", \"Toys\", \"Games\"]", "Toys, Games"},
        {"[\"Only\"]", "Only"},
        {"[[\"Beauty\", \"Makeup\", \"Nails\"], [\"Beauty\", \"Makeup\", \"Lips\"]]", "Makeup, Nails, Lips"},
        {"[[\"Beauty\"]]", "Beauty"},
        {"[\"R\", \"a\", \"b\", \"c\", \"d\", \"e\"]", "a, b, c, d"},
        {"[\"R\", \"Hair\", \"Hair Care\", \"Care\"]", "Hair, Hair Care, Care"},
        {"[\"R\", \" x\", \"Creams, Gels & Lotions\", \"Creams, Gels & Lotions\", \"Gels\", \"a,b,\"]",
         " x, Creams/Gels & Lotions, Gels, a/b/"},
        {"[3, null, {}]", ""},
        {"null", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *value = json_loads(cases[i][0], JSON_DECODE_ANY, NULL);
        dr_buf text = {0};
        check_ok(dr_categories_from_json(value, &text));
        assert_string_equal(text.data, cases[i][1]);
        dr_buf_reset(&text);
        json_decref(value);
    }
}

static void test_movielens_1m(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    put(dir, "movies.dat",
        "1::Toy Story (1995)::Animation|Comedy\r\n2::Caf\xE9 (1990)::Drama\n3::Heat (1995)::Action\n"
        "no fields\n4::Unseen (1999)::War\n");
    put_gz(dir, "ratings.dat.gz",
           "1::3::5::30\n1::1::4::10\n1::2::3::10\n2::1::1::x\n2::1::5::1\n2::2::5::2\n2::3::5::3\n"
           "3::1::5\n::1::5::9\n");
    dr_dataset *d = prepare("ml-1m", dir);
    check_sequences(d, "1: 1 2 3; 2: 1 2 3");
    assert_int_equal(d->n_items, 3);
    check_item(d, "1", "Toy Story (1995)|Animation, Comedy");
    check_item(d, "2", "Café (1990)|Drama");
    dr_dataset_destroy(d);
    dr_dataset *none = NULL;
    dr_build_options strict = plain_options;
    strict.bad_rows = 3;
    check_error(dr_builder_finish(builder, &strict, "n", "ml-1m", "", &none), DR_ERR_FORMAT,
                "ml-1m: 4 bad rows, at most 3");
}

static void test_movielens_100k(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    put(dir, "u.genre", "unknown|0\nAction|1\nWar|2\n\n");
    put(dir, "u.item",
        "1|Heat (1995)|01-Jan-1995||http://x|0|1|1\n2|What (1996)|||y|1|0|0\n3|Two|d\n4|Far|||y|0|0|1|1\n");
    put(dir, "u.data", "9\t2\t3\t5\n9\t1\t3\t4\n9\t3\t3\t6\n9 1 3 7\n");
    dr_dataset *d = prepare("ml-100k", dir);
    check_sequences(d, "9: 1 2 3");
    check_item(d, "1", "Heat (1995)|Action, War");
    check_item(d, "2", "What (1996)|");
    check_item(d, "3", "Item 3|"); // its row had too few fields
    dr_dataset_destroy(d);
    put(dir, "u.genre", "unknown|0\nWar|2\n");
    check_error(read_source("ml-100k", dir), DR_ERR_FORMAT, "u.genre:2: expected \"genre|1\"");
}

static void test_movielens_latest(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    put(dir, "movies.csv",
        "movieId,title,genres\n1,\"Heat, The (1995)\",Action|War\n2,Caf\xC3\xA9,(no genres listed)\n"
        "3,\"open,Drama\n");
    put(dir, "ratings.csv", "userId,movieId,rating,timestamp\n5,2,0.5,3\n5,1,4.5,1\n5,3,4,2\n5,3,4\n");
    dr_dataset *d = prepare("ml-latest", dir);
    check_sequences(d, "5: 1 3 2");
    check_item(d, "1", "Heat, The (1995)|Action, War");
    check_item(d, "2", "Café|");
    check_item(d, "3", "Item 3|");
    dr_dataset_destroy(d);
    check_error(read_source("ml-latest", check_scratch_dir()), DR_ERR_IO, "no file like movies.csv");
    put(dir, "ratings.csv", "5,2,0.5,3\n5,1,4.5,1\n");
    check_error(read_source("ml-latest", dir), DR_ERR_FORMAT,
                "ratings.csv:1: expected \"userId,movieId,rating,timestamp\", found \"5,2,0.5,3\"");
}

static void test_amazon_2023(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    put_gz(dir, "meta_Games.jsonl.gz",
           "{\"parent_asin\":\"B1\",\"title\":\"Pad &amp; Co\",\"categories\":[\"Video "
           "Games\",\"PC\",\"Pads\"]}\n"
           "{\"parent_asin\":\"B2\",\"title\":null,\"categories\":[]}\n{\"title\":\"lost\"}\nnot json\n");
    put(dir, "Games.jsonl",
        "{\"rating\":5.0,\"user_id\":\"U\",\"parent_asin\":\"B2\",\"asin\":\"A2\",\"timestamp\":"
        "1600000000002}\n"
        "{\"rating\":1,\"user_id\":\"U\",\"parent_asin\":\"B1\",\"asin\":\"A1\",\"timestamp\":1600000000001}"
        "\n"
        "{\"rating\":4,\"user_id\":\"U\",\"parent_asin\":\"B3\",\"timestamp\":1600000000003}\n"
        "{\"rating\":\"4\",\"user_id\":\"U\",\"parent_asin\":\"B4\",\"timestamp\":1600000000004}\n"
        "{\"rating\":4,\"user_id\":\"U\",\"parent_asin\":\"B5\"\n");
    dr_dataset *d = prepare("amazon", dir);
    check_sequences(d, "U: B1 B2 B3");
    check_item(d, "B1", "Pad & Co|PC, Pads");
    check_item(d, "B2", "Item B2|");
    dr_dataset_destroy(d);
}

static void test_amazon_ratings_only(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    put(dir, "meta_Games.jsonl", "{\"parent_asin\":\"B1\",\"title\":\"Pad\",\"categories\":[]}\n");
    put_gz(dir, "Games.csv.gz",
           "user_id,parent_asin,rating,timestamp\nU,B2,5.0,2\nU,B1,4.0,1\nU,B3,4.0,3\nU,,4.0,3\nU,B3\n");
    dr_dataset *d = prepare("amazon", dir);
    check_sequences(d, "U: B1 B2 B3");
    dr_dataset_destroy(d);
    put_gz(dir, "Games.csv.gz", "item,user,5.0,2\n");
    check_error(read_source("amazon", dir), DR_ERR_FORMAT, "Games.csv.gz:1: expected JSON or \"user_id");
}

static void test_amazon_2018(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    put(dir, "meta_Games.json",
        "{\"asin\":\"A1\",\"title\":\"Pad\",\"category\":[\"Video Games\",\"PC\"]}\n");
    put(dir, "Games_5.json",
        "{\"overall\":5.0,\"reviewerID\":\"U\",\"asin\":\"A2\",\"unixReviewTime\":20}\n"
        "{\"overall\":5.0,\"reviewerID\":\"U\",\"asin\":\"A1\",\"unixReviewTime\":10}\n"
        "{\"overall\":5.0,\"reviewerID\":\"U\",\"asin\":\"A3\",\"unixReviewTime\":20}\n");
    dr_dataset *d = prepare("amazon", dir);
    check_sequences(d, "U: A1 A2 A3");
    check_item(d, "A1", "Pad|PC");
    dr_dataset_destroy(d);
}

static void test_recbole(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    put(dir, "m.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tgenre:token_seq\n"
        "1\tHeat\t1995\tAction Children's War\n2\tHeat\t1986\tDrama\n3\tNew\t\t\n\tNo id\t1\tx\n");
    put(dir, "m.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "7\t3\t4\t3\n7\t1\t4\t1\n7\t2\t4\t2\n7\t2\tgood\t2\n7\t2\n");
    dr_dataset *d = prepare("recbole", dir);
    check_sequences(d, "7: 1 2 3");
    check_item(d, "1", "Heat (1995)|Action, Children's, War");
    check_item(d, "2", "Heat (1986)|Drama");
    check_item(d, "3", "New|");
    dr_dataset_destroy(d);
    put(dir, "m.item",
        "item_id:token\tcategories:token_seq\ttitle:token\n1\t'Video Games', 'Consoles'\tA\n"
        "2\t[['Beauty', \"Men's\"]]\tB\n3\tFood, Coffee Bars,\tC\n");
    dr_builder_destroy(builder);
    check_ok(dr_builder_create(&builder));
    d = prepare("recbole", dir);
    check_item(d, "1", "A|Video Games, Consoles");
    check_item(d, "2", "B|Beauty, Men's");
    check_item(d, "3", "C|Food, Coffee Bars");
    dr_dataset_destroy(d);
    put(dir, "m.inter", "user:token\titem_id:token\n");
    check_error(read_source("recbole", dir), DR_ERR_FORMAT, "m.inter:1: the header names no user_id");
}

static void test_authors(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    put(dir, "meta.json",
        "{\"1\":{\"title\":\"Pad\",\"categories\":\"PC, "
        "Pads\"},\"2\":{\"title\":\"Heat\",\"category\":\"Action\"}}");
    put(dir, "test_id.jsonl",
        "{\"idx\":10,\"history\":[2,1,0,0],\"target\":3}\n{\"idx\":\"x\",\"history\":[1,2],\"target\":3}\n"
        "{\"idx\":11,\"history\":[1,\"2\"],\"target\":3}\n{\"idx\":12,\"target\":3}\n");
    dr_dataset *d = prepare("authors", dir);
    check_sequences(d, "10: 2 1 3; x: 1 2 3");
    check_item(d, "1", "Pad|PC, Pads");
    check_item(d, "2", "Heat|Action");
    dr_dataset_destroy(d);
    put(dir, "meta.json", "{\"1\": [");
    check_error(read_source("authors", dir), DR_ERR_FORMAT, "meta.json");
}

// Lines as the authors make them: the last `span` items before each target, padded; the last target of a user
// in the test file, the one before in the validation file, the others in the training file.
static void put_author_lines(const char *dir, const int32_t *const *sequences, const int *lengths,
                             int n_users, int span) {
    dr_buf files[3] = {{0}, {0}, {0}};
    static const char *const names[] = {"test_id.jsonl", "valid_id.jsonl", "train_id.jsonl"};
    int idx = 0;
    for (int u = 0; u < n_users; u++)
        for (int t = 1; t < lengths[u]; t++) {
            int back = lengths[u] - 1 - t;
            dr_buf *to = &files[back < 2 ? back : 2];
            check_ok(dr_buf_printf(to, "{\"idx\": %d, \"history\": [", idx++));
            for (int k = 0; k < span; k++) {
                int at = (t > span ? t - span : 0) + k;
                check_ok(dr_buf_printf(to, "%s%d", k ? ", " : "", at < t ? sequences[u][at] : 0));
            }
            check_ok(dr_buf_printf(to, "], \"target\": %d}\n", sequences[u][t]));
        }
    for (int i = 0; i < 3; i++) {
        put(dir, names[i], files[i].data);
        dr_buf_reset(&files[i]);
    }
}

// No line is longer than `span` + 1 items; whole sequences come back all the same.
static void test_authors_whole_sequences(void **state) {
    (void)state;
    static const int32_t a[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, b[] = {20, 2, 3, 4, 5, 6, 30},
                         c[] = {5, 6, 7}, e[] = {1, 2, 3, 4};
    static const int32_t *const sequences[] = {a, b, c, e};
    static const int lengths[] = {12, 7, 3, 4};
    const char *dir = check_scratch_dir();
    put(dir, "meta.json", "{}");
    put_author_lines(dir, sequences, lengths, 4, 4);
    dr_dataset *d = prepare("authors", dir);
    check_sequences(d, "10: 1 2 3 4 5 6 7 8 9 10 11 12; 16: 20 2 3 4 5 6 30; 18: 5 6 7; 21: 1 2 3 4");
    dr_dataset_destroy(d);
    // the test file alone: what its lines show
    dr_builder_destroy(builder);
    check_ok(dr_builder_create(&builder));
    unlink(check_path(dir, "valid_id.jsonl"));
    unlink(check_path(dir, "train_id.jsonl"));
    d = prepare("authors", dir);
    check_sequences(d, "10: 8 9 10 11 12; 16: 3 4 5 6 30; 18: 5 6 7; 21: 1 2 3 4");
    dr_dataset_destroy(d);
}

static void test_plain(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    static const char *const item_files[][2] = {
        {"movies.dat", "1::Heat (1995)::Action|War\nbad\n"},
        {"items.tsv", "1\tHeat (1995)\tAction, War\nbad\n"},
        {"items.jsonl", "{\"item_id\":1,\"title\":\"Heat "
                        "(1995)\",\"categories\":[[\"R\",\"Action\",\"War\"]]}\n{\"title\":\"no id\"}\n"},
        {"item_list.txt", "org_id remap_id title category\n77 1 \"Heat (1995)\" Action|War\n5 2\n"},
    };
    put(dir, "sequences.txt", "u 3 1 2\nv 2\t1  3 \nlonely\n");
    for (int i = 0; i < 4; i++) {
        put(dir, item_files[i][0], item_files[i][1]);
        dr_dataset *d = prepare("plain", dir);
        check_sequences(d, "u: 3 1 2; v: 2 1 3");
        check_item(d, "1", "Heat (1995)|Action, War");
        dr_dataset_destroy(d);
        assert_int_equal(remove(check_path(dir, item_files[i][0])), 0);
        dr_builder_destroy(builder);
        check_ok(dr_builder_create(&builder));
    }
}

// Any cut of any file is an error or a smaller data set, never a crash.
static void test_cut_anywhere(void **state) {
    (void)state;
    const char *dir = check_scratch_dir();
    static const char events[] =
        "{\"rating\":5,\"user_id\":\"U\",\"parent_asin\":\"B\\u00e92\",\"timestamp\":2}\n"
        "{\"rating\":1,\"user_id\":\"U\",\"parent_asin\":\"B1\",\"timestamp\":1}\n"
        "{\"rating\":4,\"user_id\":\"U\",\"parent_asin\":\"B3\",\"timestamp\":3}\n";
    put(dir, "meta_x.jsonl", "");
    int n_built = 0;
    dr_log_set_level(DR_LOG_ERROR + 1); // two hundred refusals
    for (size_t length = 0; length < sizeof events; length++) {
        dr_dataset *d = NULL;
        check_write_file(check_path(dir, "x.jsonl"), events, length);
        check_ok(read_source("amazon", dir));
        if (dr_builder_finish(builder, &plain_options, "n", "s", "", &d) == DR_OK) n_built++;
        dr_dataset_destroy(d);
        dr_builder_destroy(builder);
        check_ok(dr_builder_create(&builder));
    }
    dr_log_set_level(DR_LOG_INFO);
    assert_int_equal(n_built, 2); // whole, with and without the last line end
}

static dr_dataset *synthetic(uint64_t seed) {
    dr_source_input input = {.dir = "",
                             .interactions = "",
                             .item_file = "",
                             .users = 300,
                             .items = 200,
                             .mean_length = 26,
                             .seed = seed};
    dr_builder_destroy(builder);
    check_ok(dr_builder_create(&builder));
    check_ok(dr_source_synthetic(&input, builder));
    return finish(&plain_options);
}

static int share_genre(const char *a, const char *b) {
    char text[128], *rest = NULL;
    snprintf(text, sizeof text, "%s", a);
    for (char *name = strtok_r(text, ",", &rest); name; name = strtok_r(NULL, ",", &rest))
        if (strstr(b, name + (name[0] == ' '))) return 1;
    return 0;
}

static void test_synthetic(void **state) {
    (void)state;
    dr_dataset *a = synthetic(3), *b = synthetic(3), *c = synthetic(4);
    assert_int_equal(a->n_users, 300);
    assert_int_equal(a->n_items, 200);
    int64_t n = a->offsets[a->n_users], related = 0, pairs = 0;
    assert_true(n > 300 * 22 && n < 300 * 30);
    assert_int_equal(b->offsets[300], n);
    assert_memory_equal(a->sequence, b->sequence, (size_t)n * sizeof *a->sequence);
    assert_true(c->offsets[300] != n ||
                memcmp(a->sequence, c->sequence, (size_t)n * sizeof *a->sequence) != 0);
    for (int32_t u = 0; u < a->n_users; u++)
        for (int64_t i = a->offsets[u]; i < a->offsets[u + 1]; i++) {
            for (int64_t k = a->offsets[u]; k < i; k++) assert_int_not_equal(a->sequence[k], a->sequence[i]);
            if (i == a->offsets[u]) continue;
            pairs++;
            related += share_genre(a->categories[a->sequence[i - 1]], a->categories[a->sequence[i]]);
        }
    assert_true(related > pairs * 7 / 10); // sessions stay in a genre; by chance it would be about a quarter
    dr_dataset_destroy(a);
    dr_dataset_destroy(b);
    dr_dataset_destroy(c);
    dr_source_input tiny = {.users = 300, .items = 10};
    check_error(dr_source_synthetic(&tiny, builder), DR_ERR_ARGUMENT, "10 items");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_order_and_ties),
        TEST(test_repeats),
        TEST(test_filters),
        TEST(test_max_history),
        TEST(test_impossible_filters),
        TEST(test_titles),
        TEST(test_bad_rows_limit),
        TEST(test_lines),
        TEST(test_damaged_gzip),
        TEST(test_fields),
        TEST(test_find_files),
        TEST(test_json_categories),
        TEST(test_movielens_1m),
        TEST(test_movielens_100k),
        TEST(test_movielens_latest),
        TEST(test_amazon_2023),
        TEST(test_amazon_ratings_only),
        TEST(test_amazon_2018),
        TEST(test_recbole),
        TEST(test_authors),
        TEST(test_authors_whole_sequences),
        TEST(test_plain),
        TEST(test_cut_anywhere),
        TEST(test_synthetic),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
