//! RMSNorm of queries and keys before their rotation, fused.

use bitllama_kernels::Isa;
use bitllama_kernels::training::buffer::written;
use bitllama_kernels::training::qk_norm::{self, Widths};
use burn::tensor::Tensor;

use crate::profile::operator;

use super::node::{Input, Numbers, record};

/// `qkv` (`[batch, seq, (heads + 2 * kv_heads) * head_dim]`, in each row queries, keys and values) with queries and keys divided
/// by their root mean square and multiplied with the `weights` of queries and keys. A weight of `[head_dim]` is that of each head
/// by itself, one of all heads' width that of all heads of a row together.
pub fn forward(
    qkv: Tensor<3>,
    weights: [Tensor<1>; 2],
    [heads, kv_heads, head_dim]: [usize; 3],
    eps: f64,
) -> Tensor<3> {
    let shape = qkv.dims();
    let (isa, eps) = (Isa::current(), eps as f32);
    let widths = Widths { q: heads * head_dim, kv: kv_heads * head_dim };
    assert_eq!(shape[2], widths.q + 2 * widths.kv, "qkv is no rows of {heads} heads and {kv_heads} of {head_dim}");
    let [q_weight, k_weight] = weights;
    let inputs = vec![Input::of(qkv), Input::of(q_weight), Input::of(k_weight)];
    let (qkv, q_weight, k_weight) = (inputs[0].numbers(), inputs[1].numbers(), inputs[2].numbers());
    let out = operator("qk_norm", || {
        written(qkv.len(), |out| qk_norm::forward(isa, widths, &qkv, [&q_weight, &k_weight], eps, out))
    });
    record("qk_norm", inputs, Numbers::new(out, shape), move |d_out, wanted| {
        let (mut d_q, mut d_k) = (vec![0.0; q_weight.len()], vec![0.0; k_weight.len()]);
        let d_qkv = written(qkv.len(), |d_qkv| {
            let weights = [&q_weight[..], &k_weight];
            qk_norm::backward(isa, widths, &qkv, weights, eps, &d_out, d_qkv, [&mut d_q, &mut d_k]);
        });
        vec![wanted.gradient(0, || d_qkv), wanted.gradient(1, || d_q), wanted.gradient(2, || d_k)]
    })
}

/// As [`forward`], composed out of Burn's operators.
pub fn composed(
    qkv: Tensor<3>,
    weights: [Tensor<1>; 2],
    [heads, kv_heads, head_dim]: [usize; 3],
    eps: f64,
) -> Tensor<3> {
    let [batch, seq, _] = qkv.dims();
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let [q_weight, k_weight] = weights;
    let normed = |start: usize, width: usize, weight: Tensor<1>| {
        let together = weight.dims()[0];
        let x = qkv.clone().narrow(2, start, width).reshape([batch, seq, width / together, together]);
        let rms = (x.clone().square().mean_dim(3) + eps).sqrt();
        (x / rms * weight.unsqueeze()).reshape([batch, seq, width])
    };
    let parts = vec![normed(0, q, q_weight), normed(q, kv, k_weight), qkv.clone().narrow(2, q + kv, kv)];
    Tensor::cat(parts, 2)
}
