//! The formats whose values are `scale * code - minimum`: their form, their values, and the panels that kernels multiply.

use bitllama_core::BlockMatrix;
use bitllama_core::blocks::{BlockForm, Codes, IQ4, PanelMut, ScalesMut};
use bitllama_core::panel::{self, FieldBits, PANEL_ROWS};
use half::f16;
use rayon::prelude::*;

use super::BlockFormat::{self, *};
use super::{basic, i_quants, k_quants, low_bit};

/// Numbers of a block beside its fields. Steps stand for the parts of a block with scales of their own.
#[derive(Default)]
pub(crate) struct Constants {
    /// Scale, or factor of the steps, in half precision.
    pub scale: u16,
    /// Minimum, or factor of its steps, in half precision.
    pub minimum: u16,
    /// Steps of scales.
    pub steps: [i8; 16],
    /// Steps of minimums.
    pub minimum_steps: [i8; 16],
}

impl Constants {
    /// A scale and nothing else.
    #[inline(always)]
    pub fn scale(scale: u16) -> Self {
        Constants { scale, ..Constants::default() }
    }
}

/// How the numbers of a format are made up, if they are whole codes with scales.
pub(super) const fn form(format: BlockFormat) -> Option<BlockForm> {
    use FieldBits::*;
    const fn line(low: i32, step: i32) -> Codes {
        Codes::Line { low, step }
    }
    // Bits, codes, columns that share a scale, groups of a factor.
    let (bits, codes, group_size, nested) = match format {
        Q1_0 => (One, line(-1, 2), 128, None),
        TQ1_0 | TQ2_0 => (Two, line(-1, 1), 256, None),
        Q2_0 => (Two, line(-1, 1), 64, None),
        Q4_0 => (Four, line(-8, 1), 32, None),
        Q4_1 => (Four, line(0, 1), 32, None),
        Q5_0 => (Five, line(-16, 1), 32, None),
        Q5_1 => (Five, line(0, 1), 32, None),
        Q8_0 => (Eight, line(-128, 1), 32, None),
        IQ4_NL => (Four, Codes::Table(IQ4), 32, None),
        IQ4_XS => (Four, Codes::Table(IQ4), 32, Some(8)),
        Q2_K => (Two, line(0, 1), 16, Some(16)),
        Q3_K => (Three, line(-4, 1), 16, Some(16)),
        Q4_K => (Four, line(0, 1), 32, Some(8)),
        Q5_K => (Five, line(0, 1), 32, Some(8)),
        Q6_K => (Six, line(-32, 1), 16, Some(16)),
        _ => return None,
    };
    let has_minimums = matches!(format, Q4_1 | Q5_1 | Q2_K | Q4_K | Q5_K);
    Some(BlockForm { bits, codes, group_size, nested, has_minimums })
}

/// A format with a form, whose blocks have `N` bytes and `L` values.
trait Parts<const N: usize, const L: usize> {
    const FORM: BlockForm;

    /// Takes a block apart.
    fn parts(block: &[u8; N], fields: &mut [u8; L]) -> Constants;
}

/// Calls a function of a format's [`Parts`]; nothing for formats without a form.
macro_rules! with_parts {
    ($format:expr, $call:ident($($argument:expr),*)) => {{
        macro_rules! call {
            ($name:ident, $parts:expr) => {{
                struct Format;
                impl Parts<{ $name.block_bytes() }, { $name.block_len() }> for Format {
                    const FORM: BlockForm = form($name).unwrap();

                    #[inline(always)]
                    fn parts(
                        block: &[u8; $name.block_bytes()],
                        fields: &mut [u8; $name.block_len()],
                    ) -> Constants {
                        $parts(block, fields)
                    }
                }
                $call::<Format, _, _>($($argument),*)
            }};
        }
        match $format {
            Q4_0 => call!(Q4_0, basic::q4_0),
            Q4_1 => call!(Q4_1, basic::q4_1),
            Q5_0 => call!(Q5_0, basic::q5_0),
            Q5_1 => call!(Q5_1, basic::q5_1),
            Q8_0 => call!(Q8_0, basic::q8_0),
            Q2_K => call!(Q2_K, k_quants::q2_k),
            Q3_K => call!(Q3_K, k_quants::q3_k),
            Q4_K => call!(Q4_K, k_quants::q4_k),
            Q5_K => call!(Q5_K, k_quants::q5_k),
            Q6_K => call!(Q6_K, k_quants::q6_k),
            IQ4_NL => call!(IQ4_NL, i_quants::iq4_nl),
            IQ4_XS => call!(IQ4_XS, i_quants::iq4_xs),
            TQ1_0 => call!(TQ1_0, low_bit::tq1_0),
            TQ2_0 => call!(TQ2_0, low_bit::tq2_0),
            Q1_0 => call!(Q1_0, low_bit::q1_0),
            Q2_0 => call!(Q2_0, low_bit::q2_0),
            _ => {}
        }
    }};
}

