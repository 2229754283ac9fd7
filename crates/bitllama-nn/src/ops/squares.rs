//! Sums of squares, fused.

use bitllama_kernels::Isa;
use bitllama_kernels::training::squares;
use burn::tensor::{Tensor, TensorData};

use super::fused;
use super::node::Input;

/// The sum of the squares of a tensor without autodiff, a scalar of shape `[1]`.
pub fn sum_of_squares<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let device = tensor.device();
    if !fused(&device) {
        return tensor.square().sum();
    }
    let sum = squares::sum_of_squares(Isa::current(), &Input::of(tensor).numbers());
    Tensor::from_data(TensorData::new(vec![sum as f32], [1]), &device)
}
