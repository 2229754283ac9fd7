//! Rotary embedding and causal grouped-query attention, fused: the matrix of scores is never stored.

use bitllama_kernels::Isa;
use bitllama_kernels::training::attention::{self, Shape};
use bitllama_kernels::training::buffer::written;
use burn::tensor::Tensor;

use super::node::{Input, Numbers, record};
use crate::mask::Mask;
use crate::profile::operator;
use crate::rotary::Rotary;

/// Attention of `heads` queries over `kv_heads` keys and values, `[batch, seq, heads * head_dim]`, for `qkv`
/// (`[batch, seq, (heads + 2 * kv_heads) * head_dim]`): in each row queries, keys and values, not yet rotated.
pub fn forward(qkv: Tensor<3>, rotary: &Rotary, mask: &Mask, [heads, kv_heads, head_dim]: [usize; 3]) -> Tensor<3> {
    let [batch, seq, _] = qkv.dims();
    let shape = Shape { batch, seq, heads, kv_heads, head_dim };
    let isa = Isa::current();
    let (tables, first) = (rotary.tables().clone(), mask.first().clone());
    let inputs = vec![Input::of(qkv)];
    let qkv = inputs[0].numbers();
    let mut log_sum_exp = vec![0.0; batch * heads * seq];
    let out = operator("attention", || {
        written(batch * seq * heads * head_dim, |out| {
            attention::forward(isa, &shape, &qkv, &tables.0, &tables.1, &first, out, &mut log_sum_exp);
        })
    });
    let out = Numbers::new(out, [batch, seq, heads * head_dim]);
    record("attention", inputs, out.clone(), move |d_out, wanted| {
        let backward = || {
            written(qkv.len(), |d_qkv| {
                let (cos, sin) = (&tables.0, &tables.1);
                attention::backward(isa, &shape, &qkv, cos, sin, &first, &out, &log_sum_exp, &d_out, d_qkv);
            })
        };
        vec![wanted.gradient(0, backward)]
    })
}
