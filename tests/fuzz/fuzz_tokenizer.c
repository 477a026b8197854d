// Any bytes as a tokenizer.json: refused, or a tokenizer that encodes any text into ids of its vocabulary and
// decodes them.
#include "core/base/alloc.h"
#include "core/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char text[] = "The cat's 12345 ab  tab\there\r\n\xC3\xA9t\xC3\xA9 e\xCC\x81 "
                               "\xE6\x97\xA5\xE6\x9C\xAC \xF0\x9F\x98\x80 \xFF\xC3 <|a|>x";
    fuzz_folder();
    dr_tokenizer *tokenizer = NULL;
    if (dr_tokenizer_parse("input", (const char *)data, size, &tokenizer) != DR_OK) {
        fuzz_demand(strstr(dr_last_error(), "input") != NULL, dr_last_error()); // it names the place
        return 0;
    }
    int32_t *ids = NULL;
    int64_t n = 0, capacity = 0;
    dr_buf bytes = {0};
    if (dr_tokenizer_encode_framed(tokenizer, text, sizeof text - 1, true, INT64_MAX, &ids, &n, &capacity) ==
        DR_OK)
        fuzz_demand(dr_tokenizer_decode(tokenizer, ids, n, &bytes) == DR_OK,
                    "ids of the encoder can be decoded");
    dr_buf_reset(&bytes);
    dr_free(ids);
    dr_tokenizer_destroy(tokenizer);
    return 0;
}
