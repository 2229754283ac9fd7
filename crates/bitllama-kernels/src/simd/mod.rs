//! Sixteen 32-bit lanes on every instruction set: the one layer that all kernels of this crate are written in.
//!
//! A loop is written once, over [`Simd`], and compiled for each instruction set by [`for_isa`]. A value of a type that
//! implements [`Simd`] is a proof that the processor has the instructions: it comes from an `unsafe` constructor, so
//! the operations themselves are safe.
//!
//! A vector has [`LANES`] floats, as many whole numbers, or four bytes per lane. In products with packed weights a lane is
//! a row of a panel ([`bitllama_core::panel`]), so sums never cross lanes.
//!
//! | file | vectors |
//! |---|---|
//! | `portable` | arrays, the reference for all others |
//! | `avx2` | pairs of registers of 256 bits, for products of bytes with VNNI as well |
//! | `avx512` | registers of 512 bits, with VNNI |
//! | `neon` | four registers of 128 bits, with the dot product extension |
//!
//! Kernels do not use closures around vectors: a closure is compiled apart from the function around it, without that
//! function's instruction set.

/// An expression of intrinsics in a method of a proof.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! proven {
    ($x:expr) => {
        // SAFETY: `self` exists, so the processor has the instructions, and what is read or written through a
        // pointer is an array of the right length behind a reference.
        unsafe { $x }
    };
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod nibbles;
mod portable;

use half::f16;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::{AVX_VNNI, AVX512_VNNI, Avx2, NO_VNNI};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use nibbles::{Nibbles, nibble_place};
pub(crate) use portable::Portable;

/// Lanes of a vector, whatever the instruction set.
pub(crate) const LANES: usize = 16;
/// Bytes of a vector, four per lane.
pub(crate) const BYTES: usize = 4 * LANES;

/// A proof that the processor has an instruction set, and the set's operations on vectors of [`LANES`] lanes.
pub(crate) trait Simd: Copy {
    /// An `f32` per lane.
    type Floats: Copy;
    /// An `i32` per lane.
    type Ints: Copy;
    /// Four bytes per lane.
    type Bytes: Copy;
    /// Sums of products of bytes that are not yet in 32 bits, see [`Simd::depth`].
    type Dots: Copy;
    /// Vectors that the accumulators of a register block may take, beside the operands.
    const BLOCK: usize;
    /// Rows that a register block has at most.
    const ROWS: usize;
    /// Whether sums of a few fields that stand higher in their bytes still fit ([`crate::integer`]): not where products of
    /// two bytes are summed in 16 bits.
    const STACKED: bool;
    /// Vectors of sums that fit into registers beside the operands of a product with bytes.
    const SUMS: usize;
    /// The number that [`Simd::dot_bytes`] takes from each field, so that it is a signed byte.
    const BYTE_BIAS: i32;

    fn splat(self, x: f32) -> Self::Floats;
    fn load(self, x: &[f32; LANES]) -> Self::Floats;
    fn load_f16(self, x: &[f16; LANES]) -> Self::Floats;
    fn load_i8(self, x: &[i8; LANES]) -> Self::Floats;
    fn load_i4(self, x: &Nibbles) -> Self::Floats;
    fn store(self, v: Self::Floats, out: &mut [f32; LANES]);
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once or twice.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once, so that it is the same on every instruction set. A call of a library for each lane where the
    /// target has no such instruction.
    #[inline(always)]
    fn mul_add_once(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        self.mul_add(a, b, c)
    }
    /// The smaller; `b` where one is no number.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The larger; `b` where one is no number.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `v * 2^n` for whole `n` where neither `v` nor the result is subnormal, else anything.
    fn scale(self, v: Self::Floats, n: Self::Floats) -> Self::Floats;
    /// `v`, but 0 where `x < bound`.
    fn zero_below(self, v: Self::Floats, x: Self::Floats, bound: f32) -> Self::Floats;
    /// The sum of all lanes, in pairs.
    fn sum(self, v: Self::Floats) -> f32;
    /// The largest lane.
    fn largest(self, v: Self::Floats) -> f32;
    /// The number of `table` at each index, below 16.
    fn lookup_floats(self, table: &[f32; 16], indices: Self::Ints) -> Self::Floats;

