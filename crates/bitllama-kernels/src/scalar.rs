//! Portable code: the reference for every other instruction set.

use std::ops::Range;

use crate::activations::Activations;
use crate::out::Out;
use crate::simd::{Popcount, Simd};
use crate::weight::Weight;
use crate::{float, integer, xnor};

pub(crate) struct Scalar;

/// Rows of a register. Four numbers are what compilers make of plain loops anywhere.
const ROWS: usize = 4;

fn each<T>(f: impl FnMut(usize) -> T) -> [T; ROWS] {
    std::array::from_fn(f)
}

impl Simd for Scalar {
    const ROWS: usize = ROWS;
    const STACKED: bool = false;
    const SUMS: usize = 4;
    const BYTE_BIAS: i32 = 0;
    type Bytes = [[u8; 4]; ROWS];
    type Ints = [i32; ROWS];
    type Partial = [i32; ROWS];
    type Floats = [f32; ROWS];

    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> Self::Bytes {
        unsafe { bytes.cast::<Self::Bytes>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn broadcast(x: *const i8) -> Self::Bytes {
        [unsafe { x.cast::<[u8; 4]>().read_unaligned() }; ROWS]
    }
    #[inline(always)]
    unsafe fn and(bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        bytes.map(|row| row.map(|byte| byte & mask))
    }
    #[inline(always)]
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        each(|row| std::array::from_fn(|i| a[row][i] | b[row][i]))
    }
    #[inline(always)]
    unsafe fn shift_right<const BITS: u32>(bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|row| row.map(|byte| byte >> BITS))
    }
    #[inline(always)]
    unsafe fn shift_left<const BITS: u32>(bytes: Self::Bytes) -> Self::Bytes {
        bytes.map(|row| row.map(|byte| byte << BITS))
    }
    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> Self::Bytes {
        unsafe { Self::load(bytes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::Bytes, fields: Self::Bytes) -> Self::Bytes {
        fields.map(|row| row.map(|field| table.as_flattened()[field as usize]))
    }
    #[inline(always)]
    unsafe fn partial_zero() -> Self::Partial {
        [0; ROWS]
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::Partial, fields: Self::Bytes, x: Self::Bytes) -> Self::Partial {
        each(|row| sum[row] + (0..4).map(|i| fields[row][i] as i32 * (x[row][i] as i8) as i32).sum::<i32>())
    }
    fn depth(_: u32) -> usize {
        usize::MAX
    }
    #[inline(always)]
    unsafe fn add_partial(sum: Self::Ints, partial: Self::Partial) -> Self::Ints {
        each(|row| sum[row] + partial[row])
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        unsafe { Self::dot(sum, fields, x) }
    }
    #[inline(always)]
    unsafe fn int_splat(value: i32) -> Self::Ints {
        [value; ROWS]
    }
    #[inline(always)]
    unsafe fn int_load(values: *const i32) -> Self::Ints {
        unsafe { values.cast::<Self::Ints>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn int_add(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each(|row| a[row].wrapping_add(b[row]))
    }
    #[inline(always)]
    unsafe fn int_mul(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each(|row| a[row].wrapping_mul(b[row]))
    }
    #[inline(always)]
    unsafe fn int_shift_right(a: Self::Ints, by: u32) -> Self::Ints {
        a.map(|a| a >> by)
    }
    #[inline(always)]
    unsafe fn lane_field(bytes: Self::Bytes, shift: u32, mask: i32) -> Self::Ints {
        bytes.map(|row| (u32::from_le_bytes(row) >> shift) as i32 & mask)
    }
    #[inline(always)]
    unsafe fn to_floats(a: Self::Ints) -> Self::Floats {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    unsafe fn lookup_floats(table: &[f32; 16], indices: Self::Ints) -> Self::Floats {
        indices.map(|index| table[index as usize])
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::Floats {
        [value; ROWS]
    }
    #[inline(always)]
    unsafe fn load_floats(values: *const f32) -> Self::Floats {
        unsafe { values.cast::<Self::Floats>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(values: *mut f32, floats: Self::Floats) {
        unsafe { values.cast::<Self::Floats>().write_unaligned(floats) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|row| a[row] + b[row])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        each(|row| a[row] * b[row])
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        each(|row| a[row] * b[row] + c[row])
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

impl Popcount for Scalar {
    #[inline(always)]
    unsafe fn add_differences(sum: Self::Ints, bytes: Self::Bytes, x: u32) -> Self::Ints {
        each(|row| sum[row] + (u32::from_le_bytes(bytes[row]) ^ x).count_ones() as i32)
    }
}

/// See [`integer::integer_panels`].
pub(crate) unsafe fn integer_panels(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    unsafe { integer::integer_panels::<Scalar>(weight, panels, x, out) }
}

/// See [`float::float_panels`].
pub(crate) unsafe fn float_panels(weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out) {
    unsafe { float::float_panels::<Scalar>(weight, panels, x, x_sums, out) }
}

/// See [`crate::peak::run`].
pub(crate) unsafe fn peak(x: *const i8) -> usize {
    unsafe { crate::peak::run::<Scalar>(x) }
}

/// See [`float::unpack_panel`].
pub(crate) unsafe fn unpack_panel(weight: &Weight, index: usize, out: *mut f32, stride: usize) {
    unsafe { float::unpack_panel::<Scalar>(weight, index, out, stride) }
}

/// See [`xnor::sign_panels`].
pub(crate) unsafe fn sign_panels(weight: &Weight, panels: Range<usize>, signs: &[u32], scales: &[f32], out: Out) {
    unsafe { xnor::sign_panels::<Scalar>(weight, panels, signs, scales, out) }
}

/// See [`crate::activations::quantize_row_portable`].
pub(crate) unsafe fn quantize_row(x: &[f32], out: &mut [i8], outliers: &mut Vec<(u32, f32)>) -> f32 {
    crate::activations::quantize_row_portable(x, out, outliers)
}
