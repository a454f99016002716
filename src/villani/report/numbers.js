// Ψ_s = (λ²‖mθ‖² + 2λ⟨∇L, mθ⟩ + ‖∇L‖²)/s − λ·d_m − tr ∇²L, and its error from the covariance of the statistics.
function psiAt(point, decay, temperature) {
  const [, gradient, dot, trace] = point.statistics;
  const weights = [0, 1 / temperature, 2 * decay / temperature, -1];
  const estimate = (value, c) => {
    let variance = 0;
    c.forEach((a, i) => c.forEach((b, j) => { variance += a * b * point.covariance[i][j]; }));
    const sem = Math.sqrt(Math.max(variance, 0));
    const half = point.quantile === null ? NaN : point.quantile * sem;
    return {value, sem, low: value - half, high: value + half};
  };
  const only = k => weights.map((w, i) => i === k ? w : 0);
  const parts = [
    estimate(decay * decay * point.decayedNormSquared / temperature, only(-1)),
    estimate(weights[2] * dot, only(2)),
    estimate(weights[1] * gradient, only(1)),
    estimate(-decay * point.decayedParameters, only(-1)),
    estimate(-trace, only(3)),
  ];
  return [estimate(parts.reduce((sum, part) => sum + part.value, 0), weights), ...parts];
}

// The same rounding as villani/report/numbers.py.
const plain = (text, strip) => {
  if (strip && text.includes(".")) text = text.replace(/0+$/, "").replace(/\.$/, "");
  if (/^[-0.]*$/.test(text)) text = text.replace(/^-/, "");
  return text.replace("-", "−");
};
const tenTo = power => "10" + String(power).replace(/[-\d]/g, c => c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]);
const decade = value => value === 0 ? -Infinity : Number(value.toExponential(15).split("e")[1]);
const units = (value, place) => {  // of 10^place, by moving the point of the shortest decimal
  const [mantissa, exponent] = value.toExponential().split("e");
  return Number(`${mantissa}e${Number(exponent) - place}`);
};
function scaled(numbers, place) {
  const top = Math.max(...numbers.map(n => place + (n ? decade(Math.abs(n)) : 0)));
  const power = (place <= 0 && top >= -3 && top < 5) || (top >= 0 && top < 3) ? 0 : top;
  const text = n => units(n, power - place).toFixed(Math.max(power - place, 0));
  return [numbers.map(n => plain(text(n))), power];
}
function formatNumber(value, digits = 6) {
  if (!Number.isFinite(value)) return "—";
  if (value === 0) return "0";
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const power = Number(exponent);
  if (power >= -4 && power < 7) return plain(value.toFixed(Math.max(digits - 1 - power, 0)), true);
  return plain(mantissa, true) + "·" + tenTo(power);
}
function formatUncertain(value, sem) {
  if (!Number.isFinite(value) || !Number.isFinite(sem)) return "—";
  if (sem === 0) return formatNumber(value);
  const [mantissa, exponent] = sem.toExponential(1).split("e");
  const place = Number(exponent) - (mantissa < "2" ? 1 : 0);
  if (decade(value) - place > 12) return formatNumber(value) + " ± " + formatNumber(sem, 2);
  const [[centre, error], power] = scaled([Math.round(units(value, place)), Math.round(units(sem, place))], place);
  return power ? `(${centre} ± ${error})·${tenTo(power)}` : `${centre} ± ${error}`;
}
function formatInterval(low, high) {
  if (!Number.isFinite(low) || !Number.isFinite(high)) return "—";
  if (low === high) return "no sampling error";
  const place = Number(((high - low) / 2).toExponential(1).split("e")[1]) - 1;
  if (decade(Math.max(Math.abs(low), Math.abs(high))) - place > 12) {
    const six = (value, way) => {
      const last = decade(value) < 7 ? Math.min(decade(value) - 5, 0) : decade(value) - 5;
      return value === 0 ? 0 : Number(`${way(units(value, last))}e${last}`);
    };
    return `[${formatNumber(six(low, Math.floor))}, ${formatNumber(six(high, Math.ceil))}]`;
  }
  const [[left, right], power] = scaled([Math.floor(units(low, place)), Math.ceil(units(high, place))], place);
  return power ? `[${left}, ${right}]·${tenTo(power)}` : `[${left}, ${right}]`;
}
