// One card an image: picture with regions, references, captions, scores; attention word by word.

const SVG = "http://www.w3.org/2000/svg";

// Text is only ever added as text: captions may hold anything.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function shape(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const rectangle = ([x1, y1, x2, y2], attributes) =>
  shape("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, ...attributes });

const signed = (value) => `${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(3)}`;

function makeCard(data, image, view) {
  const id = `image-${image}`;
  const svg = shape("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": true });
  const frame = make("div", { class: view.boxes ? "frame" : "frame none" }, svg);
  const more = [data.splits[image], data.groups[image]].filter(Boolean).join(", ");
  const caption = make(
    "figcaption",
    {},
    make("h2", { id }, `Image ${data.ids[image]}`),
    make("span", { class: "split" }, more ? ` (${more})` : ""),
    make("p", { class: "attended" }),
  );
  const texts = make("div", { class: "texts" }, references(data.references[image]));
  const card = make(
    "li",
    { class: "card", "data-image": image },
    make(
      "article",
      { "aria-labelledby": id },
      make("figure", {}, make("div", { class: "stage" }, frame), caption),
      texts,
    ),
  );
  for (const model of view.models) texts.append(panel(data, image, model, view));
  return card;
}

function references(lines) {
  const list = make("ul", {}, ...lines.map((line) => make("li", {}, line)));
  const body = lines.length ? list : make("p", { class: "missing" }, "none");
  return make("section", { class: "references" }, make("h3", {}, "References"), body);
}

function panel(data, image, model, view) {
  const { name, captions, unknown } = data.models[model];
  const section = make("section", { class: `model model-${model % 8}`, "data-model": model });
  section.append(make("h3", {}, name));
  const text = captions[image];
  if (text === null) {
    section.append(make("p", { class: "missing" }, "no caption"));
    return section;
  }
  const caption = make("p", { class: "caption", dir: "auto" });
  const wrong = new Set(unknown[image]);
  const words = [];
  let place = 0;
  text.split(" ").forEach((word, number) => {
    if (number) caption.append(" ");
    const whole = make("span", { class: "word", "data-word": number });
    for (const part of word.split("\u200b")) {
      if (wrong.has(place)) words.push(part);
      whole.append(wrong.has(place) ? make("mark", {}, part) : part);
      place += 1;
    }
    caption.append(whole);
  });
  section.append(text ? caption : make("p", { class: "missing" }, "empty caption"));
  if (words.length) {
    section.append(make("p", { class: "hidden" }, `In no reference: ${words.join(", ")}.`));
  }
  section.append(scoreList(data, image, model, view));
  return section;
}

function scoreList(data, image, model, view) {
  const list = make("dl");
  for (const metric of view.metrics) {
    const value = figure(data, metric, model, image);
    if (value === null) continue;
    const shown = metric === UNKNOWN || metric === LENGTH ? String(value) : value.toFixed(3);
    const row = make("div", { class: metric === view.sort ? "by" : null });
    row.append(make("dt", {}, metric), make("dd", {}, shown));
    list.append(row);
    const other = model === view.base ? null : figure(data, metric, view.base, image);
    if (other !== null && metric !== UNKNOWN && metric !== LENGTH) {
      const more = value - other;
      const kind = more > 0 ? "better" : "worse";
      if (Math.abs(more) >= 5e-4) row.append(make("dd", { class: kind }, signed(more)));
    }
  }
  return list;
}

// What needs the picture is made when a card comes near the screen.
async function fillCard(data, card) {
  const image = Number(card.dataset.image);
  const frame = card.querySelector(".frame");
  const found = pictureOf(data, image);
  found.then((url) => {
    if (!url) return frame.classList.add("empty");
    const [first] = data.references[image];
    const picture = make("img", { alt: first || `image ${data.ids[image]}`, decoding: "async" });
    picture.addEventListener("load", () => {
      const ratio = picture.naturalWidth / picture.naturalHeight;
      frame.style.aspectRatio = ratio;
      frame.style.width = `${Math.min(1, ratio / (4 / 3)) * 100}%`;
    });
    picture.addEventListener("error", () => {
      picture.remove();
      frame.classList.add("empty");
    });
    picture.src = url;
    frame.prepend(picture);
    return undefined;
  });
  const regions = await regionsOf(data, image);
  card.regions = regions;
  showBoxes(card);
  const attended = regions.attention.some(({ words }) => words);
  if (!attended && !regions.boxes.length && !(await found)) card.classList.add("bare");
  for (const section of card.querySelectorAll(".model")) {
    const { words } = regions.attention[Number(section.dataset.model)];
    const caption = section.querySelector(".caption");
    if (words && caption) addWalk(data, card, section, caption, words);
  }
}

