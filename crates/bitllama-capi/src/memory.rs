//! What callers point to, checked as far as it can be.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::path::PathBuf;
use std::{ptr, slice};

use crate::error::{BITLLAMA_ERROR_BUFFER_SIZE, Failure};

/// `len` elements at `pointer`, which may be null if there are none.
///
/// # Safety
/// Where `pointer` is not null, `len` elements lie there, and nobody writes them during `'a`.
pub unsafe fn input<'a, T>(name: &str, pointer: *const T, len: usize) -> Result<&'a [T], Failure> {
    check(name, pointer, len)?;
    // SAFETY: as promised by the caller; the pointer is aligned, and the size is no larger than memory.
    Ok(if len == 0 { &[] } else { unsafe { slice::from_raw_parts(pointer, len) } })
}

/// Checks a place for `len` elements, before the work of making them.
pub fn check<T>(name: &str, pointer: *const T, len: usize) -> Result<(), Failure> {
    if pointer.is_null() && len > 0 {
        return Err(Failure::argument(format!("{name} is null")));
    }
    if !pointer.is_aligned() {
        return Err(Failure::argument(format!("{name} is not aligned to {} bytes", align_of::<T>())));
    }
    match len.checked_mul(size_of::<T>()) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(()),
        _ => Err(Failure::argument(format!("{name} has {len} elements, more than fit into memory"))),
    }
}

/// Copies `values` to `out`. A slice would not do: it may not overlap with inputs, nor be memory never written.
///
/// # Safety
/// `out` passed [`check`], and there is place for `values.len()` elements.
pub unsafe fn copy<T: Copy>(values: &[T], out: *mut T) {
    if !values.is_empty() {
        // SAFETY: as promised by the caller; `values` is memory of this library.
        unsafe { ptr::copy_nonoverlapping(values.as_ptr(), out, values.len()) }
    }
}

/// Refuses a buffer of `size` elements where `needed` are to be written.
pub fn fits(name: &str, size: usize, needed: usize) -> Result<(), Failure> {
    if size >= needed {
        return Ok(());
    }
    Err(Failure::new(BITLLAMA_ERROR_BUFFER_SIZE, format!("{name} has {size} elements, needed are {needed}")))
}

/// A size that must be positive.
pub fn size(name: &str, value: c_int) -> Result<usize, Failure> {
    let positive = usize::try_from(value).ok().filter(|value| *value > 0);
    positive.ok_or_else(|| Failure::argument(format!("{name} is {value}, must be positive")))
}

/// Text that ends with a zero byte.
///
/// # Safety
/// Where `pointer` is not null, a zero byte follows, and nobody writes up to it during `'a`.
pub unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Result<&'a str, Failure> {
    // SAFETY: as promised by the caller.
    let bytes = unsafe { bytes(name, pointer) }?;
    std::str::from_utf8(bytes).map_err(|_| Failure::argument(format!("{name} is no UTF-8")))
}

/// A path that ends with a zero byte: any bytes on Unix, UTF-8 elsewhere.
///
/// # Safety
/// As [`text`].
pub unsafe fn path(name: &str, pointer: *const c_char) -> Result<PathBuf, Failure> {
    // SAFETY: as promised by the caller.
    #[cfg(unix)]
    let path: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(unsafe { bytes(name, pointer) }?);
    #[cfg(not(unix))]
    let path = OsStr::new(unsafe { text(name, pointer) }?);
    Ok(path.into())
}

/// # Safety
/// As [`text`].
unsafe fn bytes<'a>(name: &str, pointer: *const c_char) -> Result<&'a [u8], Failure> {
    if pointer.is_null() {
        return Err(Failure::argument(format!("{name} is null")));
    }
    // SAFETY: as promised by the caller, and not null.
    Ok(unsafe { CStr::from_ptr(pointer) }.to_bytes())
}