    fn splat_int(self, x: i32) -> Self::Ints;
    fn load_ints(self, x: &[i32; LANES]) -> Self::Ints;
    fn load_i16(self, x: &[i16; LANES]) -> Self::Ints;
    /// As [`Simd::load_i8`], as whole numbers.
    fn load_i8_ints(self, x: &[i8; LANES]) -> Self::Ints;
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn sub_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Each number shifted right by less than 32, its sign kept.
    fn shift_ints_right(self, a: Self::Ints, by: u32) -> Self::Ints;
    /// Each number shifted left by less than 32.
    fn shift_ints_left(self, a: Self::Ints, by: u32) -> Self::Ints;
    fn to_floats(self, a: Self::Ints) -> Self::Floats;
    /// Adds to each lane the products of its two halves, which are signed numbers of 16 bits.
    fn dot_pairs(self, sum: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints;

    fn load_bytes(self, x: &[u8; BYTES]) -> Self::Bytes;
    /// The same four bytes in every lane.
    fn splat_quad(self, x: [i8; 4]) -> Self::Bytes;
    /// The bytes of whole numbers.
    fn bytes_of(self, x: Self::Ints) -> Self::Bytes;
    fn and(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted right; bits of the next byte may come in from above.
    fn shift_right<const BITS: u32>(self, bytes: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted left; bits of the byte before may come in from below.
    fn shift_left<const BITS: u32>(self, bytes: Self::Bytes) -> Self::Bytes;
    /// `(lane >> shift) & mask` of the four bytes of each lane as one number.
    fn lane_field(self, bytes: Self::Bytes, shift: u32, mask: i32) -> Self::Ints;
    /// A table of bytes for [`Simd::lookup`].
    fn table(self, bytes: &[u8; 16]) -> Self::Bytes;
    /// The byte of a table at each field, below 16.
    fn lookup(self, table: Self::Bytes, fields: Self::Bytes) -> Self::Bytes;

    fn no_dots(self) -> Self::Dots;
    /// Adds the products of the four unsigned fields of each lane with four signed numbers.
    fn dot(self, sum: Self::Dots, fields: Self::Bytes, x: Self::Bytes) -> Self::Dots;
    /// The number of products of fields up to `largest` that [`Simd::Dots`] can take.
    fn depth(largest: u32) -> usize;
    fn add_dots(self, sum: Self::Ints, dots: Self::Dots) -> Self::Ints;
    /// [`Simd::dot`], at once in 32 bits, for fields below 128.
    #[inline(always)]
    fn dot_now(self, sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        self.add_dots(sum, self.dot(self.no_dots(), fields, x))
    }
    /// [`Simd::dot_now`] for fields of all eight bits less [`Simd::BYTE_BIAS`].
    fn dot_bytes(self, sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints;
    /// Adds to each lane the number of bits in which its four bytes differ from `x`.
    fn add_differences(self, sum: Self::Ints, bytes: Self::Bytes, x: u32) -> Self::Ints;

    /// Lane `i` of vector `j` becomes lane `j` of vector `i`.
    #[inline(always)]
    fn transpose(self, v: [Self::Floats; LANES]) -> [Self::Floats; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for (row, v) in rows.iter_mut().zip(v) {
            self.store(v, row);
        }
        let mut out = v;
        for (i, out) in out.iter_mut().enumerate() {
            let mut column = [0.0; LANES];
            for (x, row) in column.iter_mut().zip(&rows) {
                *x = row[i];
            }
            *out = self.load(&column);
        }
        out
    }

    /// Asks for the cache line of an address that will be read soon, wherever it points.
    #[inline(always)]
    fn prefetch<T>(self, _address: *const T) {}
    /// The same for a line that will be read later: into the second cache.
    #[inline(always)]
    fn prefetch_far<T>(self, _address: *const T) {}

    /// Up to [`LANES`] numbers, then zeros.
    #[inline(always)]
    fn load_some(self, x: &[f32]) -> Self::Floats {
        let mut lanes = [0.0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// The first lanes, as many as `out` takes.
    #[inline(always)]
    fn store_some(self, v: Self::Floats, out: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

/// Calls `$body(proof, arguments...)`, an `#[inline(always)]` function over [`Simd`], compiled for `$isa`.
///
/// # Panics
/// If the processor lacks `$isa`.
macro_rules! for_isa {
    ($isa:expr, $body:ident $(::<$($generic:ty),+>)? ($($name:ident: $type:ty),* $(,)?) $(-> $result:ty)?) => {{
        let isa: $crate::isa::Isa = $isa;
        assert!(isa.is_available(), "this processor has no {isa}");
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        fn avx512($($name: $type),*) $(-> $result)? {
            // SAFETY: the caller has made sure of the instructions of this function.
            let proof = unsafe { $crate::simd::Avx512::<false>::new() };
            $body::<_ $(, $($generic),+)?>(proof, $($name),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        fn avx2($($name: $type),*) $(-> $result)? {
            // SAFETY: the caller has made sure of the instructions of this function.
            let proof = unsafe { $crate::simd::Avx2::<{ $crate::simd::NO_VNNI }>::new() };
            $body::<_ $(, $($generic),+)?>(proof, $($name),*)
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon,dotprod")]
        #[allow(clippy::too_many_arguments)]
        fn neon($($name: $type),*) $(-> $result)? {
            // SAFETY: the caller has made sure of the instructions of this function.
            $body::<_ $(, $($generic),+)?>(unsafe { $crate::simd::Neon::new() }, $($name),*)
        }
        match isa {
            // SAFETY: the processor has the instructions, by the assertion above.
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Isa::Avx512 => unsafe { avx512($($name),*) },
            // SAFETY: the processor has the instructions, by the assertion above.
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Isa::Avx2 | $crate::isa::Isa::AvxVnni => unsafe { avx2($($name),*) },
            // SAFETY: the processor has the instructions, by the assertion above.
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Isa::Neon => unsafe { neon($($name),*) },
            _ => $body::<_ $(, $($generic),+)?>($crate::simd::Portable::<false>, $($name),*),
        }
    }};
}
pub(crate) use for_isa;
