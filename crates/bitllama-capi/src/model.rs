//! Whole models: what `bitllama run` computes, without its sampling.
//!
//! A model may be used by any number of threads at once. A context is one sequence; two calls with the same context at
//! the same time do no harm, one of them fails with [`BITLLAMA_ERROR_BUSY`].

use std::ffi::{c_char, c_float, c_int};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use bitllama_kernels::Pool;
use bitllama_runtime::evaluate::check_tokens;
use bitllama_runtime::model::Settings;
use bitllama_runtime::{Decoder, Error, KvCache, LogitsOf, Opened, Sequence, one_line, text};
use tokenizers::Tokenizer;

use crate::error::{
    BITLLAMA_ERROR_BUSY, BITLLAMA_ERROR_CONTEXT_FULL, BITLLAMA_ERROR_INTERNAL, BITLLAMA_ERROR_INVALID_ARGUMENT,
    BITLLAMA_ERROR_TOKEN, BITLLAMA_ERROR_TOKENIZER, Failure, code, count, guard,
};
use crate::memory::{check, copy, fits, input, path, text as text_at};
use crate::threads;

/// Flag of `bitllama_open`: compute with activations in f32 and keep keys and values in f32, as the weights were trained.
/// Without, activations are rounded to 8 bits and the cache to f16, which is several times as fast.
pub const BITLLAMA_EXACT: u32 = 1;

/// A model and its tokenizer.
pub struct Model(Arc<Loaded>);

struct Loaded {
    decoder: Decoder,
    tokenizer: Tokenizer,
}

impl Loaded {
    /// The token that begins a text.
    fn bos(&self) -> Result<Option<u32>, Error> {
        Ok(text::own_bos(&self.tokenizer)?.or(self.decoder.config().bos_token_id))
    }
}

/// A sequence: what the model keeps of the tokens fed so far.
pub struct Context {
    model: Arc<Loaded>,
    cache: Mutex<KvCache>,
    /// Number that the cache was made for.
    tokens: usize,
}

impl Context {
    fn new(model: &Arc<Loaded>, tokens: usize) -> Self {
        Context { cache: Mutex::new(model.decoder.new_cache_for(tokens)), model: Arc::clone(model), tokens }
    }
}

/// The version of this library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn bitllama_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Opens an artifact (the folder with `manifest.json`), a checkpoint, which is the student that its bit plan makes of its
/// weights, the folder of a run, which is its best student, or a Hugging Face directory or GGUF file in full precision, by its
/// path. `threads` of 0 or less: one for each core, shared by all models opened so. `flags` is 0 or `BITLLAMA_EXACT`.
///
/// Returns the model, which `bitllama_free` gives back, or NULL; `bitllama_last_error` tells why.
///
/// # Safety
/// `path` ends with a zero byte. Nothing changes or shortens the files while the model is open: weights are mapped, and a page
/// that is gone raises SIGBUS in the host process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_open(path: *const c_char, threads: c_int, flags: u32) -> *mut Model {
    or_null(|| {
        // SAFETY: as promised by the caller.
        let path = unsafe { self::path("path", path) }?;
        let settings = match flags {
            0 => Settings::fast(),
            BITLLAMA_EXACT => Settings::default(),
            _ => return Err(Failure::argument(format!("flags is {flags:#x}, known is BITLLAMA_EXACT only"))),
        };
        let Opened { decoder, tokenizer, .. } = bitllama_runtime::open(&path)?;
        let pool = threads::wanted(threads).map(|threads| Arc::new(Pool::new(threads)));
        Ok(Model(Arc::new(Loaded { decoder: decoder.with_settings(Settings { pool, ..settings }), tokenizer })))
    })
}

/// Gives a model back; NULL is nothing. Contexts made of it stay valid, and keep its memory until they are freed too.
///
/// # Safety
/// `model` is of `bitllama_open`, and was not freed before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_free(model: *mut Model) {
    // SAFETY: as promised by the caller.
    code(|| unsafe { free(model) });
}

