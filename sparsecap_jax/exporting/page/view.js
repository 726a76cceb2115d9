// What the page shows of a caption: its words, and the light on the regions of each.

const SIDE = 32; // cells of the light on each side
const DARK = 0.74;
const STEP = 200; // milliseconds between the words of a new caption
const FADE = 180;

// How much light falls on each cell: weights of regions by area, blurred, the most being 1.
function lightOf(weights, boxes) {
  let light = new Float32Array(SIDE * SIDE);
  weights.forEach((weight, region) => {
    const [left, top, right, bottom] = boxes[region];
    const density = weight / Math.max((right - left) * (bottom - top), 1e-6);
    for (let y = 0; y < SIDE; y++) {
      const row = (y + 0.5) / SIDE;
      if (row < top || row > bottom) continue;
      for (let x = 0; x < SIDE; x++) {
        const column = (x + 0.5) / SIDE;
        if (column >= left && column <= right) light[y * SIDE + x] += density;
      }
    }
  });
  for (let pass = 0; pass < 2; pass++) light = blurred(blurred(light, 1), SIDE);
  const most = Math.max(...light);
  return most > 0 ? light.map((value) => value / most) : light.fill(1);
}

function blurred(light, stride) {
  const reach = 2;
  return light.map((_, at) => {
    const place = Math.floor(at / stride) % SIDE;
    let [sum, count] = [0, 0];
    for (let step = -reach; step <= reach; step++) {
      if (place + step < 0 || place + step >= SIDE) continue;
      sum += light[at + step * stride];
      count += 1;
    }
    return sum / count;
  });
}

const isWhole = ([left, top, right, bottom]) => (right - left) * (bottom - top) > 0.8;

// Where a box lies, in words.
function placeOf(box) {
  if (isWhole(box)) return "the whole photo";
  const [left, top, right, bottom] = box;
  const third = (low, high, names) => names[Math.min(2, Math.floor(((low + high) / 2) * 3))];
  const row = third(top, bottom, ["top", "", "bottom"]);
  const column = third(left, right, ["left", "", "right"]);
  return row || column ? `the ${[row, column].filter(Boolean).join(" ")}` : "the middle";
}

export class CaptionView {
  constructor({ caption, canvas, frame, share, where }) {
    Object.assign(this, { caption, frame, share, where });
    this.drawing = canvas.getContext("2d");
    this.shown = new Float32Array(SIDE * SIDE).fill(1);
    this.calm = matchMedia("(prefers-reduced-motion: reduce)");
    caption.addEventListener("keydown", (event) => this.walk(event));
    caption.addEventListener("pointerleave", () => this.leave());
    caption.addEventListener("focusout", () => this.leave());
  }

  clear() {
    clearTimeout(this.timer);
    this.words = [];
    this.caption.replaceChildren();
    this.light(null);
  }

  // Shows a caption word by word, the photo lit where each came from.
  show(words, boxes) {
    this.clear();
    this.boxes = boxes;
    this.words = words.map(({ word, weights }, number) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = word;
      button.className = "new";
      button.tabIndex = number ? -1 : 0;
      const heaviest = weights.indexOf(Math.max(...weights));
      const one = { button, weights, heaviest, light: lightOf(weights, boxes) };
      button.title = this.told(one);
      button.setAttribute("aria-description", button.title);
      const on = () => {
        clearTimeout(this.timer);
        this.finish();
        this.light(one);
      };
      for (const name of ["pointerenter", "focus", "click"]) button.addEventListener(name, on);
      return one;
    });
    this.caption.replaceChildren(...this.words.flatMap(({ button }, i) => (i ? [" ", button] : [button])));
    if (this.calm.matches) this.finish();
    else this.play(0);
  }

  play(number) {
    const word = this.words[number];
    if (!word) {
      this.timer = setTimeout(() => this.light(null), 2 * STEP);
      return;
    }
    word.button.classList.remove("new");
    this.light(word);
    this.timer = setTimeout(() => this.play(number + 1), STEP);
  }

  finish() {
    for (const { button } of this.words) button.classList.remove("new");
  }

  leave() {
    if (!this.caption.querySelector(":hover, :focus")) this.light(null);
  }

  // Arrow keys go from word to word.
  walk(event) {
    const now = this.words.findIndex(({ button }) => button === document.activeElement);
    const last = this.words.length - 1;
    const next = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: last }[event.key];
    if (next === undefined || now < 0) return;
    event.preventDefault();
    const { button } = this.words[Math.min(Math.max(next, 0), last)];
    for (const word of this.words) word.button.tabIndex = word.button === button ? 0 : -1;
    button.focus();
  }

  told({ weights, heaviest }) {
    if (heaviest < 0) return "";
    const share = Math.round(100 * weights[heaviest]);
    return `most weight on ${placeOf(this.boxes[heaviest])}, ${share}%`;
  }

  // Lights a word and its regions; without one, the whole photo.
  light(word) {
    for (const { button } of this.words ?? []) button.classList.toggle("on", button === word?.button);
    this.frame.hidden = !word || word.heaviest < 0 || isWhole(this.boxes[word.heaviest]);
    this.where.textContent = word ? `“${word.button.textContent}”: ${this.told(word)}` : "";
    if (!this.frame.hidden) {
      const [left, top, right, bottom] = this.boxes[word.heaviest];
      const sides = [top, 1 - right, 1 - bottom, left];
      this.frame.style.inset = sides.map((side) => `${(100 * side).toFixed(2)}%`).join(" ");
      this.share.textContent = `${Math.round(100 * word.weights[word.heaviest])}%`;
    }
    this.fade(word ? word.light : new Float32Array(SIDE * SIDE).fill(1));
  }

  fade(target) {
    cancelAnimationFrame(this.frameRequest);
    const start = performance.now();
    const from = this.shown;
    const draw = (now) => {
      const share = this.calm.matches ? 1 : Math.min(Math.max((now - start) / FADE, 0), 1);
      this.shown = from.map((value, i) => value + share * (target[i] - value));
      const pixels = this.drawing.createImageData(SIDE, SIDE);
      this.shown.forEach((value, i) => (pixels.data[4 * i + 3] = 255 * DARK * (1 - value)));
      this.drawing.putImageData(pixels, 0, 0);
      if (share < 1) this.frameRequest = requestAnimationFrame(draw);
    };
    this.frameRequest = requestAnimationFrame(draw);
  }
}
