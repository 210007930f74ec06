// swiglu: the gated activation act(gate) * up (arXiv 2002.05202). Saves its inputs only and recomputes.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";
import { type Activation, unaryCode } from "./unary.js";

class Swiglu extends Function<[Tensor, Tensor, Activation], Tensor> {
  readonly name = "swiglu";
  forward(ctx: Context, gate: Tensor, up: Tensor, activation: Activation): Tensor {
    const y = Tensor.empty(gate.shape, { device: gate.device, dtype: gate.dtype });
    binding.ops.swiglu(gate.native(), up.native(), y.native(), unaryCode(activation));
    ctx.save(gate, up);
    ctx.values.activation = activation;
    return y;
  }
  backward(ctx: Context, dy: Tensor): Grad[] {
    const [gate, up] = [ctx.saved(0), ctx.saved(1)];
    const dgate = Tensor.empty(gate.shape, { device: gate.device, dtype: gate.dtype });
    const dup = Tensor.empty(up.shape, { device: up.device, dtype: up.dtype });
    binding.ops.swigluBackward(
      gate.native(),
      up.native(),
      dy.native(),
      dgate.native(),
      dup.native(),
      unaryCode(ctx.values.activation as Activation),
    );
    return [dgate, dup];
  }
}
const swigluFunction = new Swiglu();

/** act(gate) * up elementwise.  gate, up [T, F] -> [T, F]; act silu (SwiGLU), gelu or gelu_tanh (GeGLU), relu. */
export const swiglu = (gate: Tensor, up: Tensor, activation: Activation = "silu"): Tensor =>
  swigluFunction.apply(gate, up, activation);
