//! The codes of a tensor of one or more packed matrices, as whole numbers with a zero point for each group of columns, and the
//! smallest width of a format that holds them.

use bitllama_core::PackedMatrix;

/// Codes `[rows, columns]`: a weight is `(field - zero) * scale`, in the group of columns of its scale.
#[derive(Debug)]
pub(super) struct Codes {
    pub rows: usize,
    pub columns: usize,
    /// Columns that share a scale and a zero.
    pub group_size: usize,
    /// Row-major.
    pub fields: Vec<u8>,
    /// The largest field that the scheme has.
    largest: u8,
    /// Distance between fields: 2 where every second number is none.
    pub step: u8,
    /// `[rows, groups]`.
    pub zeros: Vec<i32>,
    /// `[rows, groups]`.
    pub scales: Vec<f32>,
}

/// The width of fields in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fit {
    pub bits: usize,
    /// Whether every zero is the middle of the fields.
    pub symmetric: bool,
}

/// Zero points beyond are damage, and would not be whole numbers in f32 when codes are added to them.
const LARGEST_ZERO: u32 = 1 << 20;

impl Codes {
    /// The codes of matrices that share a tensor, the rows of one behind those of the other.
    ///
    /// # Errors
    /// Levels that are no whole numbers, in one line.
    pub fn of(matrices: &[PackedMatrix]) -> Result<Self, String> {
        if let Some(table) = matrices.iter().find(|matrix| matrix.scheme().table().is_some()) {
            return Err(format!("the format has no levels of {}", table.scheme()));
        }
        let Some(first) = matrices.first() else { return Err("the tensor has no matrix".into()) };
        let mut points = matrices.iter().filter_map(PackedMatrix::zero_points).flatten();
        if let Some(point) = points.find(|point| point.unsigned_abs() > LARGEST_ZERO) {
            return Err(format!("a zero point of {point} fits no width of the format"));
        }
        let columns = first.columns();
        let group_size = matrices.iter().fold(columns, |size, matrix| gcd(size, matrix.group_size()));
        let steps = matrices.iter().map(step);
        let shared = if steps.clone().all(|step| step == 2) { 2 } else { 1 };
        let mut codes = Self {
            rows: matrices.iter().map(PackedMatrix::rows).sum(),
            columns,
            group_size,
            fields: Vec::new(),
            largest: 0,
            step: shared,
            zeros: Vec::new(),
            scales: Vec::new(),
        };
        codes.fields.resize(codes.rows * columns, 0);
        let mut rows = codes.fields.chunks_exact_mut(columns);
        for (matrix, step) in matrices.iter().zip(steps) {
            codes.largest = codes.largest.max((matrix.scheme().levels() - 1) as u8 * step);
            let low = matrix.scheme().line().0;
            for (row, fields) in rows.by_ref().take(matrix.rows()).enumerate() {
                matrix.fields_into(row, fields);
                fields.iter_mut().for_each(|field| *field *= step);
                for group in 0..columns / group_size {
                    let place = row * matrix.groups() + group * group_size / matrix.group_size();
                    codes.scales.push(matrix.scales()[place]);
                    codes.zeros.push(matrix.zero_points().map_or(-low, |points| points[place]));
                }
            }
        }
        Ok(codes)
    }

    /// The first of `widths`, from the fewest bits up, that holds the fields as they are, `step` of them apart.
    pub fn plain_width(&self, widths: impl IntoIterator<Item = usize>) -> Option<usize> {
        widths.into_iter().find(|bits| usize::from(self.largest / self.step) < 1 << bits)
    }

    /// Scales of a row.
    pub fn groups(&self) -> usize {
        self.columns / self.group_size
    }

    /// The same codes in smaller groups: those of `size` columns, which divide the groups that there are.
    pub fn regrouped(mut self, size: usize) -> Self {
        let times = self.group_size / size;
        if times > 1 {
            let repeated = |place: usize| std::iter::repeat_n(place, times);
            self.scales = (0..self.scales.len()).flat_map(repeated).map(|place| self.scales[place]).collect();
            self.zeros = (0..self.zeros.len()).flat_map(repeated).map(|place| self.zeros[place]).collect();
            self.group_size = size;
        }
        self
    }