function showBoxes(card) {
  const rows = card.regions.boxes.map((box) => rectangle(box, { class: "box" }));
  card.querySelector("svg").replaceChildren(...rows);
  card.querySelector(".share")?.remove();
}

// Attention by pointer, over or on a word, and by keyboard, on a slider along the words.
function addWalk(data, card, section, caption, words) {
  const model = Number(section.dataset.model);
  const { name } = data.models[model];
  const label = `Attention of ${name}, word by word`;
  const walk = make("input", { type: "range", class: "walk", min: 1, max: words, "aria-label": label });
  walk.value = 1;
  const show = (word) => {
    walk.value = word + 1;
    walk.setAttribute("aria-valuetext", attend(card, caption, model, word));
  };
  const rest = () => {
    if (document.activeElement !== walk) leave(card);
  };
  const wordAt = (event) => event.target.closest(".word");
  caption.classList.add("lit");
  caption.addEventListener("pointerover", (event) => {
    if (wordAt(event)) show(Number(wordAt(event).dataset.word));
  });
  caption.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") rest();
  });
  caption.addEventListener("click", (event) => {
    if (wordAt(event)) show(Number(wordAt(event).dataset.word));
  });
  walk.addEventListener("focus", () => show(Number(walk.value) - 1));
  walk.addEventListener("input", () => show(Number(walk.value) - 1));
  walk.addEventListener("blur", () => leave(card));
  caption.after(walk);
}

// Shows where a model looked for a word, and returns it in words.
function attend(card, caption, model, word) {
  for (const lit of card.querySelectorAll(".on")) lit.classList.remove("on");
  const spans = caption.querySelectorAll(".word");
  spans[word].classList.add("on");
  const weights = weightsOf(card.regions.attention[model], word);
  const ranked = weights.map((_, region) => region).sort((a, b) => weights[b] - weights[a]);
  const share = (region) => `${Math.round(weights[region] * 100)}%`;
  const seen = ranked.slice(0, 3).filter((region) => weights[region] >= 0.005);
  const listed = seen.map((region) => `${share(region)} region ${region + 1}`);
  const text = `${spans[word].textContent}: ${listed.join(", ")}`;
  card.querySelector(".attended").textContent = text;
  const { boxes } = card.regions;
  card.querySelector(".share")?.remove();
  if (boxes.length === weights.length) {
    spotlight(card, boxes, weights, boxes[ranked[0]], share(ranked[0]));
  } else {
    bars(card, weights);
  }
  return text;
}

function leave(card) {
  for (const lit of card.querySelectorAll(".on")) lit.classList.remove("on");
  card.querySelector(".attended").textContent = "";
  showBoxes(card);
}

// Darkens the picture where no region has weight, and frames the heaviest one.
function spotlight(card, boxes, weights, most, share) {
  const top = Math.max(...weights, 1e-6);
  const holes = boxes.map((box, region) =>
    rectangle(box, { fill: "#000", "fill-opacity": (weights[region] / top).toFixed(3) }),
  );
  const everything = [0, 0, 1, 1];
  const id = `light-${card.dataset.image}`;
  card.querySelector("svg").replaceChildren(
    shape("mask", { id }, rectangle(everything, { fill: "#fff" }), ...holes),
    rectangle(everything, { fill: "#000", "fill-opacity": 0.66, mask: `url(#${id})` }),
    rectangle(most, { class: "edge" }),
    rectangle(most, { class: "most" }),
  );
  const tag = make("span", { class: "share", "aria-hidden": "true" }, share);
  tag.style.left = `${Math.min(most[0], 0.84) * 100}%`;
  tag.style.top = `${Math.min(most[1], 0.9) * 100}%`;
  card.querySelector(".frame").append(tag);
}

// Regions without boxes: a bar for the weight of each.
function bars(card, weights) {
  const width = 1 / weights.length;
  const rows = weights.map((weight, region) =>
    rectangle([region * width, 1 - 0.95 * weight, (region + 0.8) * width, 1], { class: "bar" }),
  );
  card.querySelector("svg").replaceChildren(...rows);
}
