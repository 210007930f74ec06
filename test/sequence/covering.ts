// Covering arrays: few rows of settings in which every admissible combination of `strength` values occurs.

/** A setting and the values it takes. */
export type Factors = Readonly<Record<string, readonly unknown[]>>;

/** A value of every factor. */
export type RowOf<F extends Factors> = { [K in keyof F]: F[K][number] };

/** False where what is set so far contradicts itself; unset factors are undefined and must not decide. */
export type Rule<F extends Factors> = (row: Partial<RowOf<F>>) => boolean;

/** Index of the value of each factor; -1: not set. */
type Choice = number[];

/** Factors, values and rules with what the search asks of them. */
class Space<F extends Factors> {
  readonly names: (keyof F & string)[];
  readonly sizes: number[];
  constructor(
    readonly factors: F,
    readonly rule: Rule<F>,
  ) {
    this.names = Object.keys(factors);
    this.sizes = this.names.map((name) => (factors[name] as readonly unknown[]).length);
  }

  row(choice: Choice): RowOf<F> {
    return Object.fromEntries(
      this.names.flatMap((name, i) => {
        const value = choice[i] as number;
        return value < 0 ? [] : [[name, (this.factors[name] as readonly unknown[])[value]]];
      }),
    ) as RowOf<F>;
  }

  /** Whether values for the unset factors exist. */
  completable(choice: Choice): boolean {
    if (!this.rule(this.row(choice))) return false;
    const next = choice.indexOf(-1);
    if (next < 0) return true;
    for (let value = 0; value < (this.sizes[next] as number); value++)
      if (this.completable(choice.with(next, value))) return true;
    return false;
  }

  /** Every way to set `strength` of the factors that some row can have, by key. */
  tuples(strength: number): Map<string, Choice> {
    const found = new Map<string, Choice>();
    const walk = (choice: Choice, from: number, left: number): void => {
      if (left === 0) {
        if (this.completable(choice)) found.set(choice.join(), choice);
        return;
      }
      for (let i = from; i <= choice.length - left; i++)
        for (let value = 0; value < (this.sizes[i] as number); value++) walk(choice.with(i, value), i + 1, left - 1);
    };
    walk(new Array<number>(this.names.length).fill(-1), 0, strength);
    return found;
  }
}

/** The tuples of `strength` set factors that contain factor `at`, of what is set in `choice`. */
function* tuplesWith(choice: Choice, at: number, strength: number): Generator<Choice> {
  const others = choice.flatMap((value, i) => (value >= 0 && i !== at ? [i] : []));
  const start = choice.map((value, i) => (i === at ? value : -1));
  function* walk(tuple: Choice, from: number, left: number): Generator<Choice> {
    if (left === 0) {
      yield tuple;
      return;
    }
    for (let i = from; i <= others.length - left; i++) {
      const other = others[i] as number;
      yield* walk(tuple.with(other, choice[other] as number), i + 1, left - 1);
    }
  }
  yield* walk(start, 0, strength - 1);
}

/**
 * Rows in which every admissible combination of `strength` factors' values occurs: each row starts with a combination
 * that is still missing and takes, factor by factor, the value that brings the most missing ones. Deterministic.
 */
export function coveringArray<F extends Factors>(factors: F, rule: Rule<F>, strength = 2): RowOf<F>[] {
  const space = new Space(factors, rule);
  const missing = space.tuples(strength);
  const rows: RowOf<F>[] = [];
  while (missing.size > 0) {
    let choice = missing.values().next().value as Choice;
    // Another order in every row, so that ties do not always fall to the same values.
    for (let step = 0; step < choice.length; step++) {
      const at = (step + rows.length) % choice.length;
      if ((choice[at] as number) >= 0) continue;
      const size = space.sizes[at] as number;
      let best: { choice: Choice; gain: number } | undefined;
      for (let turn = 0; turn < size; turn++) {
        const tried = choice.with(at, (turn + rows.length) % size);
        if (!space.completable(tried)) continue;
        let gain = 0;
        for (const tuple of tuplesWith(tried, at, strength)) if (missing.has(tuple.join())) gain++;
        if (best === undefined || gain > best.gain) best = { choice: tried, gain };
      }
      choice = (best as { choice: Choice }).choice;
    }
    for (const at of choice.keys()) for (const tuple of tuplesWith(choice, at, strength)) missing.delete(tuple.join());
    rows.push(space.row(choice));
  }
  return rows;
}

/** The combinations of `strength` values that some admissible row has and none of `rows`; for tests of the above. */
export function uncovered<F extends Factors>(
  factors: F,
  rule: Rule<F>,
  rows: readonly RowOf<F>[],
  strength: number,
): Partial<RowOf<F>>[] {
  const space = new Space(factors, rule);
  return [...space.tuples(strength).values()]
    .map((choice) => space.row(choice) as Partial<RowOf<F>>)
    .filter((tuple) => !rows.some((row) => Object.entries(tuple).every(([name, value]) => row[name] === value)));
}

/** Every admissible row. */
export function* product<F extends Factors>(factors: F, rule: Rule<F>): Generator<RowOf<F>> {
  const space = new Space(factors, rule);
  function* walk(choice: Choice, at: number): Generator<RowOf<F>> {
    const row = space.row(choice);
    if (!rule(row)) return;
    if (at === choice.length) {
      yield row;
      return;
    }
    for (let value = 0; value < (space.sizes[at] as number); value++) yield* walk(choice.with(at, value), at + 1);
  }
  yield* walk(new Array<number>(space.names.length).fill(-1), 0);
}
