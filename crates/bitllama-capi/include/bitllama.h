/* The runtime of bitllama as a shared library.

   The functions that begin with `matmul_`, and those of the GPU, are the interface of earlier tools: products of one
   matrix with one vector. Those that begin with `bitllama_` run whole models.

   Functions answer with a count or 0, or with a negative code, and then `bitllama_last_error` tells more. They may be
   called from any thread; whole models may be shared by threads, and a context should be used by one at a time. Strings
   are UTF-8 and end with a zero byte. Counts of elements are never bytes, but for text.

   The library starts threads that live as long as the process. Do not unload it; on Linux, dlclose leaves it in place.

   Files may hold anything: a damaged or hostile one is refused with an error. But weights stay mapped from the file while
   a model is open. If anything shortens that file meanwhile, the next access to a page that is gone raises SIGBUS (an
   access violation on Windows), which ends the host process unless it handles the signal; if anything writes to it,
   results change. So replace model files by renaming a new file over the old one, never in place, and open models from
   local files that only you can write: copy one from a network share or a folder of others first. */

#ifndef BITLLAMA_H
#define BITLLAMA_H

/* Made by cbindgen of crates/bitllama-capi/src. To make it anew:
   BITLLAMA_WRITE_HEADER=1 cargo test -p bitllama-capi --test all header */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 A file of packed bytes cannot be read.
 */
#define BITLLAMA_ERROR_PACKED_FILE -1

/*
 A file of scales cannot be read, has a line that is no number, or too few lines.
 */
#define BITLLAMA_ERROR_SCALES_FILE -2

/*
 A file of packed bytes is shorter than its matrix.
 */
#define BITLLAMA_ERROR_SHORT_FILE -3

/*
 Elements of a size that is not supported.
 */
#define BITLLAMA_ERROR_ELEMENT_SIZE -10

/*
 A null or misaligned pointer, a size that is not positive, text that is no UTF-8, or an unknown mode or flag.
 */
#define BITLLAMA_ERROR_INVALID_ARGUMENT -20

/*
 The library failed inside: a fault of its own.
 */
#define BITLLAMA_ERROR_INTERNAL -21

/*
 A token outside the vocabulary.
 */
#define BITLLAMA_ERROR_TOKEN -22

/*
 More tokens than the model's context holds.
 */
#define BITLLAMA_ERROR_CONTEXT_FULL -23

/*
 A buffer is too small for the answer.
 */
#define BITLLAMA_ERROR_BUFFER_SIZE -24

/*
 The tokenizer refused.
 */
#define BITLLAMA_ERROR_TOKENIZER -25

/*
 A context is in use by another call.
 */
#define BITLLAMA_ERROR_BUSY -26

/*
 Flag of `bitllama_open`: compute with activations in f32 and keep keys and values in f32, as the weights were trained.
 Without, activations are rounded to 8 bits and the cache to f16, which is several times as fast.
 */
#define BITLLAMA_EXACT 1

/*
 A sequence: what the model keeps of the tokens fed so far.
 */
typedef struct bitllama_context bitllama_context;

/*
 A model and its tokenizer.
 */
typedef struct bitllama_model bitllama_model;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 The message of the last error in the calling thread: one line of UTF-8, empty if there was none. It is valid until the
 next error in this thread; calls that succeed leave it.
 */
const char *bitllama_last_error(void);

/*
 `out_vec[r] = scale[r] * sum over c of w[r, c] * in_vec[c]` for a matrix of signs `w` (`[out, in]`, -1 and +1).

 `packed_file` holds `out` rows of `ceil(in / 8)` bytes: a bit a sign, 1 is +1, the first column in the most significant
 bit (NumPy's `packbits`). The bits beyond the last column of a row may be anything, and so may bytes after the last
 row. `scales_file` is text, one scale a line; lines beyond the first `out` are not read. Both files are read at each
 call.

 `mode` 0: `in_vec` is `float[in]`. `mode` 1: `in_vec` points to `ceil(in / 8)` bytes of signs, packed like a row; the
 product is then exact (XNOR and popcount). `out_vec` is `float[out]`, may be `in_vec`, and is written on success only.
 `threads` of 0 or less: one for each core.

 Returns 0, `BITLLAMA_ERROR_PACKED_FILE`, `BITLLAMA_ERROR_SCALES_FILE`, `BITLLAMA_ERROR_SHORT_FILE`, `BITLLAMA_ERROR_INVALID_ARGUMENT` or
 `BITLLAMA_ERROR_INTERNAL`.

 # Safety
 The paths end with a zero byte; `in_vec` and `out_vec` have the sizes above.
 */
int matmul_1bit(const char *packed_file,
                const char *scales_file,
                const float *in_vec,
                float *out_vec,
                int out,
                int in,
                int mode,
                int threads);

