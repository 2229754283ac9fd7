//! Matrix products of a linear layer, of several at once where they share an input: their outputs lie side by side, and the
//! gradients to the input are summed where they arise.

use bitllama_kernels::Isa;
use bitllama_kernels::gemm::{Precision, View, gemm, gemm_codes};
use bitllama_kernels::training::buffer::written;
use burn::tensor::Tensor;

use crate::profile::operator;

use super::node::{Factor, Input, Numbers, record};

/// `x * weight` for `x` (`[batch, seq, d_in]`) and each of `weights` (`[d_in, d_out]`), side by side: `[batch, seq, sum of
/// d_out]`. `precision` is that of the factors, forward and backward; sums are f32. With `int8_forward`, `x` has 8 bits a token, and
/// products with weights that are ternary or binary are computed in whole numbers.
pub fn forward<const N: usize>(
    x: Tensor<3>,
    weights: [Tensor<2>; N],
    precision: Precision,
    int8_forward: bool,
) -> Tensor<3> {
    let ([batch, seq, d_in], isa) = (x.dims(), Isa::current());
    let tokens = batch * seq;
    let widths = weights.each_ref().map(|weight| weight.dims()[1]);
    let all: usize = widths.iter().sum();
    let inputs: Vec<Input> = std::iter::once(Input::of(x)).chain(weights.into_iter().map(Input::of)).collect();
    let x = inputs[0].numbers();
    let weights: Vec<Factor> = inputs[1..].iter().map(Input::factor).collect();
    let starts = move || {
        widths.into_iter().scan(0, |end, width| {
            *end += width;
            Some((*end - width, width))
        })
    };
    let out = operator("linear", || {
        written(tokens * all, |out| {
            for (weight, (start, width)) in weights.iter().zip(starts()) {
                let out = &mut out[start..];
                match weight {
                    Factor::Wide(weight)
                        if int8_forward && gemm_codes(isa, [tokens, d_in, width], &x, weight, out, all) => {}
                    weight => {
                        let x = View::row_major(&x[..], [tokens, d_in]);
                        let weight = View::row_major(weight.elements(), [d_in, width]);
                        gemm(isa, precision, x, weight, out, all, false);
                    }
                }
            }
        })
    });
    record("linear", inputs, Numbers::new(out, [batch, seq, all]), move |d_out, wanted| {
        let d_outs = || starts().map(|(start, width)| View::strided(&d_out[start..], [tokens, width], [all, 1]));
        let d_x = wanted.gradient(0, || {
            written(tokens * d_in, |d_x| {
                for (index, (weight, d_out)) in weights.iter().zip(d_outs()).enumerate() {
                    let weight = View::row_major(weight.elements(), [d_in, d_out.columns()]);
                    gemm(isa, precision, d_out, weight.transposed(), d_x, d_in, index > 0);
                }
            })
        });
        let d_weights = d_outs().enumerate().map(|(index, d_out)| {
            wanted.gradient(index + 1, || {
                written(d_in * d_out.columns(), |d_weight| {
                    let x = View::row_major(&x[..], [tokens, d_in]);
                    gemm(isa, precision, x.transposed(), d_out, d_weight, d_out.columns(), false);
                })
            })
        });
        std::iter::once(d_x).chain(d_weights).collect()
    })
}
