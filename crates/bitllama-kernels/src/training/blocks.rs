//! Matrices block by block: a computation of many passes over a matrix whose columns, or rows, do not depend on each other
//! stays in a processor's cache where it goes over a few of them at a time.

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
        let size = (numbers / each).clamp(1, self.len().max(1));
        // Whole cache lines, where there are as many columns.
        if size > LINE { size / LINE * LINE } else { size.max(LINE.min(self.len())) }
    }
}

/// Numbers of a cache line.
const LINE: usize = 16;

/// Numbers of a block, about: so that some copies of it fit into a second-level cache.
const BLOCK: usize = 1 << 15;

/// Calls `compute` for each block, on all threads, with the block's first column or row and its parts of all `inputs`, each
/// row-major and contiguous; what it returns are the block's parts of all `outputs`, which are put in their places. Every matrix
/// is cut in the same manner and has as many columns, or rows; the first input decides how many a block has.
///
/// # Panics
/// If a matrix cannot be cut so, or a part that is returned is of another size than its place.
pub fn for_each_block(
    cut: Cut,
    inputs: &[&[f32]],
    outputs: &mut [&mut [f32]],
    compute: impl Fn(usize, Vec<Vec<f32>>) -> Vec<Vec<f32>> + Sync,
) {
    let len = cut.len();
    let lengths = inputs.iter().map(|input| input.len()).chain(outputs.iter().map(|output| output.len()));
    lengths.for_each(|total| assert!(len > 0 && total.is_multiple_of(len), "{total} numbers are no {cut:?}"));
    let size = cut.size(inputs.first().map_or(0, |input| input.len()), BLOCK);
    let places: Vec<Place> =
        outputs.iter_mut().map(|output| Place { start: output.as_mut_ptr(), len: output.len() }).collect();
    (0..len.div_ceil(size)).into_par_iter().for_each(|block| {
        let (start, end) = (block * size, len.min((block + 1) * size));
        let taken = inputs.iter().map(|input| taken(cut, input, start, end)).collect();
        let computed = compute(start, taken);
        assert_eq!(computed.len(), places.len(), "a part for each output");
        for (place, part) in places.iter().zip(computed) {
            assert_eq!(part.len(), place.len / len * (end - start), "a part of another size");
            // SAFETY: blocks do not overlap, and each is written by one task.
            unsafe { put(cut, place, start, end, &part) };
        }
    });
}

fn taken(cut: Cut, input: &[f32], start: usize, end: usize) -> Vec<f32> {
    match cut {
        Cut::Rows(len) => {
            let width = input.len() / len;
            input[start * width..end * width].to_vec()
        }
        Cut::Columns(len) => {
            let mut out = Vec::with_capacity(input.len() / len * (end - start));
            input.chunks_exact(len).for_each(|row| out.extend_from_slice(&row[start..end]));
            out
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

/// # Safety
/// Nobody else may use this block of the place meanwhile; `part` has its size.
unsafe fn put(cut: Cut, place: &Place, start: usize, end: usize, part: &[f32]) {
    let (first, step, run) = match cut {
        Cut::Rows(len) => (start * (place.len / len), part.len(), part.len()),
        Cut::Columns(len) => (start, len, end - start),
    };
    if run == 0 {
        return;
    }
    for (row, part) in part.chunks_exact(run).enumerate() {
        let at = first + row * step;
        assert!(at + run <= place.len, "a block past the end");
        // SAFETY: within the output, by the assertion; the caller vouches for the rest.
        unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), place.start.add(at), run) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_passes_once_and_comes_back_to_its_place() {
        for (rows, columns) in [(1, 1), (3, 5), (100, 1000), (2000, 37)] {
            let input: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            for cut in [Cut::Columns(columns), Cut::Rows(rows)] {
                let of_each: Vec<f32> = (0..cut.len()).map(|i| i as f32).collect();
                let (mut doubled, mut sums) = (vec![0.0; input.len()], vec![0.0; cut.len()]);
                for_each_block(cut, &[&input, &of_each], &mut [&mut doubled, &mut sums], |start, parts| {
                    let [part, of_each] = &parts[..] else { panic!("two inputs") };
                    assert_eq!(of_each[0], start as f32);
                    let sum = |i: usize| match cut {
                        Cut::Columns(_) => part.chunks(of_each.len()).map(|row| row[i]).sum::<f32>(),
                        Cut::Rows(_) => part.chunks(columns).nth(i).map_or(0.0, |row| row.iter().sum()),
                    };
                    vec![part.iter().map(|x| 2.0 * x).collect(), (0..of_each.len()).map(sum).collect()]
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
}
