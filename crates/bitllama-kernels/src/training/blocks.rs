//! Matrices block by block: a computation of many passes over a matrix whose columns, or rows, do not depend on each
//! other stays in a processor's cache where it goes over a few of them at a time.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// Along which dimension a row-major matrix is cut, and how many of these lie along it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Blocks of columns, of so many.
    Columns(usize),
    /// Blocks of rows, of so many.
    Rows(usize),
}

impl Cut {
    fn len(self) -> usize {
        match self {
            Cut::Columns(len) | Cut::Rows(len) => len,
        }
    }

    /// Blocks of about `numbers` numbers of a matrix of `total`.
    fn size(self, total: usize, numbers: usize) -> usize {
        let each = (total / self.len().max(1)).max(1);
        // A block for each thread at least; the size of blocks changes no result.
        let size = (numbers / each).min(self.len().div_ceil(rayon::current_num_threads())).max(1);
        // Whole turns of a loop, where there are as many columns.
        if size > LINE { size / LINE * LINE } else { size.max(LINE.min(self.len())) }
    }
}

/// Numbers of a whole turn of a loop over a line: four vectors of the widest kind.
const LINE: usize = 64;

/// Numbers of a block, about: what it reads stays in a second-level cache of 2 MiB until it is read again. Of smaller
/// blocks of columns, lines are short, and each lies in another page of memory: a quarter as many numbers take half as
/// long again.
const BLOCK: usize = 1 << 18;

/// A block's part of a matrix, where it lies: lines of `width` numbers.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    data: &'a [f32],
    lines: usize,
    width: usize,
    step: usize,
}

impl<'a> Part<'a> {
    /// Lines that lie behind each other.
    ///
    /// # Panics
    /// If the numbers are no whole lines.
    pub fn whole(data: &'a [f32], width: usize) -> Self {
        assert!(width > 0 && data.len().is_multiple_of(width), "{} numbers in lines of {width}", data.len());
        Part { data, lines: data.len() / width, width, step: width }
    }

    /// Some columns of lines of `width`, which lie behind each other.
    ///
    /// # Panics
    /// If the numbers are no whole lines, or there are no such columns.
    pub fn columns(data: &'a [f32], width: usize, columns: Range<usize>) -> Self {
        let Part { lines, step, .. } = Part::whole(data, width);
        let data = if lines == 0 { data } else { &data[columns.start..(lines - 1) * step + columns.end] };
        Part { data, lines, width: columns.len(), step }
    }

    /// How many lines.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Numbers of a line.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One of the lines.
    #[inline(always)]
    pub fn line(&self, i: usize) -> &'a [f32] {
        &self.data[i * self.step..][..self.width]
    }

    /// All numbers as one line, where they lie in one piece.
    pub fn flat(&self) -> Option<Self> {
        (self.step == self.width || self.lines == 1).then(|| Part::whole(self.data, self.data.len()))
    }
}

/// A block's part of a matrix that is to be written, where it lies: lines of `width` numbers.
#[derive(Debug)]
pub struct PartMut<'a> {
    start: *mut f32,
    lines: usize,
    width: usize,
    step: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

impl<'a> PartMut<'a> {
    /// Lines that lie behind each other.
    ///
    /// # Panics
    /// If the numbers are no whole lines.
    pub fn whole(data: &'a mut [f32], width: usize) -> Self {
        assert!(width > 0 && data.len().is_multiple_of(width), "{} numbers in lines of {width}", data.len());
        let lines = data.len() / width;
        PartMut { start: data.as_mut_ptr(), lines, width, step: width, matrix: PhantomData }
    }

    /// How many lines.
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Numbers of a line.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One of the lines.
    #[inline(always)]
    pub fn line(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.lines, "line {i} of {}", self.lines);
        // SAFETY: the lines are this part's, which is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.step), self.width) }
    }

    /// Whether all numbers lie in one piece.
    pub fn is_whole(&self) -> bool {
        self.step == self.width || self.lines == 1
    }

    /// The same numbers in `lines` of `width`.
    ///
    /// # Panics
    /// If these are not as many numbers, or lie in other lines and not in one piece.
    pub fn reshaped(&mut self, lines: usize, width: usize) -> PartMut<'_> {
        let same = (lines, width) == (self.lines, self.width);
        assert!(
            same || self.is_whole() && lines * width == self.lines * self.width,
            "{lines} lines of {width} of {self:?}"
        );
        let step = if same { self.step } else { width };
        PartMut { start: self.start, lines, width, step, matrix: PhantomData }
    }
}