/// Tokens that the model knows, and logits of a position; or `BITLLAMA_ERROR_INVALID_ARGUMENT`.
///
/// # Safety
/// `model` is NULL or an open model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_vocab_size(model: *const Model) -> c_int {
    // SAFETY: as promised by the caller.
    count(|| Ok(unsafe { loaded(model) }?.decoder.config().vocab_size))
}

/// Tokens that a context holds; or `BITLLAMA_ERROR_INVALID_ARGUMENT`.
///
/// # Safety
/// `model` is NULL or an open model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_context_length(model: *const Model) -> c_int {
    // SAFETY: as promised by the caller.
    count(|| Ok(unsafe { loaded(model) }?.decoder.config().max_position_embeddings))
}

/// The token that begins a text: the one that the tokenizer puts there, else the one that the config names, or -1 where there is
/// none; or `BITLLAMA_ERROR_INVALID_ARGUMENT`.
///
/// # Safety
/// `model` is NULL or an open model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_bos_token(model: *const Model) -> c_int {
    let bos = || {
        // SAFETY: as promised by the caller.
        let bos = unsafe { loaded(model) }?.bos()?;
        Ok(bos.and_then(|bos| c_int::try_from(bos).ok()).unwrap_or(-1))
    };
    guard(|code| code, bos)
}

/// 1 if `token` ends a text or a turn of a chat, else 0; or `BITLLAMA_ERROR_INVALID_ARGUMENT`.
///
/// # Safety
/// `model` is NULL or an open model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_is_eos(model: *const Model, token: u32) -> c_int {
    // SAFETY: as promised by the caller.
    count(|| Ok(unsafe { loaded(model) }?.decoder.config().end_tokens().any(|end| end == token).into()))
}

/// The tokens of `text` (UTF-8), with the one in front that the tokenizer puts there by itself. If `bos` is not 0, the
/// model's BOS token comes first even where the tokenizer puts none. Control tokens that the text spells, like `</s>`, are
/// read as such.
///
/// Returns how many tokens there are, and writes them to `tokens` if that is no more than `capacity`; call with a
/// `capacity` of 0 to learn the number. Fails with `BITLLAMA_ERROR_INVALID_ARGUMENT`, `BITLLAMA_ERROR_TOKENIZER` or
/// `BITLLAMA_ERROR_INTERNAL`.
///
/// # Safety
/// `model` is NULL or an open model; `text` ends with a zero byte; `tokens` has place for `capacity` tokens.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_encode(
    model: *const Model,
    text: *const c_char,
    bos: c_int,
    tokens: *mut u32,
    capacity: usize,
) -> c_int {
    count(|| {
        // SAFETY: as promised by the caller.
        let (model, text) = unsafe { (loaded(model)?, text_at("text", text)?) };
        check("tokens", tokens, capacity)?;
        let bos = if bos == 0 { text::own_bos(&model.tokenizer)? } else { model.bos()? };
        let found = text::encode(&model.tokenizer, bos, text)?;
        if found.len() <= capacity {
            // SAFETY: checked, and it is no more than `capacity`.
            unsafe { copy(&found, tokens) };
        }
        Ok(found.len())
    })
}

