//! `[distill]`: the losses.

use serde::{Deserialize, Serialize};

/// `[distill]`: `loss = alpha * CE + (1 - alpha) * T^2 * D(teacher, student)` (Hinton et al. 2015,
/// <https://arxiv.org/abs/1503.02531>), where D is a divergence, by default KL(teacher || student).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Distill {
    /// Share of the cross-entropy, 0 to 1. At 1 the teacher is not run in training.
    pub alpha: f64,
    /// T: both distributions are softened by it.
    pub temperature: f64,
    /// `forward_kl`, `reverse_kl` or `jsd`.
    pub loss: Loss,
    /// Of `jsd`: the teacher's share of the mixture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Compare the teacher's likeliest tokens only, so many of them, and the mass of all others as one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Learn from the teacher's hidden states too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<Hidden>,
    /// Learn from the relations between the teacher's queries, keys and values too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relations: Option<Relations>,
}

/// `[distill.hidden]`: what blocks give, against what the teacher's give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hidden {
    /// Factor of the term in the loss. The term itself is relative: about 1 where nothing of the teacher's states is met.
    pub weight: f64,
    /// `mse`, relative to the mean square of the teacher's state, or `cosine` (1 - cosine).
    #[serde(default)]
    pub loss: HiddenLoss,
    /// Pairs of a student's and a teacher's block, counted from 0; all of the student's evenly over the teacher's if absent.
    /// Where the widths differ, a matrix from the student's to the teacher's is trained beside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<[usize; 2]>>,
}

/// How hidden states are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenLoss {
    /// Mean squared error over the teacher's mean square.
    #[default]
    Mse,
    /// 1 - cosine similarity.
    Cosine,
}

/// `[distill.relations]`: MiniLMv2's self-attention relations (<https://arxiv.org/abs/2012.15828>): for queries, keys and
/// values, which positions resemble which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relations {
    /// Factor of the term in the loss. The term is in nats a position, the mean over heads and over the three relations.
    pub weight: f64,
    /// Relation heads that queries, keys and values are cut into; if absent as many as divide the widths of both models, at
    /// most the student's key and value heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Pairs of a student's and a teacher's block; the last of both if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<[usize; 2]>>,
}

/// The divergence by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// KL(teacher || student).
    #[default]
    ForwardKl,
    /// KL(student || teacher) (MiniLLM, <https://arxiv.org/abs/2306.08543>).
    ReverseKl,
    /// Generalized Jensen-Shannon divergence (GKD, <https://arxiv.org/abs/2306.13649>).
    Jsd,
}

/// A divergence with its constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// KL(teacher || student).
    ForwardKl,
    /// KL(student || teacher).
    ReverseKl,
    /// `beta KL(teacher || m) + (1 - beta) KL(student || m)` with `m = beta teacher + (1 - beta) student`.
    Jsd {
        /// Between 0 and 1.
        beta: f64,
    },
}

impl Distill {
    /// Whether the loss looks at the teacher at all; the cross-entropy alone does not.
    pub fn needs_teacher(&self) -> bool {
        self.alpha < 1.0 || self.hidden.is_some() || self.relations.is_some()
    }

    /// The divergence that `loss` and `beta` name.
    pub fn divergence(&self) -> Divergence {
        match self.loss {
            Loss::ForwardKl => Divergence::ForwardKl,
            Loss::ReverseKl => Divergence::ReverseKl,
            Loss::Jsd => Divergence::Jsd { beta: self.beta.unwrap_or(0.5) },
        }
    }
}

impl Default for Distill {
    fn default() -> Self {
        Self {
            alpha: 0.0,
            temperature: 1.0,
            loss: Loss::default(),
            beta: None,
            top_k: None,
            hidden: None,
            relations: None,
        }
    }
}
