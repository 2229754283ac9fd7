//! Numbers that are written before they are read: zeroing a large result first costs as much as an operator's own work.

/// A vector of `len` numbers, all written by `write`.
///
/// `write` must write every number and read none before: what it does not write may be anything.
pub fn written(len: usize, write: impl FnOnce(&mut [f32])) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(len);
    // SAFETY: the capacity is there, and every pattern of bits is an f32; who calls writes before reading.
    #[allow(clippy::uninit_vec)]
    unsafe {
        numbers.set_len(len);
    }
    write(&mut numbers);
    numbers
}

#[cfg(test)]
mod tests {
    #[test]
    fn holds_what_was_written() {
        assert_eq!(super::written(3, |out| out.copy_from_slice(&[1.0, 2.0, 3.0])), [1.0, 2.0, 3.0]);
        assert!(super::written(0, |_| ()).is_empty());
    }
}
