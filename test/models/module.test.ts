// Modules: parameters under Hugging Face's names, shared ones once, their memory.

import t from "tap";
import { Linear, Module, RmsNorm } from "../../lib/nn/index.js";
import { ones } from "../../lib/tensor/create.js";
import { Device } from "../../lib/tensor/device.js";
import { Parameter, type Tensor } from "../../lib/tensor/tensor.js";

class Block extends Module {
  readonly firstProj: Linear;
  readonly outNorm: RmsNorm;
  readonly sideWeights: Parameter[];
  readonly absent: Linear | null = null;
  readonly note = "no parameter";
  readonly #hidden: Linear;
  constructor(device: Device, hidden: Linear) {
    super();
    this.firstProj = new Linear(30, 40, { device, bias: true });
    this.outNorm = new RmsNorm(40, { device });
    this.sideWeights = [Parameter.empty([2], { device })];
    this.#hidden = hidden;
  }
  forward(x: Tensor): Tensor {
    return this.#hidden.forward(this.outNorm.forward(this.firstProj.forward(x)));
  }
}

class Whole extends Module {
  readonly blocks: readonly Block[];
  readonly shared: Parameter;
  constructor(device: Device) {
    super();
    const hidden = new Linear(40, 20, { device });
    this.blocks = [new Block(device, hidden), new Block(device, hidden)];
    this.shared = this.blocks[0]?.firstProj.weight as Parameter;
  }
  forward(x: Tensor): Tensor {
    return x;
  }
}

t.test("names", (t) => {
  const device = new Device("cpu");
  const whole = new Whole(device);
  const block = (i: number) => [
    `blocks.${i}.first_proj.weight`,
    `blocks.${i}.first_proj.bias`,
    `blocks.${i}.out_norm.weight`,
    `blocks.${i}.side_weights.0`,
  ];
  t.strictSame(
    [...whole.namedParameters()].map(([name]) => name),
    [...block(0), ...block(1), "shared"],
  );
  t.equal(whole.parameters().length, 8, "a shared one once");
  t.ok(whole.parameters().every((parameter) => parameter instanceof Parameter && parameter.requiresGrad));
  t.end();
});

t.test("forward, gradients and memory", async (t) => {
  const device = new Device("cpu");
  const before = device.memory().live;
  const hidden = new Linear(40, 20, { device });
  const block = new Block(device, hidden);
  for (const parameter of [...block.parameters(), ...hidden.parameters()]) parameter.fill(0.5);
  const x = ones([5, 30], { device });
  const loss = block.forward(x).sum();
  loss.backward();
  // Each row of the first product is 40 equal numbers, which the norm makes 0.5; the second gives 40 x 0.5 x 0.5.
  t.ok(Math.abs((await loss.item()) / (5 * 20 * 10) - 1) < 1e-5);
  t.equal(block.firstProj.weight.grad?.shape.length, 2);
  t.ok((device.memory().categoryLive.params ?? 0) >= 4 * (40 * 30 + 20 * 40));
  block.zeroGrad();
  t.equal(block.firstProj.weight.grad, null);
  for (const owner of [loss, x, block, hidden]) owner.dispose();
  t.equal(device.memory().live, before);
  t.ok(block.firstProj.weight.disposed);
});
