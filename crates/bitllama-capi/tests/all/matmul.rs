//! The functions of the earlier tools against sums written out, at sizes that fill no byte and no tile.

use std::ffi::{CString, c_int, c_void};
use std::fs;
use std::path::Path;
use std::ptr::{null, null_mut};

use bitllama::error::*;
use bitllama::matmul::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

/// `[out, in]`.
const SHAPES: [(usize, usize); 8] = [(1, 1), (3, 5), (2, 8), (7, 13), (17, 64), (33, 71), (5, 1000), (300, 1021)];

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

/// Bytes, an input and scales, all random.
fn random(seed: usize, bytes: usize, columns: usize, rows: usize) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
    let bytes = (0..bytes).map(|_| rng.random()).collect();
    let x = (0..columns).map(|_| rng.random_range(-2.0..2.0)).collect();
    (bytes, x, (0..rows).map(|_| rng.random_range(-1.0f32..3.0)).collect())
}

fn assert_close(found: &[f32], expected: impl Iterator<Item = f64>, columns: usize, what: &str) {
    for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
        let bound = 1e-6 * (columns as f64 + expected.abs());
        assert!((*found as f64 - expected).abs() <= bound, "{what}, row {row}: {found} is not {expected}");
    }
}

/// +1 or -1: column `c` of a row packed as NumPy's `packbits` does.
fn sign(row: &[u8], c: usize) -> f64 {
    f64::from(row[c / 8] >> (7 - c % 8) & 1) * 2.0 - 1.0
}

struct Files {
    _folder: TempDir,
    packed: CString,
    scales: CString,
}

impl Files {
    fn new(packed: &[u8], scales: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let (packed_file, scales_file) = (folder.path().join("w_1bit.bin"), folder.path().join("w_scales.txt"));
        fs::write(&packed_file, packed).unwrap();
        fs::write(&scales_file, scales).unwrap();
        Self { packed: c_path(&packed_file), scales: c_path(&scales_file), _folder: folder }
    }

    fn multiply<T>(
        &self,
        x: &[T],
        (rows, columns): (usize, usize),
        mode: c_int,
        threads: c_int,
    ) -> Result<Vec<f32>, c_int> {
        let mut out = vec![f32::NAN; rows];
        let (x, y) = (x.as_ptr().cast(), out.as_mut_ptr());
        let (rows, columns) = (rows as c_int, columns as c_int);
        // SAFETY: the sizes are those of the vectors.
        match unsafe { matmul_1bit(self.packed.as_ptr(), self.scales.as_ptr(), x, y, rows, columns, mode, threads) } {
            0 => Ok(out),
            code => Err(code),
        }
    }
}

fn lines(scales: &[f32]) -> String {
    scales.iter().map(|scale| format!("{scale}\n")).collect()
}

#[test]
fn signs_with_floats() {
    for (seed, (rows, columns)) in SHAPES.into_iter().enumerate() {
        let stride = columns.div_ceil(8);
        // Random bytes: the spare bits at the end of a row are random too.
        let (packed, x, scales) = random(seed, rows * stride, columns, rows);
        let files = Files::new(&packed, &lines(&scales));
        let found = files.multiply(&x, (rows, columns), 0, 0).unwrap();
        let expected = packed.chunks(stride).zip(&scales).map(|(row, scale)| {
            f64::from(*scale) * x.iter().enumerate().map(|(c, x)| sign(row, c) * f64::from(*x)).sum::<f64>()
        });
        assert_close(&found, expected, columns, &format!("{rows} x {columns}"));
        for threads in [1, 2] {
            assert_eq!(files.multiply(&x, (rows, columns), 0, threads).unwrap(), found, "{threads} threads");
        }
    }
}

#[test]
fn signs_with_signs() {
    for (seed, (rows, columns)) in SHAPES.into_iter().enumerate() {
        let stride = columns.div_ceil(8);
        let (bytes, _, scales) = random(100 + seed, (rows + 1) * stride, columns, rows);
        let (x, packed) = bytes.split_at(stride);
        let files = Files::new(packed, &lines(&scales));
        let expected: Vec<f32> = packed
            .chunks(stride)
            .zip(&scales)
            .map(|(row, scale)| scale * (0..columns).map(|c| sign(row, c) * sign(x, c)).sum::<f64>() as f32)
            .collect();
        assert_eq!(files.multiply(x, (rows, columns), 1, 0).unwrap(), expected, "{rows} x {columns}");

        // All spare bits 1, in rows and in the input: as before.
        let fill = |row: &[u8]| {
            let mut row = row.to_vec();
            row[stride - 1] |= (0xff_u16 >> (columns - (stride - 1) * 8)) as u8;
            row
        };
        let files = Files::new(&packed.chunks(stride).flat_map(fill).collect::<Vec<_>>(), &lines(&scales));
        assert_eq!(files.multiply(&fill(x), (rows, columns), 1, 3).unwrap(), expected, "{rows} x {columns}");
    }
}