/// The text of `n` tokens, in UTF-8. Special tokens have no text. Where the tokens end in the middle of a character, the
/// text ends in U+FFFD: decode them together with the next ones.
///
/// Returns the length of the text in bytes, and writes it and a zero byte to `text` if `capacity` is larger than that;
/// call with a `capacity` of 0 to learn the length. Fails with `BITLLAMA_ERROR_INVALID_ARGUMENT`, `BITLLAMA_ERROR_TOKEN`,
/// `BITLLAMA_ERROR_TOKENIZER` or `BITLLAMA_ERROR_INTERNAL`.
///
/// # Safety
/// `model` is NULL or an open model; there are `n` tokens at `tokens`; `text` has place for `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_decode(
    model: *const Model,
    tokens: *const u32,
    n: usize,
    text: *mut c_char,
    capacity: usize,
) -> c_int {
    count(|| {
        // SAFETY: as promised by the caller.
        let (model, tokens) = unsafe { (loaded(model)?, input("tokens", tokens, n)?) };
        check("text", text, capacity)?;
        check_tokens(tokens, model.decoder.config().vocab_size)?;
        let found = text::decode(&model.tokenizer, tokens)?;
        let len = found.len();
        if len < capacity {
            let mut bytes = found.into_bytes();
            bytes.push(0);
            // SAFETY: checked, and it is no more than `capacity`.
            unsafe { copy(&bytes, text.cast()) };
        }
        Ok(len)
    })
}

/// A new sequence without tokens, which `bitllama_context_free` gives back; or NULL, and `bitllama_last_error` tells why. It holds
/// as many tokens as the model's context; of a model with LongRoPE (Phi 3 with 128k), as many as its original context, and
/// `bitllama_context_new_for` makes longer ones.
///
/// # Safety
/// `model` is NULL or an open model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_context_new(model: *const Model) -> *mut Context {
    or_null(|| {
        // SAFETY: as promised by the caller.
        let model = unsafe { loaded(model) }?;
        Ok(Context::new(model, model.decoder.config().short_context()))
    })
}

/// As `bitllama_context_new`, for a sequence of so many tokens. The number decides between the two rotary embeddings of a model with
/// LongRoPE, and nothing else.
///
/// # Safety
/// `model` is NULL or an open model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_context_new_for(model: *const Model, tokens: usize) -> *mut Context {
    or_null(|| {
        // SAFETY: as promised by the caller.
        let model = unsafe { loaded(model) }?;
        Ok(Context::new(model, tokens))
    })
}

/// Gives a context back; NULL is nothing.
///
/// # Safety
/// `context` is of `bitllama_context_new`, was not freed before, and no call is using it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_context_free(context: *mut Context) {
    // SAFETY: as promised by the caller.
    code(|| unsafe { free(context) });
}

/// Tokens fed so far; or `BITLLAMA_ERROR_INVALID_ARGUMENT`, `BITLLAMA_ERROR_BUSY` or `BITLLAMA_ERROR_INTERNAL`.
///
/// # Safety
/// `context` is NULL or a context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_context_len(context: *const Context) -> c_int {
    // SAFETY: as promised by the caller.
    count(|| Ok(unsafe { at("context", context) }?.lock()?.len()))
}

/// Forgets all tokens. After `BITLLAMA_ERROR_INTERNAL` this makes the context usable again.
///
/// Returns 0, `BITLLAMA_ERROR_INVALID_ARGUMENT` or `BITLLAMA_ERROR_BUSY`.
///
/// # Safety
/// `context` is NULL or a context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_context_clear(context: *mut Context) -> c_int {
    code(|| {
        // SAFETY: as promised by the caller.
        let context = unsafe { at("context", context) }?;
        match context.cache.try_lock() {
            Ok(mut cache) => cache.clear(),
            Err(TryLockError::Poisoned(cache)) => {
                // Made anew: nobody knows how far the call came that broke it.
                *cache.into_inner() = context.model.decoder.new_cache_for(context.tokens);
                context.cache.clear_poison();
            }
            Err(TryLockError::WouldBlock) => return Err(busy()),
        }
        Ok(())
    })
}

