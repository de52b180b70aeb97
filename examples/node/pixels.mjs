// Pictures to what a vision encoder takes: the steps of docs/bundle-format.md, "Images".
import sharp from "sharp";

// { height, width, rgb: Uint8Array [height, width, 3] }: upright, transparency on white.
export async function read(file) {
  const picture = sharp(file).autoOrient().flatten({ background: "white" }).toColourspace("srgb");
  const { data, info } = await picture.raw().toBuffer({ resolveWithObject: true });
  return { height: info.height, width: info.width, rgb: data };
}

function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return ((-0.5 + 2) * x - (-0.5 + 3)) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// What each pixel of a resized axis is made of: whole `weights` of the pixels from `first` on, divided by 2^bits.
function axisWeights(from, to) {
  const scale = from / to;
  const reach = 2 * Math.max(scale, 1);
  const shrink = scale >= 1 ? 1 / scale : 1;
  const axis = Array.from({ length: to }, (_, i) => {
    const center = scale * (i + 0.5);
    const first = Math.max(Math.trunc(center - reach + 0.5), 0);
    const end = Math.min(Math.trunc(center + reach + 0.5), from);
    const weights = Array.from({ length: end - first }, (_, tap) => cubic((first + tap - center + 0.5) * shrink));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
  const largest = axis.reduce((most, { weights }) => Math.max(most, ...weights), 0);
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const whole = (weight) => Math.trunc(weight * 2 ** bits + (weight < 0 ? -0.5 : 0.5));
  return { bits, taps: axis.map(({ first, weights }) => ({ first, weights: weights.map(whole) })) };
}

// First along the width, then along the height, each rounded to 8 bits; a side that stays is not touched.
function resize(picture, height, width) {
  for (const across of [true, false]) {
    const { height: h, width: w, rgb } = picture;
    const [from, to] = across ? [w, width] : [h, height];
    if (from === to) continue;
    const { bits, taps } = axisWeights(from, to);
    const out = across ? { height: h, width: to } : { height: to, width: w };
    out.rgb = new Uint8Array(out.height * out.width * 3);
    const step = across ? 3 : 3 * w;
    for (let row = 0, to = 0; row < out.height; row++)
      for (let column = 0; column < out.width; column++) {
        const { first, weights } = taps[across ? column : row];
        const begin = across ? (row * w + first) * 3 : (first * w + column) * 3;
        for (let channel = 0; channel < 3; channel++) {
          const sum = weights.reduce((total, weight, tap) => total + weight * rgb[begin + tap * step + channel], 0);
          out.rgb[to++] = Math.min(Math.max(Math.floor((sum + 2 ** bits / 2) / 2 ** bits), 0), 255);
        }
      }
    picture = out;
  }
  return picture;
}

// The values of the 256 bytes of each channel: (byte - mean / r) / (std / r) in float32, or byte * r without a mean.
function byteValues({ mean, std, rescale_factor }) {
  const f = Math.fround;
  const bytes = [...Array(256).keys()];
  if (!mean) return Array(3).fill(bytes.map((byte) => f(byte * f(rescale_factor ?? 1))));
  const scale = f(1 / (rescale_factor ?? 1));
  return mean.map((value, channel) => {
    const [centre, spread] = [f(f(value) * scale), f(f(std[channel]) * scale)];
    return bytes.map((byte) => f(f(byte - centre) / spread));
  });
}

function evenRound(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2) : Math.round(x);
}

// `kind: patches`: resized to whole tokens within the range of areas, cut by blocks of merge_size x merge_size patches.
function patches(picture, spec, { min_pixels: least, max_pixels: most }) {
  const { patch_size: p, temporal_patch_size: t, merge_size: m } = spec;
  const { height: h, width: w } = picture;
  const f = p * m;
  let [H, W] = [h, w].map((side) => evenRound(side / f) * f);
  if (H * W > most) {
    const b = Math.sqrt((h * w) / most);
    [H, W] = [h, w].map((side) => Math.max(1, Math.floor(side / b / f)) * f);
  } else if (H * W < least) {
    const b = Math.sqrt(least / (h * w));
    [H, W] = [h, w].map((side) => Math.ceil((side * b) / f) * f);
  }
  const { rgb } = resize(picture, H, W);
  const values = byteValues(spec);
  const [rows, columns] = [H / f, W / f];
  const out = new Float32Array(H * W * 3 * t);
  let to = 0;
  for (let block = 0; block < rows * columns; block++)
    for (let within = 0; within < m * m; within++) {
      const top = Math.floor(block / columns) * f + Math.floor(within / m) * p;
      const left = (block % columns) * f + (within % m) * p;
      for (let channel = 0; channel < 3; channel++)
        for (let step = 0; step < t; step++) // a still image fills them all
          for (let y = top; y < top + p; y++)
            for (let x = left; x < left + p; x++) out[to++] = values[channel][rgb[(y * W + x) * 3 + channel]];
    }
  return { values: out, shape: [(H * W) / (p * p), 3 * t * p * p], grid: [1, H / p, W / p], rows, columns };
}

// `kind: crop`: resized, then the centre; what is missing is black. Its tokens lie in a row.
function crop(picture, spec) {
  let { height, width } = picture;
  if (spec.shortest_edge) {
    const longest = Math.trunc((spec.shortest_edge * Math.max(height, width)) / Math.min(height, width));
    [height, width] = width <= height ? [longest, spec.shortest_edge] : [spec.shortest_edge, longest];
  } else if (spec.resized) [height, width] = spec.resized;
  const sized = resize(picture, height, width);
  if (spec.cropped) [height, width] = spec.cropped;
  const begin = (found, wanted) => Math.trunc((found - wanted) / 2);
  const [top, left] = [begin(sized.height, height), begin(sized.width, width)];
  const values = byteValues(spec);
  const out = new Float32Array(3 * height * width);
  let to = 0;
  for (let channel = 0; channel < 3; channel++)
    for (let y = top; y < top + height; y++)
      for (let x = left; x < left + width; x++) {
        const inside = y >= 0 && y < sized.height && x >= 0 && x < sized.width;
        out[to++] = values[channel][inside ? sized.rgb[(y * sized.width + x) * 3 + channel] : 0];
      }
  return { values: out, shape: [1, 3, height, width], rows: 1, columns: spec.image_tokens };
}

export function pixels(picture, { image, limits }) {
  const kind = image.kind ?? "patches";
  const [short, long] = [picture.height, picture.width].sort((one, other) => one - other);
  if (long > 200 * short) throw new Error("one side of the picture is more than 200 times the other");
  if (kind === "patches") return patches(picture, image, limits);
  if (kind === "crop") return crop(picture, image);
  throw new Error(`pictures of kind ${kind} are not read by this example`);
}
