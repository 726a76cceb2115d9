// Photos as the extractor was trained on them: squeezed into a square as Pillow does it.
//
// Pillow's bicubic filter widens as a picture shrinks, and its sums are in whole numbers; the result
// here is the same to the bit.

const BITS = 22;
const MOST_PIXELS = 2 ** 24; // what all browsers draw at once

// Bicubic interpolation with a = -1/2 (Keys, IEEE Transactions on ASSP 29, 1981).
function cubic(distance) {
  const x = Math.abs(distance);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// For each pixel of the result: the first pixel that counts, and whole weights from there on.
function coefficients(before, after) {
  const scale = before / after;
  const wide = Math.max(scale, 1);
  return Array.from({ length: after }, (_, n) => {
    const centre = (n + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - 2 * wide + 0.5), 0);
    const end = Math.min(Math.trunc(centre + 2 * wide + 0.5), before);
    const weights = [];
    let total = 0;
    for (let x = first; x < end; x++) {
      const weight = cubic((x - centre + 0.5) * (1 / wide));
      weights.push(weight);
      total += weight;
    }
    const whole = weights.map((weight) => {
      const scaled = (weight / total) * 2 ** BITS;
      return Math.trunc(scaled + (weight < 0 ? -0.5 : 0.5));
    });
    return { first, weights: Float64Array.from(whole) };
  });
}

// Shrinks lines of pixels; `at(line, x)` and `to(line, n)` are places of the first colour.
function resample(source, target, lines, steps, at, stride, to) {
  for (let line = 0; line < lines; line++) {
    for (let n = 0; n < steps.length; n++) {
      const { first, weights } = steps[n];
      let [red, green, blue] = [2 ** (BITS - 1), 2 ** (BITS - 1), 2 ** (BITS - 1)];
      let place = at(line, first);
      for (let i = 0; i < weights.length; i++, place += stride) {
        const weight = weights[i];
        red += weight * source[place];
        green += weight * source[place + 1];
        blue += weight * source[place + 2];
      }
      const out = to(line, n);
      target[out] = Math.floor(red / 2 ** BITS);
      target[out + 1] = Math.floor(green / 2 ** BITS);
      target[out + 2] = Math.floor(blue / 2 ** BITS);
    }
  }
}

// Squeezes RGBA pixels into a square: RGB, uint8, row by row.
export function squeeze(pixels, width, height, size) {
  const across = new Uint8ClampedArray(height * size * 3);
  const row = (line, x) => (line * width + x) * 4;
  resample(pixels, across, height, coefficients(width, size), row, 4, (y, n) => (y * size + n) * 3);
  const result = new Uint8ClampedArray(size * size * 3);
  const place = (x, y) => (y * size + x) * 3;
  resample(across, result, size, coefficients(height, size), place, size * 3, place);
  return result;
}

// Reads a picture of any kind that the browser knows, upright, on white, colours as stored.
export async function readPixels(file) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const picture = await createImageBitmap(file, options);
  const share = Math.sqrt(MOST_PIXELS / (picture.width * picture.height));
  let { width, height } = picture;
  if (share < 1) [width, height] = [width, height].map((side) => Math.floor(side * share));
  const canvas = new OffscreenCanvas(width, height);
  const drawing = canvas.getContext("2d", { willReadFrequently: true });
  drawing.imageSmoothingQuality = "high";
  drawing.fillStyle = "#fff";
  drawing.fillRect(0, 0, width, height);
  drawing.drawImage(picture, 0, 0, width, height);
  picture.close();
  return { pixels: drawing.getImageData(0, 0, width, height).data, width, height };
}