/// Forgets all tokens but the first `len`: to go on from there in another way costs nothing but the new tokens.
///
/// Returns 0, `BITLLAMA_ERROR_INVALID_ARGUMENT` where there are fewer than `len`, or layers with a
/// sliding window have forgotten what is seen from there, `BITLLAMA_ERROR_BUSY` or `BITLLAMA_ERROR_INTERNAL`.
///
/// # Safety
/// `context` is NULL or a context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_context_truncate(context: *mut Context, len: usize) -> c_int {
    code(|| {
        // SAFETY: as promised by the caller.
        let mut cache = unsafe { at("context", context) }?.lock()?;
        if len > cache.len() {
            return Err(Failure::argument(format!("len is {len}, but the context has {} tokens", cache.len())));
        }
        if !cache.can_truncate(len) {
            let reason = format!(
                "len is {len}, but layers with a window have forgotten what is seen from there; clear the context"
            );
            return Err(Failure::argument(reason));
        }
        cache.truncate(len);
        Ok(())
    })
}

/// Feeds `n` tokens (at least one), which follow those fed before.
///
/// `logits` gets what the model expects to follow: after the last token if `all` is 0 (`float[vocab_size]`), else after
/// each (`float[n][vocab_size]`). `size` is its number of floats. NULL and 0: none are wanted, which saves their
/// computation.
///
/// Returns 0, `BITLLAMA_ERROR_INVALID_ARGUMENT`, `BITLLAMA_ERROR_TOKEN`, `BITLLAMA_ERROR_CONTEXT_FULL`, `BITLLAMA_ERROR_BUFFER_SIZE`,
/// `BITLLAMA_ERROR_BUSY` or `BITLLAMA_ERROR_INTERNAL`. No token was fed if it is not 0; after `BITLLAMA_ERROR_INTERNAL` the context must be
/// cleared.
///
/// # Safety
/// `context` is NULL or a context; there are `n` tokens at `tokens`; `logits` has place for `size` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_feed(
    context: *mut Context,
    tokens: *const u32,
    n: usize,
    all: c_int,
    logits: *mut c_float,
    size: usize,
) -> c_int {
    code(|| {
        // SAFETY: as promised by the caller.
        let (context, tokens) = unsafe { (at("context", context)?, input("tokens", tokens, n)?) };
        let positions = if all == 0 { 1 } else { n };
        // SAFETY: as promised by the caller.
        unsafe { feed(&[context], &[tokens], all != 0, positions, logits, size) }
    })
}

/// `bitllama_feed` for `n` contexts of one model in one pass, which reads the weights once for all of them.
///
/// `tokens` holds the tokens for the first context, then those for the second, and so on; `counts[i]` says how many are
/// for context `i`, at least one. `logits` gets those after the last token of each, `float[n][vocab_size]`; `size` is its
/// number of floats. NULL and 0: none are wanted.
///
/// Returns what `bitllama_feed` does; `BITLLAMA_ERROR_BUSY` also where a context stands twice in the list. No token was fed to
/// any context if it is not 0.
///
/// # Safety
/// There are `n` pointers to contexts, or NULL, at `contexts`, `n` numbers at `counts` and as many tokens as their sum at
/// `tokens`; `logits` has place for `size` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitllama_feed_batch(
    contexts: *const *mut Context,
    tokens: *const u32,
    counts: *const usize,
    n: usize,
    logits: *mut c_float,
    size: usize,
) -> c_int {
    code(|| {
        // SAFETY: as promised by the caller.
        let (contexts, counts) = unsafe { (input("contexts", contexts, n)?, input("counts", counts, n)?) };
        let contexts = contexts
            .iter()
            // SAFETY: as promised by the caller.
            .map(|context| unsafe { at("a context", *context) })
            .collect::<Result<Vec<&Context>, _>>()?;
        let total = counts.iter().try_fold(0usize, |sum, count| sum.checked_add(*count));
        let total = total.ok_or_else(|| Failure::argument("counts are larger than memory"))?;
        // SAFETY: as promised by the caller.
        let mut rest = unsafe { input("tokens", tokens, total) }?;
        let mut parts = Vec::with_capacity(n);
        for count in counts {
            let (part, after) = rest.split_at(*count);
            parts.push(part);
            rest = after;
        }
        // SAFETY: as promised by the caller.
        unsafe { feed(&contexts, &parts, false, n, logits, size) }
    })
}

