//! Whole models through the C interface give what the runtime gives.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common;
use bitllama::error::*;
use bitllama::model::*;
use bitllama_runtime::model::Settings;
use bitllama_runtime::{Decoder, LogitsOf, open};
use tempfile::TempDir;

/// Tokens of the test's models.
const VOCAB: usize = 258;

/// A model or a context, freed at the end.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

// SAFETY: models and contexts may be used from any thread.
unsafe impl<T> Sync for Owned<T> {}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: made by the tests below, and freed here only.
        unsafe { self.1(self.0) }
    }
}

fn model(path: &Path, flags: u32) -> Owned<Model> {
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the path ends with a zero byte.
    let model = unsafe { bitllama_open(path.as_ptr(), 2, flags) };
    assert!(!model.is_null(), "{}", last_error());
    Owned(model, bitllama_free)
}

fn context(model: &Owned<Model>) -> Owned<Context> {
    // SAFETY: the model is open.
    Owned(unsafe { bitllama_context_new(model.0) }, bitllama_context_free)
}

fn last_error() -> String {
    // SAFETY: the message of this thread, which no call changes meanwhile.
    unsafe { CStr::from_ptr(bitllama_last_error()) }.to_str().unwrap().to_string()
}

fn feed(context: &Owned<Context>, tokens: &[u32], all: bool) -> Result<Vec<f32>, i32> {
    let mut logits = vec![f32::NAN; if all { tokens.len() } else { 1 } * VOCAB];
    let (out, size) = (logits.as_mut_ptr(), logits.len());
    // SAFETY: the sizes are those of the vectors.
    match unsafe { bitllama_feed(context.0, tokens.as_ptr(), tokens.len(), all.into(), out, size) } {
        0 => Ok(logits),
        code => Err(code),
    }
}

fn batch(contexts: &[&Owned<Context>], parts: &[&[u32]]) -> Result<Vec<f32>, i32> {
    let mut logits = vec![f32::NAN; contexts.len() * VOCAB];
    let pointers: Vec<_> = contexts.iter().map(|context| context.0).collect();
    let (tokens, counts) = (parts.concat(), parts.iter().map(|part| part.len()).collect::<Vec<_>>());
    let (out, size) = (logits.as_mut_ptr(), logits.len());
    // SAFETY: the sizes are those of the vectors.
    match unsafe { bitllama_feed_batch(pointers.as_ptr(), tokens.as_ptr(), counts.as_ptr(), pointers.len(), out, size) }
    {
        0 => Ok(logits),
        code => Err(code),
    }
}

#[test]
fn logits_are_those_of_the_runtime() {
    let folder = TempDir::new().unwrap();
    let path = common::artifact(folder.path(), 1);
    for (flags, settings) in [(0, Settings::fast()), (BITLLAMA_EXACT, Settings::default())] {
        let decoder: Decoder = open(&path).unwrap().decoder.with_settings(settings);
        let model = model(&path, flags);
        let (a, b) = (context(&model), context(&model));
        let mut cache = decoder.new_cache();
        assert_eq!(feed(&a, &[256, 1, 2], true), Ok(decoder.forward(&[256, 1, 2], &mut cache, LogitsOf::All).unwrap()));
        assert_eq!(
            feed(&b, &[256], false),
            Ok(decoder.forward(&[256], &mut decoder.new_cache(), LogitsOf::Last).unwrap())
        );
        let next = batch(&[&a, &b], &[&[7], &[8, 9]]).unwrap();
        let alone = decoder.forward(&[7], &mut cache, LogitsOf::Last).unwrap();
        let far = |pair: (&f32, &f32)| (pair.0 - pair.1).abs() > 1e-4;
        assert!(next.len() == 2 * VOCAB && !next.iter().zip(&alone).any(far));
        // SAFETY: contexts that are not freed.
        let lens = unsafe { [bitllama_context_len(a.0), bitllama_context_len(b.0)] };
        assert_eq!(lens, [4, 3]);
    }
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let folder = TempDir::new().unwrap();
    let model = model(&common::artifact(folder.path(), 1), 0);
    let mut tokens = [0u32; 8];
    let mut text = [7u8; 8];
    // SAFETY: sizes are those of the arrays, or smaller.
    unsafe {
        assert_eq!(bitllama_encode(model.0, c"a\xc3\xa9".as_ptr(), 1, tokens.as_mut_ptr(), 3), 4);
        assert_eq!(tokens, [0; 8]);
        assert_eq!(bitllama_encode(model.0, c"a\xc3\xa9".as_ptr(), 1, tokens.as_mut_ptr(), 4), 4);
        assert_eq!(tokens[0], 256);
        let out = text.as_mut_ptr().cast();
        assert_eq!(bitllama_decode(model.0, tokens.as_ptr(), 4, out, 3), 3);
        assert_eq!(text, [7; 8]);
        assert_eq!(bitllama_decode(model.0, tokens.as_ptr(), 4, out, 4), 3);
        assert_eq!(&text[..5], b"a\xc3\xa9\0\x07");
        // Half a character.
        assert_eq!(bitllama_decode(model.0, tokens.as_ptr(), 3, out, 8), 4);
        assert_eq!(&text[..5], "a\u{fffd}\0".as_bytes());
        assert_eq!(bitllama_decode(model.0, null(), 0, out, 8), 0);
        assert_eq!(text[0], 0);

        assert_eq!(bitllama_decode(model.0, &258, 1, out, 8), BITLLAMA_ERROR_TOKEN);
        assert!(last_error().contains("258"));
        assert_eq!(bitllama_encode(model.0, null(), 0, null_mut(), 0), BITLLAMA_ERROR_INVALID_ARGUMENT);
        assert_eq!(bitllama_encode(null(), c"".as_ptr(), 0, null_mut(), 0), BITLLAMA_ERROR_INVALID_ARGUMENT);

        assert_eq!((bitllama_vocab_size(model.0), bitllama_context_length(model.0)), (258, 64));
        assert_eq!(bitllama_bos_token(model.0), 256);
        assert_eq!((bitllama_is_eos(model.0, 257), bitllama_is_eos(model.0, 256)), (1, 0));
        assert_eq!(CStr::from_ptr(bitllama_version()).to_str(), Ok(env!("CARGO_PKG_VERSION")));
    }
}

