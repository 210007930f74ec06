// Numbers, times and sizes for people: short, and of a steady width.

/** Three significant digits: 1.23, 12.3, 123. */
function threeDigits(value: number): string {
  const magnitude = Math.abs(value);
  return magnitude >= 99.95 ? value.toFixed(0) : magnitude >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}

function scaled(value: number, base: number, units: readonly string[]): string {
  if (!Number.isFinite(value)) return "?";
  let index = 0;
  let rest = value;
  // 999.6 would be shown as 1000 of a unit, so the next one starts a little earlier.
  while (index + 1 < units.length && Math.abs(rest) >= base - 0.5) {
    rest /= base;
    index++;
  }
  const digits = index === 0 && Number.isInteger(rest) ? String(rest) : threeDigits(rest);
  return `${digits}${units[index]}`;
}

/** 1234567 as "1.23M": powers of 1000. Not finite: "?". */
export function formatSi(value: number): string {
  return scaled(value, 1000, ["", "K", "M", "G", "T", "P", "E"]);
}

/** Bytes as "1.50 GiB": powers of 1024. Not finite: "?". */
export function formatBytes(bytes: number): string {
  return scaled(bytes, 1024, [" B", " KiB", " MiB", " GiB", " TiB", " PiB"]);
}

/** Seconds as "0.35s", "12s", "3m 05s", "2h 07m", "3d 04h"; unknown (not finite): "?". */
export function formatDuration(seconds: number): string {
  if (!Number.isFinite(seconds)) return "?";
  const time = Math.max(0, seconds);
  if (time < 0.995) return `${time.toFixed(2)}s`;
  if (time < 9.95) return `${time.toFixed(1)}s`;
  const whole = Math.round(time);
  const two = (value: number) => String(value).padStart(2, "0");
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${two(whole % 60)}s`;
  const minutes = Math.round(time / 60);
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)}h ${two(minutes % 60)}m`;
  const hours = Math.round(time / 3600);
  return `${Math.floor(hours / 24)}d ${two(hours % 24)}h`;
}

/** A loss or a norm: four decimals, or "nan" where it is not finite or absent. */
export function formatLoss(value: number | null): string {
  if (value === null || !Number.isFinite(value)) return "nan";
  return Math.abs(value) >= 1e5 ? value.toExponential(3) : value.toFixed(4);
}
