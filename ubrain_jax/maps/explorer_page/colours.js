// Colours of voxels. Categories differ in lightness as well as in hue.

const UNKNOWN = [92, 97, 104];
const PLAIN = [118, 126, 136];
const LIT = [255, 178, 64];

// OKLCH -> sRGB, 0..255 (Ottosson 2020).
function oklch(lightness, chroma, degrees) {
  const a = chroma * Math.cos((degrees * Math.PI) / 180);
  const b = chroma * Math.sin((degrees * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((x) => {
    const y = Math.min(Math.max(x, 0), 1);
    return Math.round(255 * (y <= 0.0031308 ? 12.92 * y : 1.055 * y ** (1 / 2.4) - 0.055));
  });
}

// Steps of the golden angle, so that neighbours in the list are far apart.
const category = (k) => oklch([0.7, 0.83, 0.6][k % 3], 0.14, 30 + 137.508 * k);

const css = (rgb) => `rgb(${rgb.join(" ")})`;

// A function of 0..1, clipped, and the gradient that shows it. All maps are made for a
// dark ground: what matters is bright.
function ramp(stops) {
  const last = stops.length - 1;
  const at = (x) => {
    const place = Math.min(Math.max(x, 0), 1) * last;
    const k = Math.min(Math.floor(place), last - 1), part = place - k;
    return stops[k].map((low, d) => Math.round(low + part * (stops[k + 1][d] - low)));
  };
  at.gradient = `linear-gradient(to right, ${stops.map(css).join(", ")})`;
  return at;
}

// Cividis without its darkest fifth; lightness grows all along.
const sequential = ramp([
  [46, 79, 121], [86, 101, 111], [109, 114, 117], [136, 133, 120], [164, 155, 113],
  [194, 178, 104], [224, 203, 82], [254, 232, 56]]);

// Blue below zero and orange above, as bright as far from it.
const diverging = ramp([
  [158, 216, 255], [38, 139, 210], [24, 84, 128], [58, 62, 68], [136, 68, 20],
  [224, 110, 20], [255, 205, 140]]);

// By angle from -pi to pi: hues once around, the upper half of the field brighter.
const cyclic = ramp(Array.from({ length: 33 }, (_, k) =>
  oklch(0.7 - 0.13 * Math.sin((k * Math.PI) / 16), 0.13, 40 + 11.25 * k)));

// Lower and upper value that nearly all lie between.
function range(parts) {
  const values = [];
  for (const part of parts) for (const x of part) if (!Number.isNaN(x)) values.push(x);
  if (!values.length) return [0, 1];
  values.sort((a, b) => a - b);
  const low = values[Math.floor(0.02 * (values.length - 1))];
  const high = values[Math.ceil(0.98 * (values.length - 1))];
  return high > low ? [low, high] : [low, low + 1];
}
