//! Recorded operations as steps, which run one after the other for a chunk of numbers that fits into the nearest cache
//! with all that is computed from it.
//!
//! Loops are macros and inlined functions: a closure is compiled apart from the function around it, without that
//! function's instruction set.

use std::ops::Range;

use half::f16;

use super::{Numbers, Shape};
use crate::isa::Isa;
use crate::simd::{LANES, Simd, for_isa};
use crate::training::blocks::{Part, PartMut};

/// Numbers of a chunk, at most.
const CHUNK: usize = 256;

/// How many lines further a processor is asked to read: lines of a few numbers are too short for it to foresee the
/// next.
const AHEAD: usize = 2;

/// Numbers of a whole turn of a loop: four vectors of the widest kind.
const TURN: usize = 64;

/// What is computed from each number.
#[derive(Debug, Clone, Copy)]
pub enum Each {
    Abs,
    Scale(f32),
    Divide(f32),
    Shift(f32),
    OneWhereZero,
    Round,
    Clamp(f32, f32),
    Within(f32, f32),
    SignOrOne,
    RoundF16,
}

/// What is computed from two numbers.
#[derive(Debug, Clone, Copy)]
pub enum Pair {
    Divide,
    Multiply,
    Add,
    AtLeast,
    PutWhereAbove(f32, f32),
}

/// What is computed from the numbers of a row.
#[derive(Debug, Clone, Copy)]
pub enum Fold {
    Mean,
    Max,
    Min,
}

/// Where a step finds numbers.
#[derive(Debug, Clone, Copy)]
enum Operand<'p> {
    /// At the chunk's place.
    Matrix(Part<'p>),
    /// At the place of the chunk's rows.
    OfRows(Part<'p>),
    /// What a former step computed.
    Step(usize),
}

#[derive(Debug, Clone, Copy)]
enum Step<'p> {
    Each(Each, Operand<'p>),
    Pair(Pair, Operand<'p>, Operand<'p>),
    /// A row's number in the place of each of its numbers.
    Spread(&'p [f32]),
}

/// Steps, of which the last one computes the result.
#[derive(Debug)]
pub struct Program<'p> {
    steps: Vec<Step<'p>>,
    /// What steps read.
    read: Vec<Part<'p>>,
    result: Operand<'p>,
    shape: Shape,
    /// Whether rows lie in one piece each: all numbers are one line then.
    lying: bool,
}

/// A chunk: numbers of a line, and in which line of numbers of rows those of their rows are.
#[derive(Debug)]
struct Place {
    line: usize,
    row: usize,
    numbers: Range<usize>,
}

/// Takes numbers into as many sums. Sums are f64, as in the plain matrix of the core: a mean is then the same whatever
/// the order, up to one rounding.
macro_rules! gathered {
    (@ $sums:expr, $x:expr, |$sum:ident, $number:ident| $next:expr) => {
        for (sum, x) in $sums.iter_mut().zip($x) {
            let ($sum, $number) = (*sum, f64::from(*x));
            *sum = $next;
        }
    };
    ($fold:expr, $sums:expr, $x:expr) => {
        match $fold {
            Fold::Mean => gathered!(@ $sums, $x, |sum, x| sum + x),
            Fold::Max => gathered!(@ $sums, $x, |sum, x| if x > sum { x } else { sum }),
            Fold::Min => gathered!(@ $sums, $x, |sum, x| if x < sum { x } else { sum }),
        }
    };
}

/// Takes lines of as many numbers into an array of sums, which are in registers meanwhile.
macro_rules! summed {
    (@ $sums:expr, $lines:expr, |$sum:ident, $number:ident| $next:expr) => {{
        let mut sums = $sums;
        for line in $lines {
            let mut next = sums;
            for i in 0..LANES {
                let ($sum, $number) = (sums[i], f64::from(line[i]));
                next[i] = $next;
            }
            sums = next;
        }
        sums
    }};
    ($fold:expr, $sums:expr, $lines:expr) => {
        match $fold {
            Fold::Mean => summed!(@ $sums, $lines, |sum, x| sum + x),
            Fold::Max => summed!(@ $sums, $lines, |sum, x| if x > sum { x } else { sum }),
            Fold::Min => summed!(@ $sums, $lines, |sum, x| if x < sum { x } else { sum }),
        }
    };
}

/// One of an array of sums, in pairs.
macro_rules! joined {
    ($fold:expr, $sums:expr) => {{
        let mut sums = $sums;
        let mut half = LANES / 2;
        while half > 0 {
            let (first, second) = sums.split_at_mut(half);
            gathered!($fold, first, &second[..half]);
            half /= 2;
        }
        sums[0]
    }};
}

/// What steps have computed of a chunk.
type Registers = [[f32; CHUNK]];

/// Operands of numbers that a program already has; of numbers of rows, whether they are spread.
type Known<'p> = Vec<((*const Numbers<'p>, bool), Operand<'p>)>;