/// Fills `out` with the values of blocks of a format with a form.
pub(super) fn values(vectors: bool, format: BlockFormat, bytes: &[u8], out: &mut [f32]) {
    with_parts!(format, values_of(vectors, bytes, out));
}

fn values_of<P: Parts<N, L>, const N: usize, const L: usize>(vectors: bool, bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if vectors && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: this processor has the instructions.
        return unsafe { values_with_avx2::<P, N, L>(bytes, out) };
    }
    let _ = vectors;
    all_values::<P, N, L>(bytes, out);
}

/// [`all_values`] in vectors of eight, which compilers make of it where they may.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn values_with_avx2<P: Parts<N, L>, const N: usize, const L: usize>(bytes: &[u8], out: &mut [f32]) {
    all_values::<P, N, L>(bytes, out);
}

#[inline(always)]
fn all_values<P: Parts<N, L>, const N: usize, const L: usize>(bytes: &[u8], out: &mut [f32]) {
    for (block, out) in bytes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<L>().0) {
        block_values::<P, N, L>(block, out);
    }
}

#[inline(always)]
fn block_values<P: Parts<N, L>, const N: usize, const L: usize>(block: &[u8; N], out: &mut [f32; L]) {
    let (form, mut fields) = (const { &P::FORM }, [0; L]);
    let constants = P::parts(block, &mut fields);
    // Into memory: compilers take bytes out of the words in registers one by one otherwise.
    let fields = std::hint::black_box(&fields);
    let scale = f16::from_bits(constants.scale).to_f32();
    let minimum = f16::from_bits(constants.minimum).to_f32();
    let groups = out.chunks_exact_mut(form.group_size).zip(fields.chunks_exact(form.group_size));
    for (group, (out, fields)) in groups.enumerate() {
        let (mut scale, mut minimum) = (scale, minimum);
        if form.nested.is_some() {
            scale *= f32::from(constants.steps[group]);
            minimum *= f32::from(constants.minimum_steps[group]);
        }
        form.codes.weights_into(fields, scale, if form.has_minimums { Some(minimum) } else { None }, out);
    }
}

/// Whether all values of whole blocks are finite, which their numbers in half precision tell: steps and codes are too small to
/// leave the range of f32, and what is not finite times 0 is not finite either. `None` for formats without a form.
pub(crate) fn are_finite(format: BlockFormat, bytes: &[u8]) -> Option<bool> {
    let mut finite = true;
    with_parts!(format, are_finite_of(bytes, &mut finite));
    form(format).map(|_| finite)
}

fn are_finite_of<P: Parts<N, L>, const N: usize, const L: usize>(bytes: &[u8], finite: &mut bool) {
    *finite = bytes.as_chunks::<N>().0.iter().all(|block| {
        let Constants { scale, minimum, .. } = P::parts(block, &mut [0; L]);
        f16::from_bits(scale).is_finite() && f16::from_bits(minimum).is_finite()
    });
}

/// A matrix `[rows, columns]` in panels, of which `row` gives the blocks of each row; `None` for formats without a form, and for
/// columns that are no whole blocks.
///
/// # Panics
/// If a row has other bytes than its columns take.
pub(crate) fn panels<'a>(
    format: BlockFormat,
    shape: [usize; 2],
    row: impl Fn(usize) -> &'a [u8] + Sync,
) -> Option<BlockMatrix> {
    let bytes = shape[1] / format.block_len() * format.block_bytes();
    let rows = |panel: usize| {
        let first = panel * PANEL_ROWS;
        let of = |index: usize| if first + index < shape[0] { row(first + index) } else { &[] };
        let rows: [&[u8]; PANEL_ROWS] = std::array::from_fn(of);
        assert!(rows.iter().all(|row| row.is_empty() || row.len() == bytes), "rows take {bytes} bytes");
        rows
    };
    let fill = |panels: Vec<PanelMut<'_>>| {
        panels.into_par_iter().for_each(|panel| fill(true, format, &rows(panel.index), panel));
    };
    BlockMatrix::new(shape, form(format)?, fill).ok()
}

/// Fills a panel with rows, in `vectors` of 32 bytes where the processor has them.
fn fill(vectors: bool, format: BlockFormat, rows: &[&[u8]; PANEL_ROWS], panel: PanelMut<'_>) {
    with_parts!(format, fill_of(vectors, rows, panel));
}

