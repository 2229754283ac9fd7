/* Loads the shared library as a program of another language does, and calls every function of bitllama.h.

   cc -std=c11 -I crates/bitllama-capi/include tests/c/bitllama_dlopen.c -o bitllama_dlopen -ldl
   ./bitllama_dlopen LIBRARY ARTIFACT EMPTY_FOLDER */

#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitllama.h"

/* Each function by its name, with the type that the header gives it. */
#define FUNCTIONS(f)                                                                                                  \
    f(matmul_1bit) f(matmul_q_in_mem) f(matmul_q4_optimized) f(init_gpu) f(cleanup_gpu) f(bitllama_version)           \
    f(bitllama_last_error) f(bitllama_open) f(bitllama_free) f(bitllama_vocab_size) f(bitllama_context_length)        \
    f(bitllama_bos_token) f(bitllama_is_eos) f(bitllama_encode) f(bitllama_decode) f(bitllama_context_new)            \
    f(bitllama_context_free) f(bitllama_context_len) f(bitllama_context_clear) f(bitllama_context_truncate)           \
    f(bitllama_feed) f(bitllama_feed_batch) f(bitllama_context_new_for)

#define DECLARE(name) __typeof__(&name) name;
static struct {
    FUNCTIONS(DECLARE)
} api;

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(1);
    }
    return found;
}

/* ISO C has no conversion of `void *` to a function pointer; POSIX wants it to work, and so it does in memory. */
#define LOAD(name)                                                                                                    \
    do {                                                                                                              \
        void *found = symbol(library, #name);                                                                         \
        memcpy(&api.name, &found, sizeof found);                                                                      \
    } while (0);

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition, api.bitllama_last_error()); \
            exit(1);                                                                                                  \
        }                                                                                                             \
    } while (0)

static const char *write_file(const char *folder, const char *name, const void *bytes, size_t size) {
    static char paths[4][4096];
    static int next = 0;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
    return path;
}

