//! What a finished run prints: the table of teacher, untrained and trained student.

use bitllama_runtime::evaluate::Perplexity;
use serde::{Deserialize, Serialize};

/// One row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// On the held-out documents.
    #[serde(flatten)]
    pub perplexity: Perplexity,
    /// Everything counted: scales, embedding, head.
    pub bits_per_weight: f64,
    /// Of all weights as stored.
    pub bytes: u64,
}

/// The result of `distill`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The model learned from.
    pub teacher: Row,
    /// The student before training: its start weights rounded to nearest.
    pub round_to_nearest: Row,
    /// The student after training, as exported.
    pub student: Row,
    /// Share of the gap in log-perplexity between round-to-nearest and teacher that training closed; `None` where there
    /// is no gap beyond the error of its figures.
    pub gap_closed: Option<f64>,
    /// Folder of the artifact.
    pub artifact: String,
}

impl Outcome {
    /// Puts the rows together.
    pub fn new(teacher: Row, round_to_nearest: Row, student: Row, artifact: String) -> Self {
        let [worst, reached, best] = [round_to_nearest, student, teacher].map(|row| row.perplexity.nll);
        let error = |row: Row| row.perplexity.error / row.perplexity.perplexity;
        let gap = worst - best;
        let gap_closed = (gap > error(teacher).hypot(error(round_to_nearest))).then(|| (worst - reached) / gap);
        Self { teacher, round_to_nearest, student, gap_closed, artifact }
    }

    /// Prints the table and what to do next.
    pub fn print(&self) {
        println!("\n{:<20} {:>22} {:>12} {:>14}", "", "perplexity", "bits/weight", "bytes");
        for (name, row) in [
            ("teacher", &self.teacher),
            ("round to nearest", &self.round_to_nearest),
            ("trained student", &self.student),
        ] {
            let perplexity = format!("{:.3} ± {:.3}", row.perplexity.perplexity, row.perplexity.error);
            println!("{name:<20} {perplexity:>22} {:>12.3} {:>14}", row.bits_per_weight, row.bytes);
        }
        if let Some(share) = self.gap_closed {
            println!(
                "\ntraining closed {:.1} % of the gap between round to nearest and teacher in log-perplexity",
                100.0 * share
            );
        }
        println!(
            "({} held-out tokens scored)\n\ngenerate text with it:\n  cargo run --release --bin bitllama -- \
             run --artifact {} --prompt \"It is a truth\" -n 64",
            self.student.perplexity.tokens_scored, self.artifact
        );
    }
}
