//! A matrix after rounding: in panels, or in blocks of ggml where its quantizer has minimums or scales of scales.

use half::f16;

use crate::blocks::{BlockForm, Codes, PanelMut, ScalesMut};
use crate::panel::{self, PANEL_ROWS};
use crate::rounding::{Multiples, Offsets, Quantized, ScaleParts, Scales, quantize};
use crate::scales::Nesting;
use crate::{BlockMatrix, DenseMatrix, Error, Granularity, Offset, PackedMatrix, Quantizer, ScaleFormat};

/// A matrix `[rows, columns]` = `[out_features, in_features]` of low-bit codes with scales.
#[derive(Debug, Clone, PartialEq)]
pub enum RoundedMatrix {
    /// Panels with scales and maybe zero points.
    Packed(PackedMatrix),
    /// Blocks with nested scales or minimums.
    Blocks(BlockMatrix),
}

impl RoundedMatrix {
    /// Packs what `quantizer` made of a matrix `[rows, columns]`; see [`PackedMatrix::pack`].
    ///
    /// # Errors
    /// [`Error::Packed`] if a code is none of the scheme (a weight that is not finite has none), or the lengths do not match.
    pub fn pack(quantizer: &Quantizer, shape: [usize; 2], quantized: Quantized<DenseMatrix>) -> Result<Self, Error> {
        match quantizer.is_of_blocks() {
            false => PackedMatrix::pack(quantizer, shape, quantized).map(Self::Packed),
            true => blocks(quantizer, shape, &quantized).map(Self::Blocks),
        }
    }

    /// Rounds `weight`, row-major `[rows, columns]`, and packs it: by `trained` scales if there are any, else by those that it
    /// gives.
    ///
    /// # Errors
    /// [`Error::Packed`] if a weight is not finite, [`Error::Quantizer`] if groups do not divide the columns.
    pub fn quantize(
        quantizer: &Quantizer,
        shape: [usize; 2],
        weight: Vec<f32>,
        trained: Option<Scales<DenseMatrix>>,
    ) -> Result<Self, Error> {
        quantizer.check_shape(shape)?;
        let weight = DenseMatrix { data: weight, columns: quantizer.group_len(shape) };
        Self::pack(quantizer, shape, quantize(quantizer, weight, trained))
    }

    /// `out_features`.
    pub fn rows(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.rows(),
            Self::Blocks(matrix) => matrix.rows(),
        }
    }

    /// `in_features`.
    pub fn columns(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.columns(),
            Self::Blocks(matrix) => matrix.columns(),
        }
    }

    /// All weights, `[rows, columns]`.
    pub fn dequantize(&self) -> DenseMatrix {
        match self {
            Self::Packed(matrix) => matrix.dequantize(),
            Self::Blocks(matrix) => {
                let columns = matrix.columns();
                let mut data = vec![0.0; matrix.rows() * columns];
                for (row, out) in data.chunks_exact_mut(columns).enumerate() {
                    matrix.dequantize_row_into(row, out);
                }
                DenseMatrix { data, columns }
            }
        }
    }

    /// Scales and offsets, `[rows, groups]`, one behind the other.
    pub fn scales(&self) -> Scales<DenseMatrix> {
        let numbers = |data: Vec<f32>| DenseMatrix { data, columns: 1 };
        match self {
            Self::Packed(matrix) => {
                let points = |points: &[i32]| numbers(points.iter().map(|point| *point as f32).collect());
                let offsets = matrix.zero_points().map(|of| Offsets::ZeroPoints(points(of)));
                Scales { scales: numbers(matrix.scales().to_vec()), offsets }
            }
            Self::Blocks(matrix) => {
                let all = |read: fn(&BlockMatrix, usize, &mut [f32])| numbers(row_major(matrix, read));
                let minimums = || Offsets::Minimums(all(BlockMatrix::minimums_into));
                let offsets = matrix.minimums().is_some().then(minimums);
                Scales { scales: all(BlockMatrix::scales_into), offsets }
            }
        }
    }
}

