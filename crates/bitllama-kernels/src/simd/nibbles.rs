//! Codes of four bits, as vectors read them.

use super::LANES;

/// [`LANES`] codes -8 ..= 7: where a code lies, [`nibble_place`] says, so that the lanes of a vector alternate between
/// the two halves and each is a shift away from them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Nibbles(pub [u8; LANES / 2]);

/// Byte and bit of a lane's code. The two halves of [`Nibbles`] are little-endian numbers of eight codes; lane `l` is
/// code `l / 2` of the half `l % 2`.
pub(crate) fn nibble_place(lane: usize) -> (usize, u32) {
    (lane % 2 * 4 + lane / 4, (lane / 2 % 2 * 4) as u32)
}

impl Nibbles {
    /// The code of a lane.
    #[inline(always)]
    pub(crate) fn code(&self, lane: usize) -> f32 {
        let (byte, shift) = nibble_place(lane);
        f32::from(((self.0[byte] >> shift) << 4) as i8 >> 4)
    }
}
