//! The numbers of one head's keys, or of its values, in a page, in each kind of storage. Positions count from the start of the page.

use bitllama_core::Activation;
use bitllama_core::activation::steps;
use bitllama_core::scales::LARGEST_F16;
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::KvKind;
use crate::activations::{largest_magnitude, nearest};
use crate::aligned::Aligned;
use crate::simd::{LANES, Nibbles, nibble_place};

/// Storage of one head's keys, or of its values, of a page.
#[derive(Debug, Clone)]
pub(super) enum Numbers {
    F32(Aligned<f32>),
    F16(Aligned<f16>),
    /// `f16` numbers up to a position, and from there on `f32` ones: the number of that position was beyond the range of `f16`.
    Wide(Aligned<f32>, usize),
    /// Codes, and the scale of each position.
    Int8(Aligned<i8>, Aligned<f32>),
    /// The same, a vector of codes in a number.
    Int4(Aligned<Nibbles>, Aligned<f32>),
}

/// One head's keys or values, for reading.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    /// Codes, and the scale of each position.
    Int8(&'a [i8], &'a [f32]),
    /// Vectors of codes, and the scale of each position.
    Int4(&'a [Nibbles], &'a [f32]),
}

impl Numbers {
    pub(super) fn new(kind: KvKind) -> Self {
        match kind {
            KvKind::F32 => Self::F32(Aligned::new()),
            KvKind::F16 => Self::F16(Aligned::new()),
            KvKind::Int8 => Self::Int8(Aligned::new(), Aligned::new()),
            KvKind::Int4 => Self::Int4(Aligned::new(), Aligned::new()),
        }
    }

    /// Grows to `positions` of `elements` each; never shrinks.
    pub(super) fn resize(&mut self, positions: usize, elements: usize) {
        match self {
            Self::F32(data) | Self::Wide(data, _) => data.grow(positions * elements),
            Self::F16(data) => data.grow(positions * elements),
            Self::Int8(codes, scales) => {
                codes.grow(positions * elements);
                scales.grow(positions);
            }
            // Whole vectors: positions are whole blocks of lanes.
            Self::Int4(codes, scales) => {
                codes.grow(positions * elements / LANES);
                scales.grow(positions);
            }
        }
    }