    /// The first of `widths`, from the fewest bits up, that holds the codes around its middle or with zeros from `least` on.
    ///
    /// # Errors
    /// Codes that none holds, in one line.
    pub fn fit(&self, widths: impl IntoIterator<Item = usize>, least: i32) -> Result<Fit, String> {
        let (low, high) = self.zeros.iter().fold((0, 0), |(low, high), zero| {
            (i32::min(low, -zero), i32::max(high, i32::from(self.largest).saturating_sub(*zero)))
        });
        let holds = |bits: usize| {
            let symmetric = low >= -(1 << (bits - 1)) && high < 1 << (bits - 1);
            let shifted = || {
                self.zeros.iter().all(|zero| {
                    let top = i64::from((*zero).max(self.largest.into())) + i64::from((least - zero).max(0));
                    top < 1 << bits
                })
            };
            (symmetric || shifted()).then_some(Fit { bits, symmetric })
        };
        let none = || {
            let (from, to) = (self.zeros.iter().min(), self.zeros.iter().max());
            format!("zero points from {} to {} fit no width of the format", from.unwrap_or(&0), to.unwrap_or(&0))
        };
        widths.into_iter().find_map(holds).ok_or_else(none)
    }

    /// The codes with fields and zeros moved to where `fit` has them; `least` as it was given to [`Codes::fit`].
    pub fn moved(mut self, fit: Fit, least: i32) -> Self {
        let size = self.group_size;
        for (zero, fields) in self.zeros.iter_mut().zip(self.fields.chunks_exact_mut(size)) {
            let shift = if fit.symmetric { (1 << (fit.bits - 1)) - *zero } else { (least - *zero).max(0) };
            *zero += shift;
            fields.iter_mut().for_each(|field| *field = (i32::from(*field) + shift) as u8);
        }
        self
    }

    /// The fields of a row.
    pub fn row(&self, row: usize) -> &[u8] {
        &self.fields[row * self.columns..][..self.columns]
    }

    /// Zeros as fields of [`Codes::moved`], `[rows, groups]`.
    pub fn zero_fields(&self) -> Vec<u8> {
        self.zeros.iter().map(|zero| *zero as u8).collect()
    }

    /// The weights of row `row` with other `scales`, `[rows, groups]`.
    pub fn weights_into(&self, row: usize, scales: &[f32], out: &mut [f32]) {
        let groups = row * self.groups()..(row + 1) * self.groups();
        let (zeros, scales) = (&self.zeros[groups.clone()], &scales[groups]);
        let fields = self.row(row).chunks_exact(self.group_size).zip(out.chunks_exact_mut(self.group_size));
        for ((fields, out), (zero, scale)) in fields.zip(zeros.iter().zip(scales)) {
            for (field, out) in fields.iter().zip(out) {
                *out = (i32::from(*field) - zero) as f32 * scale;
            }
        }
    }
}

/// Distance of a matrix's codes: zero points count fields.
fn step(matrix: &PackedMatrix) -> u8 {
    match matrix.zero_points() {
        Some(_) => 1,
        None => matrix.scheme().line().1 as u8,
    }
}

pub(super) fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Fields of `bits` bits one behind the other in 32-bit words, from the lowest bit up, without gaps; the last word is filled
/// with zeros.
pub(super) fn words(fields: impl IntoIterator<Item = u8>, bits: usize) -> Vec<u32> {
    let (mut words, mut held, mut count) = (Vec::new(), 0u64, 0);
    for field in fields {
        held |= u64::from(field) << count;
        count += bits;
        if count >= 32 {
            words.push(held as u32);
            held >>= 32;
            count -= 32;
        }
    }
    if count > 0 {
        words.push(held as u32);
    }
    words
}

/// The rows of `words`, `[rows, columns]`, as columns, in little-endian bytes.
pub(super) fn transposed_bytes(words: &[u32], columns: usize) -> Vec<u8> {
    let rows = words.len() / columns.max(1);
    let column = |column: usize| (0..rows).map(move |row| words[row * columns + column]);
    (0..columns).flat_map(column).flat_map(u32::to_le_bytes).collect()
}
