"""Makes activations.json: layers with rounded inputs, values and gradients, written here from the papers in PyTorch,
independently of the Rust code.

    pip install -r tests/golden/requirements.txt
    python crates/bitllama-nn/tests/golden/activations.py

`x` is [TOKENS, IN], a layer `w` is [OUT, IN], and the loss is `sum(c * (q(x) @ w.T))`.

- int8, int4: per token by the largest magnitude, as `activation_quant` in the BitNet b1.58 training tips, with a
  straight-through estimator
- sign: XNOR-Net's sign(x) * mean |x| (arXiv 1603.05279), whose gradient passes where |x| is at most the scale: hard tanh
  of BinaryNet (arXiv 1602.02830) in units of the scale
- heads: the same rounding of [1, HEADS, TOKENS, IN / HEADS], as of keys and values
"""

import json
from pathlib import Path

import torch

TOKENS, IN, OUT, HEADS = 6, 48, 5, 3


def absmax(codes):
    def quantize(x):
        scale = codes / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-30)
        y = (x * scale).round().clamp(-codes - 1, codes) / scale
        return x + (y - x).detach()

    return quantize


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        scale = x.abs().mean(dim=-1, keepdim=True)
        ctx.save_for_backward(x, scale)
        return torch.where(x >= 0, 1.0, -1.0) * scale

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        return torch.where((x / scale).abs() <= 1, grad, torch.zeros_like(grad))


def numbers(tensor):
    """Nine digits tell every f32 apart."""
    return [float(f"{x:.9g}") for x in tensor.detach().flatten().tolist()]


def main():
    torch.manual_seed(0)
    # Heavy tails, tokens of different sizes, and a number that is exactly 0.
    x = torch.randn(TOKENS, IN) * torch.rand(TOKENS, IN) * torch.tensor([0.3, 1.0, 0.02, 4.0, 1.0, 0.5])[:, None]
    x[1, 5] = 0.0
    w, c = torch.randn(OUT, IN) * 0.2, torch.randn(TOKENS, OUT)
    d = torch.randn(TOKENS, IN)
    cases = []
    for name, quantize in [("int8", absmax(127)), ("int4", absmax(7)), ("sign", Sign.apply)]:
        inputs, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
        value = quantize(inputs)
        out = value @ weight.T
        (out * c).sum().backward()
        entry = {"kind": name, "value": numbers(value), "out": numbers(out)}
        entry |= {"x_gradient": numbers(inputs.grad), "w_gradient": numbers(weight.grad)}
        inputs = x.clone().requires_grad_()
        heads = quantize(inputs.reshape(1, TOKENS, HEADS, IN // HEADS).swapaxes(1, 2))
        heads = heads.swapaxes(1, 2).reshape(TOKENS, IN)
        (heads * d).sum().backward()
        entry |= {"heads": numbers(heads), "heads_gradient": numbers(inputs.grad)}
        cases.append(entry)
    golden = {"shape": [TOKENS, IN, OUT, HEADS], "x": numbers(x), "w": numbers(w), "c": numbers(c), "d": numbers(d)}
    path = Path(__file__).with_suffix(".json")
    lines = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(json.dumps(golden)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
    print(f"{path.name}: {len(cases)} cases")


main()