impl From<PackedMatrix> for RoundedMatrix {
    fn from(matrix: PackedMatrix) -> Self {
        Self::Packed(matrix)
    }
}

impl Quantizer {
    /// The form of blocks that hold a matrix; `None` where it is stored in panels.
    pub fn block_form(&self) -> Option<BlockForm> {
        let Granularity::Group(group_size) = self.granularity else { return None };
        let codes = match (self.offset, self.scheme.line()) {
            (Offset::Minimum, _) => Codes::Line { low: 0, step: 1 },
            (_, (low, step)) => Codes::Line { low, step },
        };
        let nested = match self.scales {
            ScaleFormat::Nested(Nesting { groups, .. }) => Some(groups),
            _ => None,
        };
        let has_minimums = self.offset == Offset::Minimum;
        let form = BlockForm { bits: self.scheme.field_bits(), codes, group_size, nested, has_minimums };
        self.is_of_blocks().then_some(form)
    }
}

/// Numbers of panels, `[groups, 16]` each, as `[rows, groups]`.
fn row_major(matrix: &BlockMatrix, read: fn(&BlockMatrix, usize, &mut [f32])) -> Vec<f32> {
    let (rows, groups) = (matrix.rows(), matrix.groups());
    let mut out = vec![0.0; rows * groups];
    let mut of_panel = vec![0.0; groups * PANEL_ROWS];
    for (panel, out) in out.chunks_mut(PANEL_ROWS * groups).enumerate() {
        read(matrix, panel, &mut of_panel);
        for (row, out) in out.chunks_exact_mut(groups).enumerate() {
            out.iter_mut().enumerate().for_each(|(group, out)| *out = of_panel[group * PANEL_ROWS + row]);
        }
    }
    out
}

/// Scales or minimums as blocks hold them, `[rows, ..]`.
struct Numbers {
    /// Bits of numbers in half precision, so many per row.
    halves: Vec<u16>,
    /// Steps, so many per row; none where numbers are not nested.
    steps: Vec<i8>,
}

impl Numbers {
    fn of(numbers: &DenseMatrix, multiples: Option<&Multiples<DenseMatrix>>) -> Result<Self, Error> {
        let halves = |numbers: &DenseMatrix| {
            let half = |number: &f32| {
                let half = f16::from_f32(*number);
                // A minimum of -0 is 0.
                let bits = if *number == 0.0 { 0 } else { half.to_bits() };
                (half.to_f32() == *number).then_some(bits)
            };
            let halves: Option<Vec<u16>> = numbers.data.iter().map(half).collect();
            halves.ok_or_else(|| Error::Packed("a scale is no f16; a weight may be infinite or NaN".into()))
        };
        Ok(match multiples {
            None => Self { halves: halves(numbers)?, steps: Vec::new() },
            Some(Multiples { factors, steps }) => {
                Self { halves: halves(factors)?, steps: steps.data.iter().map(|step| *step as i8).collect() }
            }
        })
    }

    /// Puts the numbers of a row into its place in a panel.
    fn put(&self, rows: usize, row: usize, lane: usize, out: &mut ScalesMut<'_>) {
        let (halves, steps) = (self.halves.len() / rows, self.steps.len() / rows);
        let of_row = |index: usize| index * PANEL_ROWS + lane;
        let halves = self.halves[row * halves..][..halves].iter().enumerate();
        halves.for_each(|(index, half)| out.halves[of_row(index)] = *half);
        let steps = self.steps[row * steps..][..steps].iter().enumerate();
        steps.for_each(|(index, step)| out.steps[of_row(index)] = *step);
    }
}

