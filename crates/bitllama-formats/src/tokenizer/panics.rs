//! Calls into `tokenizers` that may panic, as they do on some files and some texts.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::hf::one_line;

thread_local! {
    /// True while this thread is within [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `call`, and turns a panic of it into an error. The message of the panic is kept from standard error; panics of other
/// threads are reported as ever.
///
/// # Errors
/// Those of `call`, or its panic, in one line.
pub fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let outer = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.get() {
                outer(info);
            }
        }));
    });
    let nested = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(nested);
    match result {
        Ok(result) => result.map_err(|e| one_line(&e.to_string())),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(format!("the tokenizers library panicked: {}", one_line(message)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_errors_and_panics_come_out_as_such() {
        assert_eq!(guarded(|| Ok(7)), Ok(7));
        assert_eq!(guarded::<()>(|| Err("two\nlines".into())), Err("two lines".into()));
        let panicked = guarded::<()>(|| panic!("index {} of {}", 1, 0));
        assert_eq!(panicked, Err("the tokenizers library panicked: index 1 of 0".into()));
        // What is nested in a call keeps the outer one guarded.
        let outer = guarded(|| guarded::<()>(|| panic!("inner")).map_err(|_| panic!("outer")));
        assert_eq!(outer, Err::<(), _>("the tokenizers library panicked: outer".into()));
    }
}