static void check_matmul(const char *folder) {
    /* Two rows of 10 columns: + - + + - - - - + -  and  - ... - +; the spare six bits are all 1. */
    const unsigned char packed[] = {0xb0, 0xbf, 0x00, 0x7f};
    const char *packed_file = write_file(folder, "w_1bit.bin", packed, sizeof packed);
    const char *scales_file = write_file(folder, "w_scales.txt", "0.5\n2\n", 6);
    const float x[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    float y[2] = {0, 0};
    CHECK(api.matmul_1bit(packed_file, scales_file, x, y, 2, 10, 0, 0) == 0);
    CHECK(y[0] == 0.5f * (1 - 2 + 3 + 4 - 5 - 6 - 7 - 8 + 9 - 10) && y[1] == 2.0f * (10 - 45));

    /* The signs of the first row as input: 10 of 10 agree, and those of the second in columns 1, 4 to 7. */
    const unsigned char signs[] = {0xb0, 0x80};
    CHECK(api.matmul_1bit(packed_file, scales_file, (const float *)(const void *)signs, y, 2, 10, 1, 1) == 0);
    CHECK(y[0] == 0.5f * 10 && y[1] == 2.0f * (5 - 5));

    y[0] = 7;
    CHECK(api.matmul_1bit("/nowhere", scales_file, x, y, 2, 10, 0, 1) == BITLLAMA_ERROR_PACKED_FILE);
    CHECK(strstr(api.bitllama_last_error(), "/nowhere") != NULL);
    CHECK(api.matmul_1bit(packed_file, "/nowhere", x, y, 2, 10, 0, 1) == BITLLAMA_ERROR_SCALES_FILE);
    CHECK(api.matmul_1bit(packed_file, scales_file, x, y, 3, 10, 0, 1) == BITLLAMA_ERROR_SHORT_FILE);
    CHECK(api.matmul_1bit(packed_file, scales_file, NULL, y, 2, 10, 0, 1) == BITLLAMA_ERROR_INVALID_ARGUMENT);
    CHECK(y[0] == 7);

    const unsigned char q[] = {0, 1, 15, 3, 2, 1};
    const int wide[] = {0, 1, 15, 3, 2, 1};
    const unsigned short words[] = {0, 1, 15, 3, 2, 1};
    const unsigned char nibbles[] = {0x10, 0xff, 0x23, 0x01};
    const float scales[] = {1, 0.5f};
    const int zero_points[] = {1, 2};
    const float v[] = {1, 2, 4};
    CHECK(api.matmul_q_in_mem(q, 1, scales, zero_points, v, y, 2, 3, 4, 0, 1) == 0 && y[0] == 55 && y[1] == -1.5f);
    CHECK(api.matmul_q_in_mem(wide, 4, scales, NULL, v, y, 2, 3, 4, 0, 1) == 0 && y[0] == 62 && y[1] == 5.5f);
    CHECK(api.matmul_q_in_mem(words, 2, scales, zero_points, v, y, 2, 3, 4, 0, 1) == 0 && y[0] == 55 && y[1] == -1.5f);
    CHECK(api.matmul_q_in_mem(q, 3, scales, NULL, v, y, 2, 3, 4, 0, 1) == BITLLAMA_ERROR_ELEMENT_SIZE);
    CHECK(api.matmul_q4_optimized(nibbles, true, scales, zero_points, v, y, 2, 3, 2) == 0 && y[0] == 55 && y[1] == -1.5f);
    CHECK(api.matmul_q4_optimized(q, false, scales, NULL, v, y, 2, 3, 2) == 0 && y[0] == 62 && y[1] == 5.5f);
    CHECK(api.init_gpu() == -1 && api.cleanup_gpu() == 0);
}

/* A batch adds in another order than single tokens do; activations in 8 bits may fall on the other side of a half. */
static int close_to(const float *a, const float *b, size_t n, unsigned flags) {
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(a[i] - b[i]) <= (flags & BITLLAMA_EXACT ? 1e-4f : 0.1f))) return 0;
    return 1;
}