impl<'p> Program<'p> {
    /// The steps that compute `numbers`; `whole` if their place, where they have one, lies in one piece.
    pub fn of(numbers: &'p Numbers<'p>, shape: Shape, whole: bool) -> Self {
        let lying = whole && shape.inner == 1 && in_one_piece(numbers);
        let mut program = Program { steps: Vec::new(), read: Vec::new(), result: Operand::Step(0), shape, lying };
        program.result = program.add(numbers, &mut Vec::new());
        program
    }

    fn add(&mut self, numbers: &'p Numbers<'p>, known: &mut Known<'p>) -> Operand<'p> {
        let key = (std::ptr::from_ref(numbers), false);
        if let Some((_, operand)) = known.iter().find(|(known, _)| *known == key) {
            return *operand;
        }
        let step = match numbers {
            Numbers::Given(_) | Numbers::Computed(_) => {
                let part = self.part(numbers);
                self.read.push(part);
                known.push((key, Operand::Matrix(part)));
                return Operand::Matrix(part);
            }
            Numbers::Each(operation, x) => Step::Each(*operation, self.add(x, known)),
            Numbers::Pair(operation, x, y) => Step::Pair(*operation, self.add(x, known), self.add(y, known)),
            Numbers::OfRows(operation, x, rows) => {
                Step::Pair(*operation, self.add(x, known), self.of_rows(rows, known))
            }
        };
        self.push(step, key, known)
    }

    fn of_rows(&mut self, rows: &'p Numbers<'p>, known: &mut Known<'p>) -> Operand<'p> {
        let part = self.part(rows);
        if !self.lying {
            return Operand::OfRows(part);
        }
        let key = (std::ptr::from_ref(rows), true);
        match known.iter().find(|(known, _)| *known == key) {
            Some((_, operand)) => *operand,
            None => self.push(Step::Spread(part.line(0)), key, known),
        }
    }

    fn push(&mut self, step: Step<'p>, key: (*const Numbers<'p>, bool), known: &mut Known<'p>) -> Operand<'p> {
        let operand = Operand::Step(self.steps.len());
        self.steps.push(step);
        known.push((key, operand));
        operand
    }

    /// Numbers that are there.
    fn part(&self, numbers: &'p Numbers<'p>) -> Part<'p> {
        let part = match numbers {
            Numbers::Given(part) => *part,
            Numbers::Computed(data) => Part::whole(data, self.shape.inner),
            _ => unreachable!("numbers of rows are computed at once"),
        };
        let flat = if self.lying { part.flat() } else { None };
        flat.unwrap_or(part)
    }

    /// Lines, and numbers of each.
    fn lines(&self) -> (usize, usize) {
        let Shape { outer, n, inner } = self.shape;
        if self.lying { (1, outer * n) } else { (outer * n, inner) }
    }

    /// The chunk that starts at a number of a line. It has whole rows, or lies within one.
    fn place(&self, line: usize, start: usize) -> Place {
        let Shape { n, inner, .. } = self.shape;
        let whole = if self.lying { n } else { inner };
        let even = whole.div_ceil(whole.div_ceil(CHUNK)).next_multiple_of(TURN).min(CHUNK);
        let end = match self.lying && n <= CHUNK {
            true => start + CHUNK / n * n,
            false => (start + even).min((start / whole + 1) * whole),
        };
        Place { line, row: line / n, numbers: start..end.min(self.lines().1) }
    }

    fn registers(&self) -> Vec<[f32; CHUNK]> {
        vec![[0.0; CHUNK]; self.steps.len()]
    }

    /// Computes all numbers into `out`.
    pub fn write(&self, isa: Isa, out: &mut PartMut<'_>) {
        let (lines, width) = self.lines();
        let (program, registers, out) = (self, &mut self.registers()[..], &mut out.reshaped(lines, width));
        for_isa!(isa, write(program: &Program<'_>, registers: &mut Registers, out: &mut PartMut<'_>));
    }

    /// One number of each row.
    pub fn fold(&self, isa: Isa, fold: Fold) -> Vec<f32> {
        let Shape { outer, inner, .. } = self.shape;
        let mut numbers = vec![0.0; outer * inner];
        let (program, registers, out) = (self, &mut self.registers()[..], &mut numbers[..]);
        for_isa!(isa, fold_all(program: &Program<'_>, fold: Fold, registers: &mut Registers, out: &mut [f32]));
        numbers
    }
}

fn in_one_piece(numbers: &Numbers<'_>) -> bool {
    match numbers {
        Numbers::Given(part) => part.flat().is_some(),
        Numbers::Computed(_) => true,
        Numbers::Each(_, x) => in_one_piece(x),
        Numbers::Pair(_, x, y) | Numbers::OfRows(_, x, y) => in_one_piece(x) && in_one_piece(y),
    }
}

#[inline(always)]
fn write<S: Simd>(s: S, program: &Program<'_>, registers: &mut Registers, out: &mut PartMut<'_>) {
    let (lines, width) = program.lines();
    for line in 0..lines {
        let mut start = 0;
        while start < width {
            let place = program.place(line, start);
            start = place.numbers.end;
            if line + AHEAD < lines {
                ask(s, &out.line(line + AHEAD)[place.numbers.clone()]);
            }
            let out = &mut out.line(line)[place.numbers.clone()];
            match program.steps.len() {
                0 => out.copy_from_slice(found(program.result, &place, registers)),
                _ => run(s, program, &place, registers, Some(out)),
            }
        }
    }
}

#[inline(always)]
fn fold_all<S: Simd>(s: S, program: &Program<'_>, fold: Fold, registers: &mut Registers, out: &mut [f32]) {
    if program.lying {
        fold_lying(s, program, fold, registers, out);
    } else {
        fold_standing(s, program, fold, registers, out);
    }
}

/// Rows that stand side by side: a sum for each column of a line.
#[inline(always)]
fn fold_standing<S: Simd>(s: S, program: &Program<'_>, fold: Fold, registers: &mut Registers, out: &mut [f32]) {
    let (lines, width) = program.lines();
    let n = program.shape.n;
    let mut sums = vec![fold.start(); width];
    for line in 0..lines {
        let mut start = 0;
        while start < width {
            let place = program.place(line, start);
            start = place.numbers.end;
            run(s, program, &place, registers, None);
            let x = found(program.result, &place, registers);
            gathered!(fold, &mut sums[place.numbers], x);
        }
        if line % n == n - 1 {
            for (out, sum) in out[line / n * width..].iter_mut().zip(&mut sums) {
                *out = fold.end(*sum, n);
                *sum = fold.start();
            }
        }
    }
}

/// Rows that lie in one piece: [`LANES`] sums for each.
#[inline(always)]
fn fold_lying<S: Simd>(s: S, program: &Program<'_>, fold: Fold, registers: &mut Registers, out: &mut [f32]) {
    let width = program.lines().1;
    let n = program.shape.n;
    let mut sums = [fold.start(); LANES];
    let mut start = 0;
    while start < width {
        let place = program.place(0, start);
        run(s, program, &place, registers, None);
        for row in found(program.result, &place, registers).chunks(n) {
            let (whole, rest) = row.as_chunks::<LANES>();
            sums = summed!(fold, sums, whole);
            gathered!(fold, sums, rest);
            start += row.len();
            if start.is_multiple_of(n) {
                out[start / n - 1] = fold.end(joined!(fold, sums), n);
                sums = [fold.start(); LANES];
            }
        }
    }
}

impl Fold {
    #[inline(always)]
    fn start(self) -> f64 {
        match self {
            Fold::Mean => 0.0,
            Fold::Max => f64::NEG_INFINITY,
            Fold::Min => f64::INFINITY,
        }
    }

    #[inline(always)]
    fn end(self, sum: f64, n: usize) -> f32 {
        match self {
            Fold::Mean => (sum / n as f64) as f32,
            Fold::Max | Fold::Min => sum as f32,
        }
    }
}

/// Runs all steps for a chunk, the last of them into `last` if it is given.
#[inline(always)]
fn run<S: Simd>(s: S, program: &Program<'_>, place: &Place, registers: &mut Registers, mut last: Option<&mut [f32]>) {
    let len = place.numbers.len();
    for part in &program.read {
        if place.line + AHEAD < part.lines() {
            ask(s, &part.line(place.line + AHEAD)[place.numbers.clone()]);
        }
    }
    for (i, step) in program.steps.iter().enumerate() {
        let (before, after) = registers.split_at_mut(i);
        let out = match &mut last {
            Some(last) if i + 1 == program.steps.len() => last,
            _ => &mut after[0][..len],
        };
        match *step {
            Step::Each(operation, x) => each(operation, found(x, place, before), out),
            Step::Pair(operation, x, y) => pair(operation, found(x, place, before), found(y, place, before), out),
            Step::Spread(numbers) => spread(&numbers[place.numbers.start / program.shape.n..], program.shape.n, out),
        }
    }
}

/// Asks for numbers that will be read or written soon.
#[inline(always)]
fn ask<S: Simd>(s: S, numbers: &[f32]) {
    for line in numbers.chunks(LANES) {
        s.prefetch(line.as_ptr());
    }
}

#[inline(always)]
fn found<'x>(operand: Operand<'x>, place: &Place, registers: &'x Registers) -> &'x [f32] {
    match operand {
        Operand::Matrix(part) => &part.line(place.line)[place.numbers.clone()],
        Operand::OfRows(part) => &part.line(place.row)[place.numbers.clone()],
        Operand::Step(i) => &registers[i][..place.numbers.len()],
    }
}

#[inline(always)]
fn spread(numbers: &[f32], n: usize, out: &mut [f32]) {
    for (out, number) in out.chunks_mut(n).zip(numbers) {
        out.fill(*number);
    }
}

macro_rules! computed {
    ($x:ident, $out:ident, |$a:ident| $result:expr) => {
        for (out, x) in $out.iter_mut().zip($x) {
            let $a = *x;
            *out = $result;
        }
    };
    ($x:ident, $y:ident, $out:ident, |$a:ident, $b:ident| $result:expr) => {
        for ((out, x), y) in $out.iter_mut().zip($x).zip($y) {
            let ($a, $b) = (*x, *y);
            *out = $result;
        }
    };
}

#[inline(always)]
fn each(operation: Each, x: &[f32], out: &mut [f32]) {
    match operation {
        Each::Abs => computed!(x, out, |x| x.abs()),
        Each::Scale(factor) => computed!(x, out, |x| x * factor),
        Each::Divide(divisor) => computed!(x, out, |x| x / divisor),
        Each::Shift(term) => computed!(x, out, |x| x + term),
        Each::OneWhereZero => computed!(x, out, |x| if x == 0.0 { 1.0 } else { x }),
        Each::Round => computed!(x, out, |x| x.round_ties_even()),
        // What is no number stays none.
        Each::Clamp(low, high) => computed!(x, out, |x| if x < low {
            low
        } else if x > high {
            high
        } else {
            x
        }),
        Each::Within(low, high) => computed!(x, out, |x| if x >= low && x <= high { 1.0 } else { 0.0 }),
        Each::SignOrOne => computed!(x, out, |x| if x >= 0.0 { 1.0 } else { -1.0 }),
        Each::RoundF16 => computed!(x, out, |x| f16::from_f32(x).to_f32()),
    }
}

#[inline(always)]
fn pair(operation: Pair, x: &[f32], y: &[f32], out: &mut [f32]) {
    match operation {
        Pair::Divide => computed!(x, y, out, |x, y| x / y),
        Pair::Multiply => computed!(x, y, out, |x, y| x * y),
        Pair::Add => computed!(x, y, out, |x, y| x + y),
        Pair::AtLeast => computed!(x, y, out, |x, y| if x >= y { 1.0 } else { 0.0 }),
        Pair::PutWhereAbove(bound, value) => computed!(x, y, out, |x, y| if y > bound { value } else { x }),
    }
}
