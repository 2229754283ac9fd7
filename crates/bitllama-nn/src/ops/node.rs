//! An operator in Burn's graph of gradients: numbers in, numbers out, and a function from the output's gradient to those of the
//! inputs.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex};

use bitllama_kernels::gemm::Elements;
use bitllama_kernels::training::halves;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::{DType, Shape, Tensor, TensorData, bf16, f16};

use crate::profile;

/// Contiguous `f32` numbers of a tensor, shared with it; a copy, if they are of 16 bits there.
#[derive(Clone)]
pub struct Numbers(FlexTensor);

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_slice().unwrap_or_else(|| unreachable!("it was made contiguous and is f32"))
    }
}

impl Numbers {
    /// Row-major numbers of a tensor of the given shape.
    pub fn new<const D: usize>(numbers: Vec<f32>, shape: [usize; D]) -> Self {
        Self(tensor(numbers, shape.into()))
    }

    fn of(tensor: FlexTensor) -> Self {
        let tensor = match tensor.dtype() {
            DType::F32 => tensor,
            _ => widened(tensor),
        };
        Self(if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() })
    }

    /// As a gradient.
    pub fn into_gradient(self) -> Gradient {
        self.0
    }
}

/// Numbers of 16 bits as `f32`.
fn widened(tensor: FlexTensor) -> FlexTensor {
    let shape = tensor.layout().shape().clone();
    let tensor = if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() };
    let numbers = match (tensor.as_slice::<bf16>(), tensor.as_slice::<f16>()) {
        (Some(numbers), _) => halves::from_bf16(numbers),
        (_, Some(numbers)) => halves::from_f16(numbers),
        _ => panic!("an operator of {:?}", tensor.dtype()),
    };
    self::tensor(numbers, shape)
}

/// Contiguous numbers of a factor of a product, which packs them as they are stored: those of 16 bits need no copy.
#[derive(Clone)]
pub enum Factor {
    /// In single precision.
    Wide(Numbers),
    /// Of [`bf16`].
    Bf16(FlexTensor),
}

impl Factor {
    /// All of them.
    pub fn elements(&self) -> Elements<'_> {
        match self {
            Self::Wide(numbers) => Elements::F32(numbers),
            Self::Bf16(tensor) => {
                Elements::Bf16(tensor.as_slice().unwrap_or_else(|| unreachable!("it is contiguous and of this type")))
            }
        }
    }
}

/// A tensor on the way into an operator.
pub struct Input {
    tensor: FlexTensor,
    tracked: Option<FloatTensor<Autodiff<Flex>>>,
}

impl Input {
    /// Of a tensor on `flex`, with or without autodiff.
    ///
    /// # Panics
    /// If it is on another device.
    pub fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        let found = if tensor.is_autodiff() {
            tensor
                .try_into_primitive::<Autodiff<Flex>>()
                .map(|tracked| Self { tensor: tracked.primitive().clone(), tracked: Some(tracked) })
        } else {
            tensor.try_into_primitive::<Flex>().map(|tensor| Self { tensor, tracked: None })
        };
        found.unwrap_or_else(|e| panic!("a fused operator is given a tensor of another device: {e:?}"))
    }

    /// Its numbers, row-major.
    pub fn numbers(&self) -> Numbers {
        Numbers::of(self.tensor.clone())
    }

    /// The same, in the type in which they are stored.
    pub fn factor(&self) -> Factor {
        match self.tensor.dtype() {
            DType::BF16 if self.tensor.is_contiguous() => Factor::Bf16(self.tensor.clone()),
            _ => Factor::Wide(self.numbers()),
        }
    }

    fn shape(&self) -> Shape {
        self.tensor.layout().shape().clone()
    }
}

/// The gradient of an input.
pub type Gradient = FlexTensor;

/// Which inputs of an operator want a gradient, and of what shape.
pub struct Wanted(Vec<Option<Shape>>);

impl Wanted {
    /// Whether input `index` does.
    pub fn is(&self, index: usize) -> bool {
        self.0[index].is_some()
    }

    /// The gradient of input `index`, computed if it is wanted.
    pub fn gradient(&self, index: usize, compute: impl FnOnce() -> Vec<f32>) -> Option<Gradient> {
        let shape = self.0[index].clone()?;
        Some(tensor(compute(), shape))
    }
}

fn tensor(numbers: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(numbers, shape))
}

type Function = Box<dyn FnOnce(Numbers, &Wanted) -> Vec<Option<Gradient>> + Send>;

/// What an operator keeps for its backward pass. It is called once and gone with what it holds.
#[derive(Clone)]
struct Kept {
    name: &'static str,
    function: Arc<Mutex<Option<Function>>>,
    shapes: Vec<Shape>,
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct(self.name).field("shapes", &self.shapes).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Operator;

impl<const N: usize> Backward<Flex, N> for Operator {
    type State = Kept;

    fn backward(self, ops: Ops<Kept, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let of_output = grads.consume::<Flex>(&ops.node);
        let function = ops.state.function.lock().ok().and_then(|mut function| function.take());
        let Some(function) = function else { panic!("a graph of fused operators is followed back once") };
        let shapes = ops.state.shapes.iter().zip(&ops.parents);
        let wanted = Wanted(shapes.map(|(shape, parent)| parent.as_ref().map(|_| shape.clone())).collect());
        let gradients = profile::operator(ops.state.name, || function(Numbers::of(of_output), &wanted));
        for (parent, gradient) in ops.parents.iter().zip(gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                grads.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// The output of the operator `name` as a tensor: tracked if an input is, and then `backward` gives the gradients of all inputs that
/// want one, in their order, from that of the output.
///
/// # Panics
/// If there are more than eight inputs.
pub fn record<const D: usize>(
    name: &'static str,
    inputs: Vec<Input>,
    output: Numbers,
    backward: impl FnOnce(Numbers, &Wanted) -> Vec<Option<Gradient>> + Send + 'static,
) -> Tensor<D> {
    let output = output.0;
    if inputs.iter().all(|input| input.tracked.is_none()) {
        return Tensor::from_primitive::<Flex>(output);
    }
    let kept = Kept {
        shapes: inputs.iter().map(Input::shape).collect(),
        name,
        function: Arc::new(Mutex::new(Some(Box::new(backward)))),
    };
    let inputs: Vec<_> = inputs.into_iter().map(tracked).collect();
    let output = match inputs.len() {
        1 => registered::<1>(inputs, kept, output),
        2 => registered::<2>(inputs, kept, output),
        3 => registered::<3>(inputs, kept, output),
        4 => registered::<4>(inputs, kept, output),
        5 => registered::<5>(inputs, kept, output),
        6 => registered::<6>(inputs, kept, output),
        7 => registered::<7>(inputs, kept, output),
        8 => registered::<8>(inputs, kept, output),
        n => panic!("an operator of {n} inputs"),
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

fn tracked(input: Input) -> FloatTensor<Autodiff<Flex>> {
    use burn::backend::AutodiffBackend;
    input.tracked.unwrap_or_else(|| <Autodiff<Flex> as AutodiffBackend>::from_inner(input.tensor))
}

fn registered<const N: usize>(
    inputs: Vec<FloatTensor<Autodiff<Flex>>>,
    kept: Kept,
    output: FlexTensor,
) -> FloatTensor<Autodiff<Flex>> {
    let nodes = std::array::from_fn::<_, N, _>(|i| inputs[i].node());
    match Operator.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(kept, output),
        OpsKind::UnTracked(prep) => prep.finish(output),
    }
}
