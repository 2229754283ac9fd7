//! The interface of earlier tools: products of one matrix with one vector, in their layouts.
//!
//! Each call reads or unpacks its whole matrix, which costs about as much as multiplying. To run a model, open it with
//! [`bitllama_open`](crate::model::bitllama_open) instead.

use std::ffi::{c_char, c_float, c_int, c_void};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::error::{
    BITLLAMA_ERROR_ELEMENT_SIZE, BITLLAMA_ERROR_PACKED_FILE, BITLLAMA_ERROR_SCALES_FILE, BITLLAMA_ERROR_SHORT_FILE,
    Failure, code,
};
use crate::memory::{check, copy, input, path, size};
use crate::rows::{product, sign_product};
use crate::threads::Threads;

/// `out_vec[r] = scale[r] * sum over c of w[r, c] * in_vec[c]` for a matrix of signs `w` (`[out, in]`, -1 and +1).
///
/// `packed_file` holds `out` rows of `ceil(in / 8)` bytes: a bit a sign, 1 is +1, the first column in the most significant
/// bit (NumPy's `packbits`). The bits beyond the last column of a row may be anything, and so may bytes after the last
/// row. `scales_file` is text, one scale a line; lines beyond the first `out` are not read. Both files are read at each
/// call.
///
/// `mode` 0: `in_vec` is `float[in]`. `mode` 1: `in_vec` points to `ceil(in / 8)` bytes of signs, packed like a row; the
/// product is then exact (XNOR and popcount). `out_vec` is `float[out]`, may be `in_vec`, and is written on success only.
/// `threads` of 0 or less: one for each core.
///
/// Returns 0, `BITLLAMA_ERROR_PACKED_FILE`, `BITLLAMA_ERROR_SCALES_FILE`, `BITLLAMA_ERROR_SHORT_FILE`, `BITLLAMA_ERROR_INVALID_ARGUMENT` or
/// `BITLLAMA_ERROR_INTERNAL`.
///
/// # Safety
/// The paths end with a zero byte; `in_vec` and `out_vec` have the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn matmul_1bit(
    packed_file: *const c_char,
    scales_file: *const c_char,
    in_vec: *const c_float,
    out_vec: *mut c_float,
    out: c_int,
    r#in: c_int,
    mode: c_int,
    threads: c_int,
) -> c_int {
    code(|| {
        let (rows, columns) = (size("out", out)?, size("in", r#in)?);
        let stride = columns.div_ceil(8);
        // SAFETY: as promised by the caller.
        let (packed_file, scales_file) =
            unsafe { (path("packed_file", packed_file)?, path("scales_file", scales_file)?) };
        check("out_vec", out_vec, rows)?;
        // SAFETY: as promised by the caller.
        let x = match mode {
            0 => In::Floats(unsafe { input("in_vec", in_vec, columns) }?),
            1 => In::Signs(unsafe { input("in_vec", in_vec.cast(), stride) }?),
            _ => return Err(Failure::argument(format!("mode is {mode}, must be 0 or 1"))),
        };
        let packed = read_packed(&packed_file, rows, stride)?;
        let scales = read_scales(&scales_file, rows)?;
        let threads = Threads::new(threads);
        let result = match x {
            In::Signs(x) => sign_product(threads.pool(), x, columns, &scales, &packed),
            In::Floats(x) => product(threads.pool(), x, &scales, |row, out| signs_into(&packed[row * stride..], out)),
        };
        // SAFETY: there is place for `out` results, as promised by the caller.
        unsafe { copy(&result, out_vec) };
        Ok(())
    })
}

/// `out_vec[r] = scales[r] * sum over c of (q[r, c] - zero_points[r]) * in_vec[c]`.
///
/// `q` is `[out, in]`, row-major, one value an element of `elem_bytes`: 1 (`uint8_t`), 2 (`uint16_t`) or 4 (`int32_t`), of
/// any alignment.
/// `scales` is `float[out]`; `zero_points` is `int[out]`, or NULL for zeros; `in_vec` is `float[in]`. `out_vec` is
/// `float[out]`, may be `in_vec`, and is written on success only. `bits` says how wide the values are, 1 to
/// `8 * elem_bytes`; they are used as they stand. `mode` is ignored: the product is always computed in f32. `threads` of 0
/// or less: one for each core.
///
/// Returns 0, `BITLLAMA_ERROR_ELEMENT_SIZE`, `BITLLAMA_ERROR_INVALID_ARGUMENT` or `BITLLAMA_ERROR_INTERNAL`.
///
/// # Safety
/// The arrays have the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn matmul_q_in_mem(
    q: *const c_void,
    elem_bytes: c_int,
    scales: *const c_float,
    zero_points: *const c_int,
    in_vec: *const c_float,
    out_vec: *mut c_float,
    out: c_int,
    r#in: c_int,
    bits: c_int,
    mode: c_int,
    threads: c_int,
) -> c_int {
    let _ = mode;
    code(|| {
        if ![1, 2, 4].contains(&elem_bytes) {
            let message = format!("elements of {elem_bytes} bytes are not supported, only of 1, 2 and 4");
            return Err(Failure::new(BITLLAMA_ERROR_ELEMENT_SIZE, message));
        }
        if !(1..=8 * elem_bytes).contains(&bits) {
            return Err(Failure::argument(format!("bits is {bits}, must be 1 to {}", 8 * elem_bytes)));
        }
        // SAFETY: as promised by the caller.
        unsafe {
            let rows = Rows::new(scales, zero_points, in_vec, out_vec, out, r#in, threads)?;
            match elem_bytes {
                1 => rows.multiply(q.cast(), rows.columns, bytes_into),
                2 => rows.multiply(q.cast::<[u8; 2]>(), rows.columns, |words, zero_point, out| {
                    for (out, word) in out.iter_mut().zip(words) {
                        *out = (i64::from(u16::from_ne_bytes(*word)) - i64::from(zero_point)) as f32;
                    }
                }),
                _ => rows.multiply(q.cast::<[u8; 4]>(), rows.columns, |words, zero_point, out| {
                    for (out, word) in out.iter_mut().zip(words) {
                        *out = (i64::from(i32::from_ne_bytes(*word)) - i64::from(zero_point)) as f32;
                    }
                }),
            }
        }
    })
}

/// `matmul_q_in_mem` for values of 4 bits.
///
/// `q4` with `packed`: `out` rows of `ceil(in / 2)` bytes, two values a byte, the first in the low half; the last half
/// byte of a row with odd `in` may be anything. Without: `uint8_t[out][in]`, one value a byte.
///
/// Returns 0, `BITLLAMA_ERROR_INVALID_ARGUMENT` or `BITLLAMA_ERROR_INTERNAL`.
///
/// # Safety
/// The arrays have the sizes above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn matmul_q4_optimized(
    q4: *const c_void,
    packed: bool,
    scales: *const c_float,
    zero_points: *const c_int,
    in_vec: *const c_float,
    out_vec: *mut c_float,
    out: c_int,
    r#in: c_int,
    threads: c_int,
) -> c_int {
    code(|| {
        // SAFETY: as promised by the caller.
        unsafe {
            let rows = Rows::new(scales, zero_points, in_vec, out_vec, out, r#in, threads)?;
            match packed {
                true => rows.multiply(q4.cast(), rows.columns.div_ceil(2), nibbles_into),
                false => rows.multiply(q4.cast(), rows.columns, bytes_into),
            }
        }
    })
}

/// For programs of the earlier tools: this library computes on processors. Returns -1, there is no GPU.
#[unsafe(no_mangle)]
pub extern "C" fn init_gpu() -> c_int {
    -1
}

/// For programs of the earlier tools: there is nothing to clean up. Returns 0.
#[unsafe(no_mangle)]
pub extern "C" fn cleanup_gpu() -> c_int {
    0
}

/// The input of [`matmul_1bit`].
enum In<'a> {
    /// `[in]`.
    Floats(&'a [f32]),
    /// `[ceil(in / 8)]`.
    Signs(&'a [u8]),
}

/// What the products of integers have in common.
struct Rows<'a> {
    columns: usize,
    scales: &'a [f32],
    zero_points: Option<&'a [c_int]>,
    x: &'a [f32],
    out: *mut f32,
    threads: Threads,
}

impl Rows<'_> {
    /// # Safety
    /// `scales` and `zero_points` are `[out]`, `in_vec` is `[in]`; there is place for `out` results at `out_vec`.
    unsafe fn new(
        scales: *const f32,
        zero_points: *const c_int,
        in_vec: *const f32,
        out_vec: *mut f32,
        out: c_int,
        r#in: c_int,
        threads: c_int,
    ) -> Result<Self, Failure> {
        let (rows, columns) = (size("out", out)?, size("in", r#in)?);
        check("out_vec", out_vec, rows)?;
        // SAFETY: as promised by the caller.
        unsafe {
            let zero_points = match zero_points.is_null() {
                true => None,
                false => Some(input("zero_points", zero_points, rows)?),
            };
            let (scales, x) = (input("scales", scales, rows)?, input("in_vec", in_vec, columns)?);
            Ok(Self { columns, scales, zero_points, x, out: out_vec, threads: Threads::new(threads) })
        }
    }

    /// Multiplies with rows of `stride` elements at `q`. `unpack` writes a row of them, less the zero point that it is
    /// given, into its last argument (`[in]`).
    ///
    /// # Safety
    /// `q` has as many rows as there are scales.
    unsafe fn multiply<T: Sync>(
        &self,
        q: *const T,
        stride: usize,
        unpack: impl Fn(&[T], c_int, &mut [f32]) + Sync,
    ) -> Result<(), Failure> {
        let too_large = || Failure::argument("the matrix is larger than memory");
        let len = self.scales.len().checked_mul(stride).ok_or_else(too_large)?;
        // SAFETY: as promised by the caller.
        let q = unsafe { input("q", q, len) }?;
        let zero_points = self.zero_points;
        let result = product(self.threads.pool(), self.x, self.scales, |row, out| {
            unpack(&q[row * stride..][..stride], zero_points.map_or(0, |points| points[row]), out);
        });
        // SAFETY: there is place for a result of each row, as promised to `new`.
        unsafe { copy(&result, self.out) };
        Ok(())
    }
}

/// The signs of a row, -1 and +1, the first in the most significant bit of a byte.
fn signs_into(row: &[u8], out: &mut [f32]) {
    // A sign is the sign bit of 1.0.
    let signs = |byte: u8| std::array::from_fn(|c| f32::from_bits(0x3f80_0000 | (!byte as u32) << (24 + c) & 1 << 31));
    let (whole, rest) = out.as_chunks_mut::<8>();
    for (out, byte) in whole.iter_mut().zip(row) {
        *out = signs(*byte);
    }
    if !rest.is_empty() {
        rest.copy_from_slice(&signs(row[whole.len()])[..rest.len()]);
    }
}

/// Values of 4 bits less `zero_point`, the first in the low half of a byte.
fn nibbles_into(row: &[u8], zero_point: c_int, out: &mut [f32]) {
    let zero_point = zero_point as f32;
    let (pairs, last) = out.as_chunks_mut::<2>();
    for ([low, high], byte) in pairs.iter_mut().zip(row) {
        (*low, *high) = (f32::from(byte & 15) - zero_point, f32::from(byte >> 4) - zero_point);
    }
    if let [last] = last {
        *last = f32::from(row[row.len() - 1] & 15) - zero_point;
    }
}

/// Values of a byte each less `zero_point`.
fn bytes_into(row: &[u8], zero_point: c_int, out: &mut [f32]) {
    out.iter_mut().zip(row).for_each(|(out, byte)| *out = f32::from(*byte) - zero_point as f32);
}

/// The first `rows` rows of a file, `stride` bytes each.
fn read_packed(path: &Path, rows: usize, stride: usize) -> Result<Vec<u8>, Failure> {
    let len = rows as u64 * stride as u64;
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(len).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|e| Failure::new(BITLLAMA_ERROR_PACKED_FILE, format!("{}: {e}", path.display())))?;
    if (bytes.len() as u64) < len {
        let message = format!("{}: {} bytes, but {rows} rows of {stride} bytes are {len}", path.display(), bytes.len());
        return Err(Failure::new(BITLLAMA_ERROR_SHORT_FILE, message));
    }
    Ok(bytes)
}

/// The first `rows` lines of a file, a number each. Empty lines do not count.
fn read_scales(path: &Path, rows: usize) -> Result<Vec<f32>, Failure> {
    let failure = |reason: String| Failure::new(BITLLAMA_ERROR_SCALES_FILE, format!("{}: {reason}", path.display()));
    let text = fs::read_to_string(path).map_err(|e| failure(e.to_string()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(rows);
    let scales: Vec<f32> = lines
        .map(|(at, line)| {
            line.trim().parse().map_err(|_| failure(format!("line {}: `{}` is no number", at + 1, line.trim())))
        })
        .collect::<Result<_, _>>()?;
    match scales.len() == rows {
        true => Ok(scales),
        false => Err(failure(format!("{} scales for {rows} rows", scales.len()))),
    }
}