/*
 `out_vec[r] = scales[r] * sum over c of (q[r, c] - zero_points[r]) * in_vec[c]`.

 `q` is `[out, in]`, row-major, one value an element of `elem_bytes`: 1 (`uint8_t`), 2 (`uint16_t`) or 4 (`int32_t`), of
 any alignment.
 `scales` is `float[out]`; `zero_points` is `int[out]`, or NULL for zeros; `in_vec` is `float[in]`. `out_vec` is
 `float[out]`, may be `in_vec`, and is written on success only. `bits` says how wide the values are, 1 to
 `8 * elem_bytes`; they are used as they stand. `mode` is ignored: the product is always computed in f32. `threads` of 0
 or less: one for each core.

 Returns 0, `BITLLAMA_ERROR_ELEMENT_SIZE`, `BITLLAMA_ERROR_INVALID_ARGUMENT` or `BITLLAMA_ERROR_INTERNAL`.

 # Safety
 The arrays have the sizes above.
 */
int matmul_q_in_mem(const void *q,
                    int elem_bytes,
                    const float *scales,
                    const int *zero_points,
                    const float *in_vec,
                    float *out_vec,
                    int out,
                    int in,
                    int bits,
                    int mode,
                    int threads);

/*
 `matmul_q_in_mem` for values of 4 bits.

 `q4` with `packed`: `out` rows of `ceil(in / 2)` bytes, two values a byte, the first in the low half; the last half
 byte of a row with odd `in` may be anything. Without: `uint8_t[out][in]`, one value a byte.

 Returns 0, `BITLLAMA_ERROR_INVALID_ARGUMENT` or `BITLLAMA_ERROR_INTERNAL`.

 # Safety
 The arrays have the sizes above.
 */
int matmul_q4_optimized(const void *q4,
                        bool packed,
                        const float *scales,
                        const int *zero_points,
                        const float *in_vec,
                        float *out_vec,
                        int out,
                        int in,
                        int threads);

/*
 For programs of the earlier tools: this library computes on processors. Returns -1, there is no GPU.
 */
int init_gpu(void);

/*
 For programs of the earlier tools: there is nothing to clean up. Returns 0.
 */
int cleanup_gpu(void);

/*
 The version of this library, such as "0.1.0".
 */
const char *bitllama_version(void);

/*
 Opens an artifact (the folder with `manifest.json`), a checkpoint, which is the student that its bit plan makes of its
 weights, the folder of a run, which is its best student, or a Hugging Face directory or GGUF file in full precision, by its
 path. `threads` of 0 or less: one for each core, shared by all models opened so. `flags` is 0 or `BITLLAMA_EXACT`.

 Returns the model, which `bitllama_free` gives back, or NULL; `bitllama_last_error` tells why.

 # Safety
 `path` ends with a zero byte. Nothing changes or shortens the files while the model is open: weights are mapped, and a page
 that is gone raises SIGBUS in the host process.
 */
bitllama_model *bitllama_open(const char *path,
                              int threads,
                              uint32_t flags);

/*
 Gives a model back; NULL is nothing. Contexts made of it stay valid, and keep its memory until they are freed too.

 # Safety
 `model` is of `bitllama_open`, and was not freed before.
 */
void bitllama_free(bitllama_model *model);

/*
 Tokens that the model knows, and logits of a position; or `BITLLAMA_ERROR_INVALID_ARGUMENT`.

 # Safety
 `model` is NULL or an open model.
 */
int bitllama_vocab_size(const bitllama_model *model);

/*
 Tokens that a context holds; or `BITLLAMA_ERROR_INVALID_ARGUMENT`.

 # Safety
 `model` is NULL or an open model.
 */
int bitllama_context_length(const bitllama_model *model);

/*
 The token that begins a text: the one that the tokenizer puts there, else the one that the config names, or -1 where there is
 none; or `BITLLAMA_ERROR_INVALID_ARGUMENT`.

 # Safety
 `model` is NULL or an open model.
 */
int bitllama_bos_token(const bitllama_model *model);

/*
 1 if `token` ends a text or a turn of a chat, else 0; or `BITLLAMA_ERROR_INVALID_ARGUMENT`.

 # Safety
 `model` is NULL or an open model.
 */
int bitllama_is_eos(const bitllama_model *model, uint32_t token);

/*
 The tokens of `text` (UTF-8), with the one in front that the tokenizer puts there by itself. If `bos` is not 0, the
 model's BOS token comes first even where the tokenizer puts none. Control tokens that the text spells, like `</s>`, are
 read as such.

 Returns how many tokens there are, and writes them to `tokens` if that is no more than `capacity`; call with a
 `capacity` of 0 to learn the number. Fails with `BITLLAMA_ERROR_INVALID_ARGUMENT`, `BITLLAMA_ERROR_TOKENIZER` or
 `BITLLAMA_ERROR_INTERNAL`.

 # Safety
 `model` is NULL or an open model; `text` ends with a zero byte; `tokens` has place for `capacity` tokens.
 */
int bitllama_encode(const bitllama_model *model, const char *text, int bos, uint32_t *tokens, size_t capacity);

