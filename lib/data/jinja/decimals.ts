// Exact decimal digits of floats: what rounding and number formats of Python and C need.

/** |value| as an exact fraction numerator / 2^shift. */
function fraction(value: number): { numerator: bigint; shift: bigint } {
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, Math.abs(value));
  const raw = bits.getBigUint64(0);
  const exponent = Number(raw >> 52n);
  const mantissa = raw & ((1n << 52n) - 1n);
  const numerator = exponent === 0 ? mantissa : mantissa | (1n << 52n);
  const shift = BigInt(Math.max(exponent, 1) - 1075);
  return shift >= 0n ? { numerator: numerator << shift, shift: 0n } : { numerator, shift: -shift };
}

/** A quotient rounded to the nearest integer, ties to the even one. */
function nearest(numerator: bigint, denominator: bigint): bigint {
  const quotient = numerator / denominator;
  const rest = 2n * (numerator % denominator);
  const up = rest > denominator || (rest === denominator && quotient % 2n === 1n);
  return up ? quotient + 1n : quotient;
}

/** A finite float with so many digits behind the point, correctly rounded, ties to even: as C's %.Nf. */
export function fixed(value: number, digits: number): string {
  const { numerator, shift } = fraction(value);
  const scaled = nearest(numerator * 10n ** BigInt(digits), 1n << shift).toString();
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  if (digits === 0) return sign + scaled;
  const padded = scaled.padStart(digits + 1, "0");
  return `${sign}${padded.slice(0, -digits)}.${padded.slice(-digits)}`;
}

/** Python's round of a float to so many digits (fewer than none: tens, hundreds). */
export function roundTo(value: number, digits: number): number {
  if (!Number.isFinite(value) || value === 0) return value;
  if (digits > 330) return value;
  if (digits >= 0) return Number(fixed(value, digits));
  if (digits < -310) return value < 0 ? -0 : 0;
  const { numerator, shift } = fraction(value);
  const unit = 10n ** BigInt(-digits);
  const rounded = Number(nearest(numerator, (1n << shift) * unit) * unit);
  return value < 0 ? -rounded : rounded;
}

/** With one digit before the point and so many behind it, as C's %.Ne. */
export function exponential(value: number, digits: number): string {
  const sign = value < 0 || Object.is(value, -0) ? "-" : "";
  const text = (all: string, exponent: number) => {
    const tail = digits > 0 ? `.${all.slice(1)}` : "";
    return `${sign}${all[0]}${tail}e${exponent < 0 ? "-" : "+"}${String(Math.abs(exponent)).padStart(2, "0")}`;
  };
  if (value === 0) return text("0".repeat(digits + 1), 0);
  const { numerator, shift } = fraction(value);
  let exponent = Math.floor(Math.log10(Math.abs(value)));
  for (;;) {
    const power = BigInt(digits - exponent);
    const scaled =
      power >= 0n ? nearest(numerator * 10n ** power, 1n << shift) : nearest(numerator, (1n << shift) * 10n ** -power);
    const all = scaled.toString();
    if (all.length === digits + 1) return text(all, exponent);
    exponent += all.length > digits + 1 ? 1 : -1;
  }
}

/** So many significant digits, fixed or exponential as C's %.Ng; alternate: zeros at the end stay. */
export function general(value: number, precision: number, alternate: boolean): string {
  const digits = precision === 0 ? 1 : precision;
  const wide = exponential(value, digits - 1);
  const exponent = Number(wide.slice(wide.indexOf("e") + 1));
  const shown = exponent < -4 || exponent >= digits ? wide : fixed(value, digits - 1 - exponent);
  if (alternate) return shown;
  const [mantissa, power] = shown.split("e") as [string, string | undefined];
  const trimmed = mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa;
  return power === undefined ? trimmed : `${trimmed}e${power}`;
}
