//! What the kernels need of an instruction set: operations on 32-bit lanes. A lane is a row of a panel
//! ([`bitllama_core::panel`]), so sums never cross lanes.
//!
//! Each file of an instruction set implements [`Simd`] and calls the kernels ([`crate::integer`], [`crate::float`],
//! [`crate::xnor`]) inside of functions that have its target features; everything is `#[inline(always)]`, so the loops
//! are compiled for those features.

/// What a kernel needs of an instruction set. All pointers may be unaligned.
///
/// # Safety
/// The functions may be called only where the processor has the instruction set, with pointers to as many elements as
/// they name.
pub(crate) trait Simd {
    /// Rows of a register: it holds four bytes or one 32-bit number of each.
    const ROWS: usize;
    /// Whether sums of a few fields that stand higher in their bytes still fit ([`crate::integer`]): not where products of two
    /// bytes are summed in 16 bits.
    const STACKED: bool;
    /// Sums that should be under way at a time, for one not to wait for the other.
    const SUMS: usize;
    /// What [`Simd::dot_bytes`] takes from each field, so that it is a signed byte.
    const BYTE_BIAS: i32;
    /// Four bytes of each row.
    type Bytes: Copy;
    /// A 32-bit integer of each row.
    type Ints: Copy;
    /// A sum of products that is not yet in 32 bits.
    type Partial: Copy;
    /// An `f32` of each row.
    type Floats: Copy;

    unsafe fn load(bytes: *const u8) -> Self::Bytes;
    /// Four activations, for every row.
    unsafe fn broadcast(x: *const i8) -> Self::Bytes;
    unsafe fn and(bytes: Self::Bytes, mask: u8) -> Self::Bytes;
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted right; bits of the next byte may come in from above.
    unsafe fn shift_right<const BITS: u32>(bytes: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted left; bits of the byte before may come in from below.
    unsafe fn shift_left<const BITS: u32>(bytes: Self::Bytes) -> Self::Bytes;

    /// A table of bytes for [`Simd::lookup`].
    unsafe fn table(bytes: &[u8; 16]) -> Self::Bytes;
    /// The byte of a table at each field, below 16.
    unsafe fn lookup(table: Self::Bytes, fields: Self::Bytes) -> Self::Bytes;

    unsafe fn partial_zero() -> Self::Partial;
    /// Adds the products of four unsigned fields with four activations of each row.
    unsafe fn dot(sum: Self::Partial, fields: Self::Bytes, x: Self::Bytes) -> Self::Partial;
    /// How many products of fields up to `largest` a partial sum can take.
    fn depth(largest: u32) -> usize;
    unsafe fn add_partial(sum: Self::Ints, partial: Self::Partial) -> Self::Ints;
    /// Like [`Simd::dot`] for fields of all eight bits less [`Simd::BYTE_BIAS`], at once in 32 bits.
    unsafe fn dot_bytes(sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints;

    unsafe fn int_splat(value: i32) -> Self::Ints;
    unsafe fn int_load(values: *const i32) -> Self::Ints;
    unsafe fn int_add(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn int_mul(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Each number shifted right by less than 32, its sign kept.
    unsafe fn int_shift_right(a: Self::Ints, by: u32) -> Self::Ints;
    /// `(lane >> shift) & mask` of each row's four bytes as one number.
    unsafe fn lane_field(bytes: Self::Bytes, shift: u32, mask: i32) -> Self::Ints;
    unsafe fn to_floats(a: Self::Ints) -> Self::Floats;
    /// The number of `table` at each index, below 16.
    unsafe fn lookup_floats(table: &[f32; 16], indices: Self::Ints) -> Self::Floats;

    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn load_floats(values: *const f32) -> Self::Floats;
    unsafe fn store(values: *mut f32, floats: Self::Floats);
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once or twice.
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Asks for the cache line of an address that will be read soon, wherever it points.
    unsafe fn prefetch(bytes: *const u8);
}

/// Population counts of lanes: what [`Simd`] is for sums of products.
pub(crate) trait Popcount: Simd {
    /// Adds to each row the number of bits in which its four bytes differ from `x`.
    unsafe fn add_differences(sum: Self::Ints, bytes: Self::Bytes, x: u32) -> Self::Ints;
}