/*
 The text of `n` tokens, in UTF-8. Special tokens have no text. Where the tokens end in the middle of a character, the
 text ends in U+FFFD: decode them together with the next ones.

 Returns the length of the text in bytes, and writes it and a zero byte to `text` if `capacity` is larger than that;
 call with a `capacity` of 0 to learn the length. Fails with `BITLLAMA_ERROR_INVALID_ARGUMENT`, `BITLLAMA_ERROR_TOKEN`,
 `BITLLAMA_ERROR_TOKENIZER` or `BITLLAMA_ERROR_INTERNAL`.

 # Safety
 `model` is NULL or an open model; there are `n` tokens at `tokens`; `text` has place for `capacity` bytes.
 */
int bitllama_decode(const bitllama_model *model, const uint32_t *tokens, size_t n, char *text, size_t capacity);

/*
 A new sequence without tokens, which `bitllama_context_free` gives back; or NULL, and `bitllama_last_error` tells why. It holds
 as many tokens as the model's context; of a model with LongRoPE (Phi 3 with 128k), as many as its original context, and
 `bitllama_context_new_for` makes longer ones.

 # Safety
 `model` is NULL or an open model.
 */
bitllama_context *bitllama_context_new(const bitllama_model *model);

/*
 As `bitllama_context_new`, for a sequence of so many tokens. The number decides between the two rotary embeddings of a model with
 LongRoPE, and nothing else.

 # Safety
 `model` is NULL or an open model.
 */
bitllama_context *bitllama_context_new_for(const bitllama_model *model,
                                           size_t tokens);

/*
 Gives a context back; NULL is nothing.

 # Safety
 `context` is of `bitllama_context_new`, was not freed before, and no call is using it.
 */
void bitllama_context_free(bitllama_context *context);

/*
 Tokens fed so far; or `BITLLAMA_ERROR_INVALID_ARGUMENT`, `BITLLAMA_ERROR_BUSY` or `BITLLAMA_ERROR_INTERNAL`.

 # Safety
 `context` is NULL or a context.
 */
int bitllama_context_len(const bitllama_context *context);

/*
 Forgets all tokens. After `BITLLAMA_ERROR_INTERNAL` this makes the context usable again.

 Returns 0, `BITLLAMA_ERROR_INVALID_ARGUMENT` or `BITLLAMA_ERROR_BUSY`.

 # Safety
 `context` is NULL or a context.
 */
int bitllama_context_clear(bitllama_context *context);

/*
 Forgets all tokens but the first `len`: to go on from there in another way costs nothing but the new tokens.

 Returns 0, `BITLLAMA_ERROR_INVALID_ARGUMENT` where there are fewer than `len`, or layers with a
 sliding window have forgotten what is seen from there, `BITLLAMA_ERROR_BUSY` or `BITLLAMA_ERROR_INTERNAL`.

 # Safety
 `context` is NULL or a context.
 */
int bitllama_context_truncate(bitllama_context *context, size_t len);

/*
 Feeds `n` tokens (at least one), which follow those fed before.

 `logits` gets what the model expects to follow: after the last token if `all` is 0 (`float[vocab_size]`), else after
 each (`float[n][vocab_size]`). `size` is its number of floats. NULL and 0: none are wanted, which saves their
 computation.

 Returns 0, `BITLLAMA_ERROR_INVALID_ARGUMENT`, `BITLLAMA_ERROR_TOKEN`, `BITLLAMA_ERROR_CONTEXT_FULL`, `BITLLAMA_ERROR_BUFFER_SIZE`,
 `BITLLAMA_ERROR_BUSY` or `BITLLAMA_ERROR_INTERNAL`. No token was fed if it is not 0; after `BITLLAMA_ERROR_INTERNAL` the context must be
 cleared.

 # Safety
 `context` is NULL or a context; there are `n` tokens at `tokens`; `logits` has place for `size` floats.
 */
int bitllama_feed(bitllama_context *context,
                  const uint32_t *tokens,
                  size_t n,
                  int all,
                  float *logits,
                  size_t size);

/*
 `bitllama_feed` for `n` contexts of one model in one pass, which reads the weights once for all of them.

 `tokens` holds the tokens for the first context, then those for the second, and so on; `counts[i]` says how many are
 for context `i`, at least one. `logits` gets those after the last token of each, `float[n][vocab_size]`; `size` is its
 number of floats. NULL and 0: none are wanted.

 Returns what `bitllama_feed` does; `BITLLAMA_ERROR_BUSY` also where a context stands twice in the list. No token was fed to
 any context if it is not 0.

 # Safety
 There are `n` pointers to contexts, or NULL, at `contexts`, `n` numbers at `counts` and as many tokens as their sum at
 `tokens`; `logits` has place for `size` floats.
 */
int bitllama_feed_batch(bitllama_context *const *contexts,
                        const uint32_t *tokens,
                        const size_t *counts,
                        size_t n,
                        float *logits,
                        size_t size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BITLLAMA_H */