    pub(super) fn reserve(&mut self, positions: usize, elements: usize) {
        match self {
            Self::F32(data) | Self::Wide(data, _) => data.reserve(positions * elements),
            Self::F16(data) => data.reserve(positions * elements),
            Self::Int8(codes, scales) => {
                codes.reserve(positions * elements);
                scales.reserve(positions);
            }
            Self::Int4(codes, scales) => {
                codes.reserve(positions * elements / LANES);
                scales.reserve(positions);
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32(data) | Self::Wide(data, _) => data.bytes(),
            Self::F16(data) => data.bytes(),
            Self::Int8(codes, scales) => codes.bytes() + scales.bytes(),
            Self::Int4(codes, scales) => codes.bytes() + scales.bytes(),
        }
    }

    /// Stores `row` as `position`, from `offset` on, one element every `step`.
    pub(super) fn set(&mut self, position: usize, row: &[f32], offset: usize, step: usize) {
        let mut beyond = false;
        match self {
            Self::F32(data) | Self::Wide(data, _) => scatter(row, &mut data.as_mut_slice()[offset..], step),
            Self::F16(data) => {
                let mut halves = [f16::ZERO; CHUNK];
                for (index, row) in row.chunks(CHUNK).enumerate() {
                    let halves = &mut halves[..row.len()];
                    halves.convert_from_f32_slice(row);
                    if halves.iter().any(|half| !half.is_finite()) {
                        beyond = true;
                        break;
                    }
                    scatter(halves, &mut data.as_mut_slice()[offset + index * CHUNK * step..], step);
                }
            }
            Self::Int8(data, scales) => {
                let [inverse, scale] = steps(largest_finite(row), Activation::Int8.largest_code());
                scales.as_mut_slice()[position] = scale;
                let mut codes = [0; CHUNK];
                for (index, row) in row.chunks(CHUNK).enumerate() {
                    let codes = &mut codes[..row.len()];
                    for (code, x) in codes.iter_mut().zip(row) {
                        *code = nearest(*x * inverse);
                    }
                    scatter(codes, &mut data.as_mut_slice()[offset + index * CHUNK * step..], step);
                }
            }
            Self::Int4(data, scales) => {
                let [inverse, scale] = steps(largest_finite(row), Activation::Int4.largest_code());
                scales.as_mut_slice()[position] = scale;
                let data = data.as_mut_slice();
                for (i, x) in row.iter().enumerate() {
                    let at = offset + i * step;
                    let (byte, shift) = nibble_place(at % LANES);
                    let byte = &mut data[at / LANES].0[byte];
                    *byte = *byte & !(0xf << shift) | (nearest(*x * inverse) as u8 & 0xf) << shift;
                }
            }
        }
        if let (true, Self::F16(data)) = (beyond, &*self) {
            *self = Self::Wide(widened(data), position);
            self.set(position, row, offset, step);
        }
    }

    /// Whether [`Numbers::truncate`] would change the storage: positions that are forgotten asked for `f32`.
    pub(super) fn is_wider_than_needed(&self, len: usize) -> bool {
        matches!(self, Self::Wide(_, from) if len <= *from)
    }

    /// Forgets the positions from `len` on: what they asked for is asked for no more.
    pub(super) fn truncate(&mut self, len: usize) {
        if self.is_wider_than_needed(len)
            && let Self::Wide(data, _) = self
        {
            *self = Self::F16(narrowed(data));
        }
    }

    /// Reads what [`Numbers::set`] stored at `offset`.
    pub(super) fn get(&self, position: usize, offset: usize, step: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            let at = offset + i * step;
            *out = match self {
                Self::F32(data) | Self::Wide(data, _) => data.as_slice()[at],
                Self::F16(data) => data.as_slice()[at].to_f32(),
                Self::Int8(codes, scales) => f32::from(codes.as_slice()[at]) * scales.as_slice()[position],
                Self::Int4(codes, scales) => {
                    codes.as_slice()[at / LANES].code(at % LANES) * scales.as_slice()[position]
                }
            };
        }
    }

    pub(super) fn as_stored(&self) -> Stored<'_> {
        match self {
            Self::F32(data) | Self::Wide(data, _) => Stored::F32(data.as_slice()),
            Self::F16(data) => Stored::F16(data.as_slice()),
            Self::Int8(codes, scales) => Stored::Int8(codes.as_slice(), scales.as_slice()),
            Self::Int4(codes, scales) => Stored::Int4(codes.as_slice(), scales.as_slice()),
        }
    }
}

/// Elements converted at a time, in a buffer on the stack.
const CHUNK: usize = 128;

/// The largest magnitude of a row; no number where one of the row is infinite or no number, which codes cannot tell.
fn largest_finite(row: &[f32]) -> f32 {
    if row.iter().all(|x| x.is_finite()) { largest_magnitude(row) } else { f32::NAN }
}

fn widened(halves: &Aligned<f16>) -> Aligned<f32> {
    let mut wide = Aligned::new();
    wide.grow(halves.as_slice().len());
    wide.as_mut_slice().iter_mut().zip(halves.as_slice()).for_each(|(wide, half)| *wide = half.to_f32());
    wide
}

/// The same numbers again for those that [`widened`] gave; for others, which are forgotten, the nearest finite ones.
fn narrowed(wide: &Aligned<f32>) -> Aligned<f16> {
    let mut halves = Aligned::new();
    halves.grow(wide.as_slice().len());
    let limit = LARGEST_F16;
    let narrow = |x: &f32| f16::from_f32(x.clamp(-limit, limit));
    halves.as_mut_slice().iter_mut().zip(wide.as_slice()).for_each(|(half, wide)| *half = narrow(wide));
    halves
}

fn scatter<T: Copy>(row: &[T], out: &mut [T], step: usize) {
    if step == 1 {
        return out[..row.len()].copy_from_slice(row);
    }
    for (out, x) in out.iter_mut().step_by(step).zip(row) {
        *out = *x;
    }
}