fn fill_of<P: Parts<N, L>, const N: usize, const L: usize>(
    vectors: bool,
    rows: &[&[u8]; PANEL_ROWS],
    panel: PanelMut<'_>,
) {
    #[cfg(target_arch = "x86_64")]
    if vectors && is_x86_feature_detected!("avx2") {
        // SAFETY: this processor has the instructions.
        return unsafe { rows_with_avx2::<P, N, L>(rows, panel) };
    }
    let _ = vectors;
    put_rows::<P, N, L>(rows, panel);
}

/// [`put_rows`] in vectors of 32 bytes, which compilers make of it where they may.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn rows_with_avx2<P: Parts<N, L>, const N: usize, const L: usize>(rows: &[&[u8]; PANEL_ROWS], panel: PanelMut<'_>) {
    put_rows::<P, N, L>(rows, panel);
}

/// Columns of which all rows are written before the next ones: their vectors stay in the first cache meanwhile.
const RUN: usize = 256;

#[inline(always)]
fn put_rows<P: Parts<N, L>, const N: usize, const L: usize>(rows: &[&[u8]; PANEL_ROWS], panel: PanelMut<'_>) {
    let form = const { &P::FORM };
    let PanelMut { fields: out, mut scales, mut minimums, .. } = panel;
    let mut fields = [0; RUN];
    for (run, out) in out.chunks_mut(form.bits.panel_bytes(RUN)).enumerate() {
        let first = run * (RUN / L);
        for (row, bytes) in rows.iter().enumerate() {
            let blocks = bytes.as_chunks::<N>().0;
            let blocks = &blocks[first.min(blocks.len())..blocks.len().min(first + RUN / L)];
            for (index, (block, fields)) in (first..).zip(blocks.iter().zip(fields.as_chunks_mut::<L>().0)) {
                let constants = P::parts(block, fields);
                let (place, groups) = ((row, index), L / form.group_size);
                put_scales(&mut scales, place, groups, constants.scale, &constants.steps);
                if let Some(minimums) = &mut minimums {
                    put_scales(minimums, place, groups, constants.minimum, &constants.minimum_steps);
                }
            }
            panel::put_row(form.bits, out, row, &fields[..blocks.len() * L]);
        }
    }
}

