// Any bytes as a chat template: as a file of the program's own form, and as the template of a model's folder.
// Refused, or a conversation can be rendered with it.
#include "core/base/alloc.h"
#include "core/text/chat.h"
#include "tests/fuzz/fuzz.h"

static const dr_chat_turn turns[] = {
    {"system", "Be brief."}, {"user", " Hi [x] {text} \\n "}, {"assistant", "Yes"}};

static void use(dr_chat *chat, const dr_tokenizer *tokenizer) {
    dr_buf text = {0};
    int32_t *ids = NULL;
    int64_t n = 0, capacity = 0;
    for (int first = 0; first < 2; first++) { // with a system turn, and with the default one
        dr_status rendered = dr_chat_render(chat, turns + first, 3 - first, true, &text);
        dr_status encoded =
            dr_chat_encode(chat, tokenizer, turns + first, 3 - first, true, &ids, &n, &capacity);
        fuzz_demand((rendered == DR_OK) == (encoded == DR_OK), "what renders can be encoded");
    }
    dr_buf_reset(&text);
    dr_free(ids);
    dr_chat_destroy(chat);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static dr_tokenizer *tokenizer;
    static const char *const texts[] = {"some words"}, *const specials[] = {"<|im_start|>", "<|im_end|>"};
    const char *path = fuzz_file("template", data, size);
    if (!tokenizer)
        fuzz_demand(dr_tokenizer_train(texts, 1, 258, specials, 2, &tokenizer) == DR_OK,
                    "a byte-level vocabulary");
    dr_chat *chat = NULL;
    if (dr_chat_load_file(path, &chat) == DR_OK) use(chat, tokenizer);
    chat = NULL;
    fuzz_file("chat_template.jinja", data, size);
    if (dr_chat_load(fuzz_folder(), tokenizer, &chat) == DR_OK) use(chat, tokenizer);
    return 0;
}