#[test]
fn contexts_of_other_models_and_twice_the_same_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = common::artifact(folder.path(), 1);
    let (model, other) = (model(&path, 0), self::model(&path, 0));
    let (a, b) = (context(&model), context(&other));
    assert_eq!(batch(&[&a, &b], &[&[1], &[2]]), Err(BITLLAMA_ERROR_INVALID_ARGUMENT));
    assert!(last_error().contains("different models"));
    assert_eq!(batch(&[&a, &a], &[&[1], &[2]]), Err(BITLLAMA_ERROR_BUSY));
    assert_eq!(batch(&[], &[]), Err(BITLLAMA_ERROR_INVALID_ARGUMENT));
    assert_eq!(
        batch(&[&a, &Owned(null_mut(), bitllama_context_free)], &[&[1], &[2]]),
        Err(BITLLAMA_ERROR_INVALID_ARGUMENT)
    );
    let c = context(&model);
    assert_eq!(batch(&[&a, &c], &[&[1], &[]]), Err(BITLLAMA_ERROR_INVALID_ARGUMENT));
    assert_eq!(batch(&[&a, &c], &[&[1], &[2; 65]]), Err(BITLLAMA_ERROR_CONTEXT_FULL));
    assert_eq!(batch(&[&a, &c], &[&[1], &[258]]), Err(BITLLAMA_ERROR_TOKEN));
    // SAFETY: contexts that are not freed.
    assert_eq!(unsafe { (bitllama_context_len(a.0), bitllama_context_len(c.0)) }, (0, 0));
}

#[test]
fn threads_share_a_model_and_wait_for_no_context() {
    let folder = TempDir::new().unwrap();
    let model = model(&common::artifact(folder.path(), 1), 0);
    let expected = feed(&context(&model), &[256, 5, 6, 7], false).unwrap();
    let shared = context(&model);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let others: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..50 {
                        assert_eq!(feed(&context(&model), &[256, 5, 6, 7], false).as_ref(), Ok(&expected));
                    }
                })
            })
            .collect();
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    match feed(&shared, &[1], false) {
                        Ok(_) | Err(BITLLAMA_ERROR_BUSY) => {}
                        // SAFETY: a context that is not freed.
                        Err(BITLLAMA_ERROR_CONTEXT_FULL) => unsafe {
                            let code = bitllama_context_clear(shared.0);
                            assert!(code == 0 || code == BITLLAMA_ERROR_BUSY);
                        },
                        Err(code) => panic!("{code}: {}", last_error()),
                    }
                }
            });
        }
        others.into_iter().for_each(|other| other.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
}
