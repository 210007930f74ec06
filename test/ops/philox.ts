// The generator of all random numbers in JavaScript, for tests.

/** Philox4x32-10 (Salmon et al., SC 2011) of a 128-bit counter and a 64-bit key, as 32-bit words, lowest first. */
export function philox(counter: readonly number[], key: readonly number[]): number[] {
  let [c0, c1, c2, c3] = counter as [number, number, number, number];
  let [k0, k1] = key as [number, number];
  const wide = (a: number, b: number) => BigInt(a >>> 0) * BigInt(b >>> 0);
  for (let round = 0; round < 10; round++) {
    const [first, second] = [wide(c0, 0xd2511f53), wide(c2, 0xcd9e8d57)];
    c0 = (Number(second >> 32n) ^ c1 ^ k0) >>> 0;
    c2 = (Number(first >> 32n) ^ c3 ^ k1) >>> 0;
    c1 = Number(second & 0xffffffffn);
    c3 = Number(first & 0xffffffffn);
    k0 = (k0 + 0x9e3779b9) >>> 0;
    k1 = (k1 + 0xbb67ae85) >>> 0;
  }
  return [c0, c1, c2, c3];
}
