//! Matrix products, shared out over threads: `out = x * weight^T` for several weights and one `x` at a time.

use std::ops::Range;

use bitllama_core::Activation;
use bitllama_core::panel::PANEL_ROWS;

use crate::out::Out;
use crate::packed::float::float_panels;
use crate::packed::integer::integer_panels;
use crate::packed::xnor::sign_panels;
use crate::pool::Pool;
use crate::{Activations, Isa, Matrix, Signs, batch, full, stored};

/// How a kernel sees the activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// In 8 bits with a scale a token and outliers apart ([`Activations`]).
    Int8,
    /// One bit each with a scale a token ([`Signs`]) where the weight is binary, else as `Int8`.
    Sign,
}

impl Precision {
    /// Every precision, the most exact first.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Int8, Precision::Sign];

    /// The name that flags and manifests use.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Int8 => "int8",
            Precision::Sign => "sign",
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = Self::ALL.map(|precision| format!("`{precision}`")).join(", ");
        let known = Self::ALL.into_iter().find(|precision| precision.name() == name);
        known.ok_or_else(|| format!("unknown activation precision `{name}`, expected one of {names}"))
    }
}

/// Rows of activations in the form that products read. Its memory is used again by [`Input::set`].
#[derive(Debug, Clone)]
pub struct Input {
    isa: Isa,
    precision: Precision,
    /// Whether weights that were trained with rounded inputs get them so.
    as_trained: bool,
    columns: usize,
    x: Vec<f32>,
    int8: Activations,
    /// In the order of [`Activation::ALL`].
    rounded: [Activations; 3],
    signs: Signs,
}

/// What a product reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Floats,
    /// With outliers apart.
    Int8,
    /// As in training.
    Rounded(Activation),
    Signs,
}

impl Input {
    /// An input without rows.
    pub fn new(isa: Isa, precision: Precision) -> Self {
        let (int8, rounded, signs) = Default::default();
        Self { isa, precision, as_trained: false, columns: 1, x: Vec::new(), int8, rounded, signs }
    }

    /// The input, with what weights say of their training above the precision
    /// ([`Weight::with_activation`]).
    pub fn trained(self) -> Self {
        Self { as_trained: true, ..self }
    }

    /// Takes the rows of `x` (`[n, columns]`), to be multiplied with `weights`: rounds them once, in as many forms as
    /// those need.
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub fn set(&mut self, pool: &Pool, x: &[f32], columns: usize, weights: &[&Matrix]) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} activations are no rows of {columns}", x.len());
        self.columns = columns;
        let forms: Vec<Form> = weights.iter().map(|matrix| self.form_of(matrix)).collect();
        self.x.clear();
        if forms.contains(&Form::Floats) {
            self.x.extend_from_slice(x);
        }
        if forms.contains(&Form::Int8) {
            self.int8.set(pool, self.isa, x, columns);
        }
        for (activation, rounded) in Activation::ALL.into_iter().zip(&mut self.rounded) {
            if forms.contains(&Form::Rounded(activation)) {
                rounded.set_as(pool, self.isa, activation, x, columns);
            }
        }
        if forms.contains(&Form::Signs) {
            self.signs.set(x, columns);
        }
    }

    /// The form of activations that a product with `matrix` reads.
    fn form_of(&self, matrix: &Matrix) -> Form {
        let Matrix::Packed(weight) = matrix else { return Form::Floats };
        let binary = weight.is_binary();
        match (weight.activation().filter(|_| self.as_trained), self.precision) {
            (Some(Activation::Sign), _) if binary => Form::Signs,
            (Some(activation), _) => Form::Rounded(activation),
            (None, Precision::F32) => Form::Floats,
            (None, Precision::Sign) if binary => Form::Signs,
            (None, Precision::Int8 | Precision::Sign) => Form::Int8,
        }
    }

    /// Rows rounded as `activation` says.
    fn rounded(&self, activation: Activation) -> &Activations {
        &self.rounded[activation as usize]
    }
}

impl Input {
    /// Takes signs that are packed already, for binary weights only.
    pub fn set_signs(&mut self, signs: Signs) {
        (self.precision, self.columns, self.signs) = (Precision::Sign, signs.columns(), signs);
    }
}

/// `out = x * weight^T` for each job, a weight `[out_features, in_features]` with its `out` (`[n, out_features]`), in one
/// phase of the pool. An element is always summed by one thread in one order, so results do not depend on their number.
///
/// # Panics
/// If `input` was not [set](Input::set) for these weights, or an `out` has another shape.
pub fn products(pool: &Pool, input: &Input, jobs: &mut [(&Matrix, &mut [f32])]) {
    let plan: Vec<Job> = jobs
        .iter_mut()
        .map(|(matrix, out)| {
            assert_eq!(matrix.columns(), input.columns, "the weight has other in_features than the activations");
            let form = input.form_of(matrix);
            let of_activations = |x: &Activations| (x.len(), x.tiles().len() <= 1);
            let (n, reads_once) = match form {
                Form::Floats => (input.x.len() / input.columns, input.x.len() <= input.columns),
                Form::Int8 => of_activations(&input.int8),
                Form::Rounded(activation) => of_activations(input.rounded(activation)),
                Form::Signs => (input.signs.len(), true),
            };
            assert!(n > 0 || out.is_empty(), "the input was not set for this weight");
            assert_eq!(out.len(), n * matrix.rows(), "out is not {n} rows of {}", matrix.rows());
            let unit = unit_rows(matrix, form, n);
            let units = matrix.rows().div_ceil(unit);
            let bytes = match &**matrix {
                Matrix::Stored(stored) => stored.rows() * stored.columns() * size_of::<f32>(),
                other => other.bytes(),
            };
            let out = Out::new(out, matrix.rows());
            Job { matrix, form, n, reads_once, out, unit, units, work: bytes * n.div_ceil(4) }
        })
        .collect();
    let tasks = tasks(&plan, pool.threads());
    pool.for_each(tasks.len(), |task| {
        let (job, units) = &tasks[task];
        // SAFETY: tasks are given different rows, and `out` has the shape that was checked above.
        unsafe { plan[*job].run(input, units.clone()) }
    });
}