/// Calls `compute` for each block, on all threads, with the block's first column or row, its parts of all `inputs` and,
/// to be written, of all `outputs`. Every matrix is cut in the same manner and has as many columns, or rows; the first
/// input decides how many a block has.
///
/// # Panics
/// If a matrix cannot be cut so.
pub fn for_each_block(
    cut: Cut,
    inputs: &[&[f32]],
    outputs: &mut [&mut [f32]],
    compute: impl Fn(usize, Vec<Part<'_>>, Vec<PartMut<'_>>) + Sync,
) {
    let len = cut.len();
    let lengths = inputs.iter().map(|input| input.len()).chain(outputs.iter().map(|output| output.len()));
    lengths.for_each(|total| assert!(len > 0 && total.is_multiple_of(len), "{total} numbers are no {cut:?}"));
    let size = cut.size(inputs.first().map_or(0, |input| input.len()), BLOCK);
    let places: Vec<Place> =
        outputs.iter_mut().map(|output| Place { start: output.as_mut_ptr(), len: output.len() }).collect();
    (0..len.div_ceil(size)).into_par_iter().for_each(|block| {
        let (start, end) = (block * size, len.min((block + 1) * size));
        let taken = inputs.iter().map(|input| {
            let Lines { first, lines, width, step } = cut.lines(input.len(), start, end);
            let data = if lines == 0 { &[] } else { &input[first..first + (lines - 1) * step + width] };
            Part { data, lines, width, step }
        });
        let given = places.iter().map(|place| {
            let Lines { first, lines, width, step } = cut.lines(place.len, start, end);
            // Lines are within the output. Blocks do not overlap, and each is written by one task.
            PartMut { start: place.start.wrapping_add(first), lines, width, step, matrix: PhantomData }
        });
        compute(start, taken.collect(), given.collect());
    });
}

/// Where a block's lines lie in a matrix.
struct Lines {
    first: usize,
    lines: usize,
    width: usize,
    step: usize,
}

impl Cut {
    fn lines(self, total: usize, start: usize, end: usize) -> Lines {
        let each = total / self.len();
        match self {
            Cut::Rows(_) => Lines { first: start * each, lines: end - start, width: each, step: each },
            Cut::Columns(len) => Lines { first: start, lines: each, width: end - start, step: len },
        }
    }
}

/// An output that several tasks write.
struct Place {
    start: *mut f32,
    len: usize,
}

// SAFETY: who writes to it vouches that nobody else writes to the same numbers.
unsafe impl Sync for Place {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_passes_once_and_comes_back_to_its_place() {
        for (rows, columns) in [(1, 1), (3, 5), (100, 1000), (2000, 37), (3000, 433)] {
            let input: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            for cut in [Cut::Columns(columns), Cut::Rows(rows)] {
                let of_each: Vec<f32> = (0..cut.len()).map(|i| i as f32).collect();
                let (mut doubled, mut sums) = (vec![0.0; input.len()], vec![0.0; cut.len()]);
                for_each_block(cut, &[&input, &of_each], &mut [&mut doubled, &mut sums], |start, parts, mut out| {
                    let ([part, of_each], [doubled, sums]) = (&parts[..], &mut out[..]) else { panic!("two each") };
                    assert_eq!(of_each.line(0)[0], start as f32);
                    assert_eq!((doubled.lines(), doubled.width()), (part.lines(), part.width()));
                    for i in 0..part.lines() {
                        for (column, (out, x)) in doubled.line(i).iter_mut().zip(part.line(i)).enumerate() {
                            *out += 2.0 * x;
                            match cut {
                                Cut::Columns(_) => sums.line(0)[column] += x,
                                Cut::Rows(_) => sums.line(i)[0] += x,
                            }
                        }
                    }
                });
                assert!(doubled.iter().zip(&input).all(|(d, x)| *d == 2.0 * x), "{cut:?}");
                let expected = |i: usize| match cut {
                    Cut::Columns(_) => input.chunks(columns).map(|row| row[i]).sum::<f32>(),
                    Cut::Rows(_) => input[i * columns..(i + 1) * columns].iter().sum(),
                };
                assert!(sums.iter().enumerate().all(|(i, sum)| *sum == expected(i)), "{cut:?}");
            }
        }
    }

    #[test]
    fn what_lies_in_one_piece_is_flat() {
        let mut numbers = [0.0, 1.0, 2.0, 3.0];
        assert_eq!(Part::whole(&numbers, 2).flat().map(|part| part.line(0)), Some(&numbers[..]));
        assert!(Part { width: 1, ..Part::whole(&numbers, 2) }.flat().is_none());
        PartMut::whole(&mut numbers, 2).reshaped(1, 4).line(0)[3] = 5.0;
        PartMut { width: 1, ..PartMut::whole(&mut numbers, 2) }.reshaped(2, 1).line(1)[0] = 4.0;
        assert_eq!(numbers, [0.0, 1.0, 4.0, 5.0]);
    }
}
