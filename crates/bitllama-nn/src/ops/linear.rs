//! Matrix products and biases of a linear layer, of several at once where they share an input: their outputs lie side by side,
//! and the gradients to the input are summed where they arise.

use bitllama_kernels::Isa;
use bitllama_kernels::gemm::{Precision, View, gemm, gemm_codes};
use bitllama_kernels::training::bias;
use bitllama_kernels::training::buffer::written;
use burn::tensor::Tensor;

use crate::profile::operator;

use super::node::{Factor, Input, Numbers, record};

/// `x * weight + bias` for `x` (`[batch, seq, d_in]`) and each of `weights` (`[d_in, d_out]`) with its bias (`[d_out]`), if it has
/// one, side by side: `[batch, seq, sum of d_out]`. `precision` is that of the factors, forward and backward; sums are f32. With
/// `int8_forward`, `x` has 8 bits per token, and products with weights that are ternary or binary are computed in whole numbers.
///
/// # Panics
/// If shapes disagree, or there are more than eight tensors in all.
pub fn forward<const N: usize>(
    x: Tensor<3>,
    weights: [Tensor<2>; N],
    biases: [Option<Tensor<1>>; N],
    precision: Precision,
    int8_forward: bool,
) -> Tensor<3> {
    let ([batch, seq, d_in], isa) = (x.dims(), Isa::current());
    let tokens = batch * seq;
    let widths = weights.each_ref().map(|weight| weight.dims()[1]);
    let all: usize = widths.iter().sum();
    let mut inputs: Vec<Input> = std::iter::once(Input::of(x)).chain(weights.into_iter().map(Input::of)).collect();
    let x = inputs[0].numbers();
    let weights: Vec<Factor> = inputs[1..].iter().map(Input::factor).collect();
    // Those that there are, each with the number of its layer.
    let biases: Vec<(usize, Numbers)> = (biases.into_iter().enumerate())
        .filter_map(|(layer, bias)| Some((layer, Input::of(bias?))))
        .map(|(layer, bias)| {
            let numbers = bias.numbers();
            assert_eq!(numbers.len(), widths[layer], "a bias of another width than its layer's");
            inputs.push(bias);
            (layer, numbers)
        })
        .collect();
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
            for (layer, bias) in &biases {
                let start: usize = widths[..*layer].iter().sum();
                bias::forward(isa, bias, &mut out[start..], all);
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
        let d_biases = biases.iter().enumerate().map(|(index, (layer, _))| {
            let (start, width) = (widths[..*layer].iter().sum::<usize>(), widths[*layer]);
            wanted
                .gradient(1 + N + index, || written(width, |d_bias| bias::backward(isa, &d_out[start..], all, d_bias)))
        });
        std::iter::once(d_x).chain(d_weights).chain(d_biases).collect()
    })
}

/// `out` (`[batch, seq, d_out]`) plus a layer's bias (`[d_out]`), if it has one: what [`forward`] adds, by Burn's operators.
pub fn composed_bias(out: Tensor<3>, bias: Option<Tensor<1>>) -> Tensor<3> {
    match bias {
        Some(bias) => out + bias.unsqueeze(),
        None => out,
    }
}