fn blocks(quantizer: &Quantizer, shape: [usize; 2], quantized: &Quantized<DenseMatrix>) -> Result<BlockMatrix, Error> {
    let [rows, columns] = shape;
    let form = quantizer.block_form().ok_or_else(|| Error::Packed(format!("{quantizer} has no blocks")))?;
    let Quantized { codes, scales, offsets, parts } = quantized;
    let groups = rows * columns / form.group_size;
    let minimums = match offsets {
        Some(Offsets::Minimums(minimums)) => Some(minimums),
        _ => None,
    };
    if codes.data.len() != rows * columns || scales.data.len() != groups || minimums.is_some() != form.has_minimums {
        return Err(Error::Packed(format!("{} codes are no {rows} rows of {columns}", codes.data.len())));
    }
    let (of_scales, of_minimums) = match (parts, form.nested) {
        (Some(ScaleParts::Nested { scales, minimums }), Some(_)) => (Some(scales), minimums.as_ref()),
        (_, None) => (None, None),
        (_, Some(_)) => return Err(Error::Packed("the scales are not nested".into())),
    };
    let of_scales = Numbers::of(scales, of_scales)?;
    let of_minimums = minimums.map(|minimums| Numbers::of(minimums, of_minimums)).transpose()?;
    let (scheme, levels) = (quantizer.scheme, quantizer.scheme.levels() as f32);
    let field = |code: f32| match form.has_minimums {
        true => (code.fract() == 0.0 && code >= 0.0 && code < levels).then_some(code as u8),
        false => scheme.field_of(code),
    };
    let fields: Option<Vec<u8>> = codes.data.iter().map(|code| field(*code)).collect();
    let fields = fields.ok_or_else(|| Error::Packed(format!("a weight has no code of {scheme}: it is not finite")))?;
    BlockMatrix::new(shape, form, |panels| {
        for PanelMut { index, fields: out, mut scales, mut minimums } in panels {
            for (lane, row) in (index * PANEL_ROWS..rows).take(PANEL_ROWS).enumerate() {
                panel::put_row(form.bits, out, lane, &fields[row * columns..][..columns]);
                of_scales.put(rows, row, lane, &mut scales);
                if let (Some(numbers), Some(out)) = (&of_minimums, &mut minimums) {
                    numbers.put(rows, row, lane, out);
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets;

    /// Weights with groups of zeros, of one sign, and of magnitudes that are far from each other.
    fn weights(rows: usize, columns: usize) -> Vec<f32> {
        let number = |i: usize| ((i as u32).wrapping_mul(2654435761) >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let of = |i: usize| match i / 32 % 7 {
            0 => 0.0,
            1 => number(i).abs(),
            2 => -number(i).abs(),
            3 => number(i) * 1e-7,
            4 => number(i) * 30.0,
            _ => number(i),
        };
        (0..rows * columns).map(of).collect()
    }

    #[test]
    fn blocks_hold_what_was_rounded_to_the_bit() {
        let types = targets::ALL.iter().filter(|target| target.mix.is_none());
        let of_blocks = types.map(|target| target.quantizers[0]).filter(Quantizer::is_of_blocks);
        let mut count = 0;
        for quantizer in of_blocks {
            let shape = [19, 512];
            let weight = DenseMatrix { data: weights(19, 512), columns: quantizer.group_len(shape) };
            let quantized = quantize(&quantizer, weight, None);
            let matrix = RoundedMatrix::pack(&quantizer, shape, quantized.clone()).unwrap();
            let bits = |numbers: Vec<f32>| numbers.into_iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<_>>();
            assert!(bits(matrix.dequantize().data) == bits(quantized.clone().dequantize().data), "{quantizer}");
            let Scales { scales, offsets } = matrix.scales();
            assert_eq!(bits(scales.data), bits(quantized.scales.data), "{quantizer}");
            let numbers =
                |offsets: Option<Offsets<DenseMatrix>>| offsets.map(|offsets| bits(offsets.into_numbers().data));
            assert_eq!(numbers(offsets), numbers(quantized.offsets), "{quantizer}");
            count += 1;
        }
        assert_eq!(count, 7);
    }

    #[test]
    fn weights_that_are_no_numbers_are_refused() {
        for name in ["gguf:q4_k", "gguf:q4_1", "gguf:q6_k"] {
            let quantizer = targets::Target::named(name).unwrap().quantizers[0];
            let mut weight = weights(2, 256);
            weight[300] = f32::NAN;
            assert!(RoundedMatrix::quantize(&quantizer, [2, 256], weight, None).is_err(), "{name}");
        }
    }
}