#[test]
fn files_are_named_by_their_codes() {
    let files = Files::new(&[0x80, 0x80], "1\n\n  0.5 \n7\nmore than is read");
    assert_eq!(files.multiply(&[3.0f32, 1.0], (2, 2), 0, 1), Ok(vec![2.0, 1.0]));
    assert_eq!(files.multiply(&[3.0f32, 1.0], (3, 2), 0, 1), Err(BITLLAMA_ERROR_SHORT_FILE));
    assert_eq!(Files::new(&[0; 2], "1").multiply(&[1.0f32], (2, 1), 0, 1), Err(BITLLAMA_ERROR_SCALES_FILE));
    assert_eq!(Files::new(&[0; 2], "1\nx").multiply(&[1.0f32], (2, 1), 0, 1), Err(BITLLAMA_ERROR_SCALES_FILE));
    let nowhere = c"/nowhere/at/all";
    let files = Files::new(&[0; 2], "1\n2");
    let lost = Files { scales: nowhere.into(), ..Files::new(&[0; 2], "1") };
    assert_eq!(lost.multiply(&[1.0f32], (2, 1), 0, 1), Err(BITLLAMA_ERROR_SCALES_FILE));
    let lost = Files { packed: nowhere.into(), ..Files::new(&[0; 2], "1") };
    assert_eq!(lost.multiply(&[1.0f32], (2, 1), 0, 1), Err(BITLLAMA_ERROR_PACKED_FILE));
    assert_eq!(files.multiply(&[1.0f32], (2, 1), 2, 1), Err(BITLLAMA_ERROR_INVALID_ARGUMENT));
    // A matrix that is far larger than the file, and than memory.
    let (mut y, x) = (1.0f32, 1.0f32);
    let largest = c_int::MAX;
    // SAFETY: `in_vec` and `out_vec` are not touched, as the file is too short.
    let code = unsafe { matmul_1bit(files.packed.as_ptr(), files.scales.as_ptr(), &x, &mut y, largest, largest, 0, 1) };
    assert_eq!((code, y), (BITLLAMA_ERROR_SHORT_FILE, 1.0));
}

/// The sums of `matmul_q_in_mem`.
fn expected<'a>(q: &'a [i64], x: &'a [f32], scales: &'a [f32], zeros: &'a [c_int]) -> impl Iterator<Item = f64> + 'a {
    q.chunks(x.len()).zip(scales).zip(zeros).map(move |((row, scale), zero)| {
        f64::from(*scale) * row.iter().zip(x).map(|(q, x)| (q - i64::from(*zero)) as f64 * f64::from(*x)).sum::<f64>()
    })
}

#[test]
fn integers_in_memory() {
    for (seed, (rows, columns)) in SHAPES.into_iter().enumerate() {
        for bits in [2, 4, 8] {
            let (mut q, x, scales) = random(seed, rows * columns, columns, rows);
            q.iter_mut().for_each(|q| *q >>= 8 - bits);
            let zeros: Vec<c_int> = (0..rows as c_int).map(|row| row % 7 - 2).collect();
            let wide: Vec<i64> = q.iter().map(|q| i64::from(*q)).collect();
            let words: Vec<i32> = q.iter().map(|q| i32::from(*q)).collect();
            let halves: Vec<u16> = q.iter().map(|q| u16::from(*q)).collect();
            for (q, bytes) in
                [(q.as_ptr().cast::<c_void>(), 1), (halves.as_ptr().cast(), 2), (words.as_ptr().cast(), 4)]
            {
                for zeros in [Some(&zeros), None] {
                    let mut out = vec![f32::NAN; rows];
                    let pointer = zeros.map_or(null(), |zeros| zeros.as_ptr());
                    let none = vec![0; rows];
                    let (y, out_len, in_len) = (out.as_mut_ptr(), rows as c_int, columns as c_int);
                    // SAFETY: the sizes are those of the vectors.
                    let code = unsafe {
                        let (scales, x) = (scales.as_ptr(), x.as_ptr());
                        matmul_q_in_mem(q, bytes, scales, pointer, x, y, out_len, in_len, bits, 0, 0)
                    };
                    assert_eq!(code, 0);
                    let what = format!("{rows} x {columns}, {bits} bits, {bytes} bytes");
                    let size = columns << bits;
                    assert_close(&out, expected(&wide, &x, &scales, zeros.unwrap_or(&none)), size, &what);
                }
            }
        }
    }
}