/// Puts the numbers of a block of a row into its panel; a block has one number in half precision, and `groups` steps if any.
#[inline(always)]
fn put_scales(out: &mut ScalesMut<'_>, (row, block): (usize, usize), groups: usize, half: u16, steps: &[i8; 16]) {
    out.halves[block * PANEL_ROWS + row] = half;
    if !out.steps.is_empty() {
        for (group, step) in steps[..groups].iter().enumerate() {
            out.steps[(block * groups + group) * PANEL_ROWS + row] = *step;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::golden;
    use super::*;

    /// Formats with a form.
    fn formats() -> impl Iterator<Item = BlockFormat> {
        BlockFormat::ALL.into_iter().filter(|format| form(*format).is_some())
    }

    /// The golden blocks of a format as rows of a run and a block more, each of which starts at another one, with their values.
    fn rows(format: BlockFormat, count: usize) -> Vec<(Vec<u8>, Vec<u32>)> {
        let (bytes, bits) = golden(format);
        let (bytes, bits) = (bytes.chunks(format.block_bytes()), bits.chunks(format.block_len()));
        let blocks: Vec<_> = bytes.zip(bits).collect();
        let row = |row: usize| {
            let places = (0..RUN / format.block_len() + 1).map(|i| (row * 5 + i) % blocks.len());
            let parts = places.map(|place| blocks[place]);
            (
                parts.clone().flat_map(|(bytes, _)| bytes).copied().collect(),
                parts.flat_map(|(_, bits)| bits).copied().collect(),
            )
        };
        (0..count).map(row).collect()
    }

    #[test]
    fn panels_hold_the_values_to_the_bit() {
        assert_eq!(formats().count(), 16);
        for format in formats() {
            let rows = rows(format, 37);
            let shape = [rows.len(), rows[0].1.len()];
            let matrix = panels(format, shape, |row| &rows[row].0).unwrap();
            assert_eq!([matrix.rows(), matrix.columns()], shape);
            let mut out = vec![0.0; shape[1]];
            for (row, (_, bits)) in rows.iter().enumerate() {
                matrix.dequantize_row_into(row, &mut out);
                assert!(
                    out.iter().map(|value| value.to_bits()).eq(bits.iter().copied()),
                    "{} row {row}",
                    format.name()
                );
            }
        }
    }

    #[test]
    fn rows_beyond_the_last_are_zeros_in_panels() {
        for format in formats() {
            let rows = rows(format, 3);
            let matrix = panels(format, [3, rows[0].1.len()], |row| &rows[row].0).unwrap();
            let vectors = matrix.panel(0).as_chunks::<64>().0;
            assert!(vectors.iter().all(|vector| vector[3 * 4..].iter().all(|byte| *byte == 0)), "{}", format.name());
            for read in [BlockMatrix::scales_into, BlockMatrix::minimums_into] {
                let mut numbers = vec![1.0; matrix.groups() * PANEL_ROWS];
                read(&matrix, 0, &mut numbers);
                assert!(numbers.as_chunks::<PANEL_ROWS>().0.iter().all(|group| group[3..] == [0.0; 13]));
            }
        }
    }

    #[test]
    fn panels_are_the_same_on_every_instruction_set() {
        for format in formats() {
            let rows = rows(format, 16);
            let matrix = panels(format, [16, rows[0].1.len()], |row| &rows[row].0).unwrap();
            let plain = BlockMatrix::new([16, rows[0].1.len()], form(format).unwrap(), |panels| {
                let rows = std::array::from_fn(|row| &*rows[row].0);
                panels.into_iter().for_each(|panel| fill(false, format, &rows, panel));
            });
            assert!(plain.unwrap() == matrix, "{}", format.name());
        }
    }

    #[test]
    fn numbers_that_are_not_finite_are_told_by_their_blocks() {
        for format in BlockFormat::ALL {
            let (mut bytes, _) = golden(format);
            let expected = form(format).map(|_| true);
            assert_eq!(are_finite(format, &bytes), expected, "{}", format.name());
            // Each byte pair of the last block that makes a value infinite or NaN is found, and no other.
            let last = bytes.len() - format.block_bytes();
            for at in last..bytes.len() - 1 {
                let before = [bytes[at], bytes[at + 1]];
                for half in [0x7c00u16, 0xfe00] {
                    bytes[at..at + 2].copy_from_slice(&half.to_le_bytes());
                    let finite = format.dequantize(&bytes).iter().all(|value| value.is_finite());
                    assert_eq!(are_finite(format, &bytes), expected.map(|_| finite), "{} {at}", format.name());
                }
                bytes[at..at + 2].copy_from_slice(&before);
            }
        }
    }

    #[test]
    fn what_does_not_fit_has_no_panels() {
        for format in BlockFormat::ALL {
            let len = format.block_len();
            let bytes = vec![0; 2 * format.block_bytes()];
            assert_eq!(panels(format, [2, 2 * len], |_| &bytes).is_some(), form(format).is_some(), "{}", format.name());
            assert!(panels(format, [2, 2 * len - 1], |_| &bytes).is_none() || len == 1);
            assert!(panels(format, [0, len], |_| &bytes).is_none() && panels(format, [2, 0], |_| &bytes).is_none());
        }
    }

    /// Values of all formats in f32, and panels of those with a form on one thread and on two, of 4096 rows of 4096.
    #[test]
    #[ignore = "prints times"]
    fn panels_are_made_in_this_time() {
        const SIDE: usize = 4096;
        let gigabytes = |what: &mut dyn FnMut()| {
            let times = [(); 3].map(|()| {
                let start = std::time::Instant::now();
                what();
                start.elapsed().as_secs_f64()
            });
            let best = times.into_iter().fold(f64::INFINITY, f64::min);
            (SIDE * SIDE) as f64 / best / 1e9
        };
        println!("10^9 weights per second: values, whether finite, panels on 1 thread, panels on 2 threads");
        for format in BlockFormat::ALL.into_iter().filter(|format| format.block_len() > 1) {
            let (blocks, _) = golden(format);
            let row_bytes = SIDE / format.block_len() * format.block_bytes();
            let bytes: Vec<u8> = blocks.iter().cycle().take(SIDE * row_bytes).copied().collect();
            let mut out = vec![0.0; 16 * SIDE];
            let values = gigabytes(&mut || {
                bytes.chunks(16 * row_bytes).for_each(|bytes| format.dequantize_into(bytes, &mut out))
            });
            if form(format).is_none() {
                println!("{:8} {values:5.2}", format.name());
                continue;
            }
            let finite = gigabytes(&mut || assert_eq!(are_finite(format, &bytes), Some(true)));
            let [one, two] = [1, 2].map(|threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                gigabytes(&mut || {
                    let matrix =
                        pool.install(|| panels(format, [SIDE; 2], |row| &bytes[row * row_bytes..][..row_bytes]));
                    assert!(matrix.is_some());
                })
            });
            println!("{:8} {values:5.2} {finite:6.2} {one:5.2} {two:5.2}", format.name());
        }
    }
}
