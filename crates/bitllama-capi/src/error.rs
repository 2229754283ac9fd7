//! Error codes, and the message of a thread's last error.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A file of packed bytes cannot be read.
pub const BITLLAMA_ERROR_PACKED_FILE: c_int = -1;
/// A file of scales cannot be read, has a line that is no number, or too few lines.
pub const BITLLAMA_ERROR_SCALES_FILE: c_int = -2;
/// A file of packed bytes is shorter than its matrix.
pub const BITLLAMA_ERROR_SHORT_FILE: c_int = -3;
/// Elements of a size that is not supported.
pub const BITLLAMA_ERROR_ELEMENT_SIZE: c_int = -10;
/// A null or misaligned pointer, a size that is not positive, text that is no UTF-8, or an unknown mode or flag.
pub const BITLLAMA_ERROR_INVALID_ARGUMENT: c_int = -20;
/// The library failed inside: a fault of its own.
pub const BITLLAMA_ERROR_INTERNAL: c_int = -21;
/// A token outside the vocabulary.
pub const BITLLAMA_ERROR_TOKEN: c_int = -22;
/// More tokens than the model's context holds.
pub const BITLLAMA_ERROR_CONTEXT_FULL: c_int = -23;
/// A buffer is too small for the answer.
pub const BITLLAMA_ERROR_BUFFER_SIZE: c_int = -24;
/// The tokenizer refused.
pub const BITLLAMA_ERROR_TOKENIZER: c_int = -25;
/// A context is in use by another call.
pub const BITLLAMA_ERROR_BUSY: c_int = -26;

/// What a function failed with.
pub(crate) struct Failure {
    pub code: c_int,
    pub message: String,
}

impl Failure {
    pub fn new(code: c_int, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(BITLLAMA_ERROR_INVALID_ARGUMENT, message)
    }
}

thread_local!(static LAST: RefCell<CString> = RefCell::default());

/// The message of the last error in the calling thread: one line of UTF-8, empty if there was none. It is valid until the
/// next error in this thread; calls that succeed leave it.
#[unsafe(no_mangle)]
pub extern "C" fn bitllama_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// Runs the body of a function: failures and panics become `failed(code)` and a message.
pub(crate) fn guard<T>(failed: impl FnOnce(c_int) -> T, body: impl FnOnce() -> Result<T, Failure>) -> T {
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return value,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::new(BITLLAMA_ERROR_INTERNAL, format!("internal error: {}", panic_text(panic.as_ref()))),
    };
    let message = failure.message.replace('\0', "").split_whitespace().collect::<Vec<_>>().join(" ");
    // Without a message if the thread is about to end, where the place for it may be gone.
    let _ = LAST.try_with(|last| *last.borrow_mut() = CString::new(message).unwrap_or_default());
    failed(failure.code)
}

/// [`guard`] of a function that answers with 0.
pub(crate) fn code(body: impl FnOnce() -> Result<(), Failure>) -> c_int {
    guard(|code| code, || body().map(|()| 0))
}

/// [`guard`] of a function that answers with a number.
pub(crate) fn count(body: impl FnOnce() -> Result<usize, Failure>) -> c_int {
    guard(
        |code| code,
        || {
            let count = body()?;
            let too_large = |_| Failure::new(BITLLAMA_ERROR_INTERNAL, format!("{count} is too large for an int"));
            c_int::try_from(count).map_err(too_large)
        },
    )
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic")
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn last_error() -> String {
        // SAFETY: the message of this thread, which no call changes meanwhile.
        unsafe { CStr::from_ptr(bitllama_last_error()) }.to_str().unwrap().to_string()
    }

    #[test]
    fn failures_and_panics_become_codes_and_messages() {
        std::thread::spawn(|| assert_eq!(last_error(), "")).join().unwrap();
        assert_eq!(code(|| Err(Failure::argument("a\nb\0c"))), BITLLAMA_ERROR_INVALID_ARGUMENT);
        assert_eq!(last_error(), "a bc");
        assert_eq!(code(|| Ok(())), 0);
        assert_eq!(last_error(), "a bc");
        assert_eq!(code(|| panic!("number {}", 7)), BITLLAMA_ERROR_INTERNAL);
        assert_eq!(last_error(), "internal error: number 7");
        assert_eq!(count(|| Ok(usize::MAX)), BITLLAMA_ERROR_INTERNAL);
        assert_eq!(count(|| Ok(3)), 3);
    }
}