#[test]
fn nibbles() {
    for (seed, (rows, columns)) in SHAPES.into_iter().enumerate() {
        let stride = columns.div_ceil(2);
        let (packed, x, scales) = random(seed, rows * stride, columns, rows);
        let value = |row: &[u8], c: usize| row[c / 2] >> (4 * (c % 2)) & 15;
        let q: Vec<u8> = packed.chunks(stride).flat_map(|row| (0..columns).map(move |c| value(row, c))).collect();
        let zeros: Vec<c_int> = (0..rows as c_int).map(|row| row % 16).collect();
        let wide: Vec<i64> = q.iter().map(|q| i64::from(*q)).collect();
        for (q, is_packed) in [(&packed, true), (&q, false)] {
            let mut out = vec![f32::NAN; rows];
            let (q, scales_ptr, zeros_ptr) = (q.as_ptr().cast(), scales.as_ptr(), zeros.as_ptr());
            let (x_ptr, y, rows, columns) = (x.as_ptr(), out.as_mut_ptr(), rows as c_int, columns as c_int);
            // SAFETY: the sizes are those of the vectors.
            let code = unsafe { matmul_q4_optimized(q, is_packed, scales_ptr, zeros_ptr, x_ptr, y, rows, columns, 2) };
            assert_eq!(code, 0);
            let what = format!("{rows} x {columns}, packed: {is_packed}");
            assert_close(&out, expected(&wide, &x, &scales, &zeros), columns as usize * 16, &what);
        }
    }
}

#[test]
fn the_result_may_take_the_place_of_the_input() {
    let q = [1u8, 2, 3, 4];
    let (scales, mut x) = ([1.0f32, 10.0], [1.0f32, 2.0]);
    let y = x.as_mut_ptr();
    // SAFETY: the sizes are those of the arrays.
    let code = unsafe { matmul_q_in_mem(q.as_ptr().cast(), 1, scales.as_ptr(), null(), y, y, 2, 2, 8, 0, 1) };
    assert_eq!((code, x), (0, [5.0, 110.0]));
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let (q, one) = ([1u8; 4], [1.0f32; 4]);
    let mut out = [7.0f32; 1];
    let y = out.as_mut_ptr();
    let (q, v) = (q.as_ptr().cast::<c_void>(), one.as_ptr());
    // SAFETY: pointers are null, or to more elements than the sizes say.
    unsafe {
        let q_in_mem = |q, bytes, scales, x, y, rows, columns, bits| {
            matmul_q_in_mem(q, bytes, scales, null(), x, y, rows, columns, bits, 0, 1)
        };
        for bytes in [-1, 0, 3, 8] {
            assert_eq!(q_in_mem(q, bytes, v, v, y, 1, 1, 4), BITLLAMA_ERROR_ELEMENT_SIZE);
        }
        let odd = v.cast::<u8>().add(1).cast();
        for code in [
            q_in_mem(null(), 1, v, v, y, 1, 1, 4),
            q_in_mem(q, 1, null(), v, y, 1, 1, 4),
            q_in_mem(q, 1, v, null(), y, 1, 1, 4),
            q_in_mem(q, 1, v, v, null_mut(), 1, 1, 4),
            q_in_mem(q, 1, odd, v, y, 1, 1, 4),
            q_in_mem(q, 1, v, v, y, 0, 1, 4),
            q_in_mem(q, 1, v, v, y, 1, -5, 4),
            q_in_mem(q, 1, v, v, y, 1, 1, 0),
            q_in_mem(q, 1, v, v, y, 1, 1, 9),
            matmul_q4_optimized(null(), true, v, null(), v, y, 1, 1, 1),
            matmul_q4_optimized(q, true, v, null(), v, y, 1, 0, 1),
            matmul_1bit(null(), c"x".as_ptr(), v, y, 1, 1, 0, 1),
            matmul_1bit(c"x".as_ptr(), null(), v, y, 1, 1, 0, 1),
            matmul_1bit(c"x".as_ptr(), c"x".as_ptr(), null(), y, 1, 1, 1, 1),
        ] {
            assert_eq!(code, BITLLAMA_ERROR_INVALID_ARGUMENT);
        }
    }
    assert_eq!(out, [7.0]);
    assert_eq!((init_gpu(), cleanup_gpu()), (-1, 0));
}