/// Indices of jobs with units of them: of some microseconds each, and enough at the end that a slow thread holds up little.
///
/// The processor asks for bytes ahead of a thread that reads on and on, and reads too much where a task ends. So with few tokens,
/// which read the weights once, the first tasks are large. With many tokens tasks fit into the caches, since every tile of tokens
/// reads the weights of its task again.
fn tasks(plan: &[Job], threads: usize) -> Vec<(usize, Range<usize>)> {
    let mut tasks = Vec::new();
    let mut rest: usize = plan.iter().map(|job| job.work).sum();
    for (index, job) in plan.iter().enumerate() {
        let smallest = (job.work / (threads * SMALL_TASKS_A_THREAD)).max(MIN_WORK);
        let mut first = 0;
        while first < job.units {
            let work = if job.reads_once { smallest.max(rest / (threads * LARGE_TASKS_A_THREAD)) } else { smallest };
            let units = (work * job.units / job.work.max(1)).clamp(1, job.units - first);
            tasks.push((index, first..first + units));
            first += units;
            rest = rest.saturating_sub(units * job.work / job.units);
        }
    }
    tasks
}

/// Bytes of weights, times a quarter of the tokens, that are worth a task.
const MIN_WORK: usize = 1 << 15;
/// Tasks of the smallest size that a matrix has per thread.
const SMALL_TASKS_A_THREAD: usize = 16;
/// Tasks per thread that what is left would have, where tokens are few.
const LARGE_TASKS_A_THREAD: usize = 2;
/// Rows of a weight that is not packed that a batch multiplies at a time.
const FULL_ROWS: usize = 64;

/// Rows that cannot be shared out over tasks.
fn unit_rows(matrix: &Matrix, form: Form, n: usize) -> usize {
    match (matrix, form) {
        (Matrix::Packed(_), Form::Floats) if n >= batch::FROM => batch::PANELS * PANEL_ROWS,
        (Matrix::Packed(_), _) => PANEL_ROWS,
        (Matrix::Full(_) | Matrix::Stored(_), _) if n >= batch::FROM => FULL_ROWS,
        (Matrix::Full(_) | Matrix::Stored(_), _) => 4,
    }
}

struct Job<'a> {
    matrix: &'a Matrix,
    form: Form,
    n: usize,
    out: Out,
    /// Rows.
    unit: usize,
    units: usize,
    /// Whether all tokens together read the weights once.
    reads_once: bool,
    /// Bytes of weights times a quarter of the tokens.
    work: usize,
}

impl Job<'_> {
    /// Multiplies the rows of some units.
    ///
    /// # Safety
    /// `out` is `[n, rows]`, and nobody else writes the columns of these rows.
    unsafe fn run(&self, input: &Input, units: Range<usize>) {
        let rows = units.start * self.unit..(units.end * self.unit).min(self.matrix.rows());
        // SAFETY: as promised by the caller; the instruction set of an input is available.
        unsafe {
            match (self.matrix, self.form) {
                (Matrix::Full(full), _) if self.n >= batch::FROM => {
                    let tile = &full.data[rows.start * full.columns..rows.end * full.columns];
                    batch::gemm_rows(&input.x, full.columns, tile, self.out.at(0, rows.start), rows.len());
                }
                (Matrix::Full(full), _) => {
                    let tile = &full.data[rows.start * full.columns..rows.end * full.columns];
                    full::rows(input.isa, tile, &input.x, full.columns, self.out.at(0, rows.start));
                }
                (Matrix::Stored(stored), _) => stored::rows(input.isa, &**stored, rows, &input.x, self.out),
                (Matrix::Packed(weight), Form::Floats) if self.n >= batch::FROM => {
                    batch::packed(input.isa, weight, rows, &input.x, self.out);
                }
                (Matrix::Packed(weight), Form::Floats) => {
                    for (token, x) in input.x.chunks_exact(input.columns).enumerate() {
                        float_panels(input.isa, weight, panels(&rows), x, self.out.at(token, 0));
                    }
                }
                (Matrix::Packed(weight), Form::Int8) => {
                    integer_panels(weight, panels(&rows), &input.int8, self.out);
                }
                (Matrix::Packed(weight), Form::Rounded(activation)) => {
                    integer_panels(weight, panels(&rows), input.rounded(activation), self.out);
                }
                (Matrix::Packed(weight), Form::Signs) => {
                    sign_panels(input.isa, weight, panels(&rows), &input.signs, self.out);
                }
            }
        }
    }
}

fn panels(rows: &Range<usize>) -> Range<usize> {
    rows.start / PANEL_ROWS..rows.end.div_ceil(PANEL_ROWS)
}