/// Feeds each of `contexts` its tokens and writes the logits of `positions` positions.
///
/// # Safety
/// There is place for `size` numbers at `logits`.
unsafe fn feed(
    contexts: &[&Context],
    tokens: &[&[u32]],
    all: bool,
    positions: usize,
    logits: *mut f32,
    size: usize,
) -> Result<(), Failure> {
    let Some(Context { model, .. }) = contexts.first() else { return Err(Failure::argument("there are no contexts")) };
    if contexts.iter().any(|context| !Arc::ptr_eq(&context.model, model)) {
        return Err(Failure::argument("the contexts are of different models"));
    }
    if tokens.iter().any(|tokens| tokens.is_empty()) {
        return Err(Failure::argument("there are no tokens"));
    }
    let wanted = match (logits.is_null() && size == 0, all) {
        (true, _) => LogitsOf::From(usize::MAX),
        (_, true) => LogitsOf::All,
        (_, false) => LogitsOf::Last,
    };
    if !matches!(wanted, LogitsOf::From(_)) {
        check("logits", logits, size)?;
        fits("logits", size, positions.saturating_mul(model.decoder.config().vocab_size))?;
    }
    let mut caches = contexts.iter().map(|context| context.lock()).collect::<Result<Vec<_>, _>>()?;
    let pairs = tokens.iter().zip(&mut caches);
    let mut sequences: Vec<Sequence> =
        pairs.map(|(tokens, cache)| Sequence { tokens, cache, logits: wanted }).collect();
    let found = model.decoder.forward_batch(&mut sequences)?;
    debug_assert!(found.len() <= size);
    // SAFETY: checked above: as many logits as `fits` was asked for, or none.
    unsafe { copy(&found, logits) };
    Ok(())
}

impl Context {
    /// The cache, for one call.
    fn lock(&self) -> Result<MutexGuard<'_, KvCache>, Failure> {
        self.cache.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => busy(),
            TryLockError::Poisoned(_) => {
                Failure::new(BITLLAMA_ERROR_INTERNAL, "an earlier call with this context failed inside; clear it first")
            }
        })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Token { .. } => BITLLAMA_ERROR_TOKEN,
            Error::Context { .. } => BITLLAMA_ERROR_CONTEXT_FULL,
            Error::Tokenizer(_) => BITLLAMA_ERROR_TOKENIZER,
            _ => BITLLAMA_ERROR_INVALID_ARGUMENT,
        };
        Self::new(code, one_line(&error))
    }
}

fn busy() -> Failure {
    Failure::new(BITLLAMA_ERROR_BUSY, "a context is in use by another call, or stands twice in a list")
}

/// # Safety
/// As [`at`].
unsafe fn loaded<'a>(model: *const Model) -> Result<&'a Arc<Loaded>, Failure> {
    // SAFETY: as promised by the caller.
    Ok(&unsafe { at("model", model) }?.0)
}

/// # Safety
/// `pointer` is null or of [`or_null`], and not freed during `'a`.
unsafe fn at<'a, T>(name: &str, pointer: *const T) -> Result<&'a T, Failure> {
    // SAFETY: as promised by the caller.
    unsafe { pointer.as_ref() }.ok_or_else(|| Failure::argument(format!("{name} is null")))
}

/// What `make` gives, on the heap; null if it fails.
fn or_null<T>(make: impl FnOnce() -> Result<T, Failure>) -> *mut T {
    guard(|_| ptr::null_mut(), || Ok(Box::into_raw(Box::new(make()?))))
}

/// # Safety
/// `pointer` is null or of [`or_null`], not freed before, and nobody uses it.
unsafe fn free<T>(pointer: *mut T) -> Result<(), Failure> {
    if !pointer.is_null() {
        // SAFETY: as promised by the caller.
        drop(unsafe { Box::from_raw(pointer) });
    }
    Ok(())
}
