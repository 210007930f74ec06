// route: which experts each token goes to (mixture of experts, arXiv 1701.06538), and the rows of tokens and experts
// sorted by expert.
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";

/** Where the tokens go: M = T k rows, sorted by expert, then by token. */
export interface Routes {
  /** [T, E] float32: softmax of the router's logits. */
  readonly probs: Tensor;
  /** [T, k] int32, the most probable first; of equally probable ones the lower. */
  readonly experts: Tensor;
  /** [T, k] int32: the rows of a token's choices. */
  readonly slots: Tensor;
  /** [M] int32: whose row each is. */
  readonly tokens: Tensor;
  /** [M] float32: what each row's result counts. */
  readonly weights: Tensor;
  /** [E + 1] int64: where each expert's rows begin. */
  readonly offsets: Tensor;
}

export interface RouteOptions {
  /** k */
  readonly active: number;
  /** Whether the weights of a token's experts are divided by their sum. */
  readonly normalize: boolean;
}

/** What the balance of the experts is judged by. */
export interface RouteLoad {
  /** [2, E] float64, added to: tokens that chose each expert, sums of their probs. */
  readonly load: Tensor | null;
  /** The first tokens, which count; the others are padding. */
  readonly counted: number;
}

/** Routes for logits [T, E] float32, which become the probs. No graph. */
export function routeInto(logits: Tensor, { active, normalize }: RouteOptions, { load, counted }: RouteLoad): Routes {
  const [tokens = 0, experts = 0] = logits.shape;
  const { device } = logits;
  const int32 = (shape: number[]): Tensor => Tensor.empty(shape, { device, dtype: "int32" });
  const routes: Routes = {
    probs: logits,
    experts: int32([tokens, active]),
    slots: int32([tokens, active]),
    tokens: int32([tokens * active]),
    weights: Tensor.empty([tokens * active], { device, dtype: "float32" }),
    offsets: Tensor.empty([experts + 1], { device, dtype: "int64" }),
  };
  binding.ops.route(
    logits.native(),
    logits.native(),
    routes.experts.native(),
    routes.slots.native(),
    routes.tokens.native(),
    routes.weights.native(),
    routes.offsets.native(),
    load?.native() ?? null,
    normalize,
    counted,
  );
  return routes;
}

/** The gradient of a load-balancing loss: factor * share[e] for the prob of expert e of each of the first tokens. */
export interface RouteBalance {
  /** [E] float64 */
  readonly share: Tensor;
  /** [] float64 */
  readonly factor: Tensor;
  readonly counted: number;
}

/** dlogits [T, E] float32, which may be the probs, from that of the weights, dweights [M] float32. No graph. */
export function routeBackwardInto(
  { probs, experts, slots }: Pick<Routes, "probs" | "experts" | "slots">,
  dweights: Tensor,
  balance: RouteBalance | null,
  normalize: boolean,
  dlogits: Tensor,
): void {
  binding.ops.routeBackward(
    probs.native(),
    experts.native(),
    slots.native(),
    dweights.native(),
    balance?.share.native() ?? null,
    balance?.factor.native() ?? null,
    dlogits.native(),
    normalize,
    balance?.counted ?? 0,
  );
}