static void check_model(const char *path, unsigned flags) {
    CHECK(api.bitllama_open("/nowhere/at/all", 0, flags) == NULL);
    CHECK(strstr(api.bitllama_last_error(), "/nowhere/at/all") != NULL);
    CHECK(api.bitllama_open(NULL, 0, flags) == NULL && api.bitllama_open(path, 0, 1u << 31) == NULL);

    bitllama_model *model = api.bitllama_open(path, 2, flags);
    CHECK(model != NULL);
    const int vocab_size = api.bitllama_vocab_size(model), length = api.bitllama_context_length(model);
    CHECK(vocab_size > 0 && length >= 8);
    const uint32_t unknown = (uint32_t)vocab_size;
    CHECK(api.bitllama_vocab_size(NULL) == BITLLAMA_ERROR_INVALID_ARGUMENT);
    CHECK(api.bitllama_bos_token(model) < vocab_size && api.bitllama_is_eos(model, unknown) == 0);

    uint32_t tokens[8];
    const int n = api.bitllama_encode(model, "llama", 0, NULL, 0);
    CHECK(n > 1 && n <= 7 && api.bitllama_encode(model, "llama", 0, tokens, 8) == n);
    char text[32];
    CHECK(api.bitllama_decode(model, tokens, (size_t)n, NULL, 0) == 5);
    CHECK(api.bitllama_decode(model, tokens, (size_t)n, text, sizeof text) == 5 && strcmp(text, "llama") == 0);
    CHECK(api.bitllama_encode(model, "\xff", 0, tokens, 8) == BITLLAMA_ERROR_INVALID_ARGUMENT);

    /* The same logits to rounding whether the tokens come at once, one by one, in a batch, or after others were forgotten. */
    const size_t size = (size_t)vocab_size;
    float *first = malloc(size * sizeof *first), *second = malloc(2 * size * sizeof *second);
    float *every = malloc((size_t)n * size * sizeof *every);
    CHECK(first != NULL && second != NULL && every != NULL);
    bitllama_context *context = api.bitllama_context_new(model), *other = api.bitllama_context_new_for(model, (size_t)length);
    CHECK(context != NULL && other != NULL);
    CHECK(api.bitllama_feed(context, tokens, (size_t)n, 0, first, size) == 0);
    CHECK(api.bitllama_context_len(context) == n);
    for (size_t i = 0; i < size; i++) CHECK(isfinite(first[i]));

    CHECK(api.bitllama_context_clear(context) == 0 && api.bitllama_context_len(context) == 0);
    CHECK(api.bitllama_feed(context, tokens, (size_t)n, 1, every, (size_t)n * size) == 0);
    CHECK(close_to(first, every + (size_t)(n - 1) * size, size, flags));

    CHECK(api.bitllama_context_truncate(context, 1) == 0 && api.bitllama_context_len(context) == 1);
    CHECK(api.bitllama_context_truncate(context, 2) == BITLLAMA_ERROR_INVALID_ARGUMENT);
    CHECK(api.bitllama_feed(other, tokens, 1, 0, NULL, 0) == 0);
    bitllama_context *both[] = {context, other};
    uint32_t twice[16];
    memcpy(twice, tokens + 1, (size_t)(n - 1) * sizeof *tokens);
    memcpy(twice + n - 1, tokens + 1, (size_t)(n - 1) * sizeof *tokens);
    const size_t counts[] = {(size_t)(n - 1), (size_t)(n - 1)};
    CHECK(api.bitllama_feed_batch(both, twice, counts, 2, second, 2 * size) == 0);
    CHECK(close_to(first, second, size, flags) && close_to(first, second + size, size, flags));

    /* Errors feed nothing. */
    CHECK(api.bitllama_feed(context, &unknown, 1, 0, first, size) == BITLLAMA_ERROR_TOKEN);
    CHECK(api.bitllama_feed(context, tokens, 1, 0, first, size - 1) == BITLLAMA_ERROR_BUFFER_SIZE);
    CHECK(api.bitllama_feed(context, tokens, 0, 0, first, size) == BITLLAMA_ERROR_INVALID_ARGUMENT);
    CHECK(api.bitllama_feed(NULL, tokens, 1, 0, first, size) == BITLLAMA_ERROR_INVALID_ARGUMENT);
    both[1] = context;
    CHECK(api.bitllama_feed_batch(both, twice, counts, 2, second, 2 * size) == BITLLAMA_ERROR_BUSY);
    CHECK(api.bitllama_context_len(context) == n);
    int code = 0;
    for (int fed = n; code == 0 && fed <= length; fed++) code = api.bitllama_feed(context, tokens, 1, 0, NULL, 0);
    CHECK(code == BITLLAMA_ERROR_CONTEXT_FULL && api.bitllama_context_len(context) == length);

    /* A context keeps what it needs of its model. */
    api.bitllama_free(model);
    CHECK(api.bitllama_context_clear(context) == 0);
    CHECK(api.bitllama_feed(context, tokens, (size_t)n, 0, second, size) == 0);
    CHECK(memcmp(first, second, size * sizeof *first) == 0);
    api.bitllama_context_free(context);
    api.bitllama_context_free(other);
    api.bitllama_context_free(NULL);
    api.bitllama_free(NULL);
    free(first);
    free(second);
    free(every);
}

int main(int argc, char **argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: %s LIBRARY ARTIFACT EMPTY_FOLDER\n", argv[0]);
        return 2;
    }
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    FUNCTIONS(LOAD)
    CHECK(strlen(api.bitllama_version()) >= 5 && strcmp(api.bitllama_last_error(), "") == 0);
    check_matmul(argv[3]);
    check_model(argv[2], 0);
    check_model(argv[2], BITLLAMA_EXACT);
    /* The threads of the library still run: its code must stay. */
    dlclose(library);
    printf("ok\n");
    return 0;
}
