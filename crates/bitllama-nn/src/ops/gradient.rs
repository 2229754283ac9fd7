//! A gradient that is known already, to be followed back from there: where a graph has been cut, its part before the cut goes on
//! from what its part behind gave.

use burn::tensor::Tensor;

use super::fused;
use super::node::{Input, Numbers, record};

/// A scalar of shape `[1]` whose gradient to `x` (tracked) is `d_x` (of the same shape, not tracked). Its value is of no use.
pub fn known<const D: usize>(x: Tensor<D>, d_x: Tensor<D>) -> Tensor<1> {
    if !fused(&x.device()) {
        return (x * Tensor::from_inner(d_x)).sum();
    }
    let d_x = Input::of(d_x).numbers();
    record("gradient", vec![Input::of(x)], Numbers::new(vec![0.0], [1]), move |d_out, _| {
        assert_eq!(d_out[0], 1.0, "what is followed back is this scalar, or a sum that it is a term of");
        vec![Some(d_x.into_gradient())]
    })
}
