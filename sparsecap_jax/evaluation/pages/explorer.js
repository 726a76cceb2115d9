// Controls: what is searched, sorted, filtered and shown, kept in the address of the page.

const UNKNOWN = "words in no reference";
const LENGTH = "words";
const shownCount = (count) => count.toLocaleString("en");
// Scores in the order in which they are shown; those of single images leave out the last two.
const PLACES = ["CIDEr", "SPICE", "METEOR", "ROUGE_L", "Bleu_4", "Bleu_1", "Bleu_2", "Bleu_3"];
const find = (id) => document.getElementById(id);
const FIELDS = ["search", "sort", "of", "minus", "direction", "show", "split", "group", "size", "boxes"];

// A figure of a caption: one of its scores, or a count; null where there is none.
function figure(data, metric, model, image) {
  const { captions, unknown, scores } = data.models[model];
  if (captions[image] === null) return null;
  if (metric === UNKNOWN) return data.references[image].length ? unknown[image].length : null;
  if (metric === LENGTH) return captions[image] ? captions[image].split(" ").length : 0;
  return scores[metric] ? scores[metric][image] : null;
}

function start(data) {
  const everything = data.ids.map((_, image) => image);
  const measured = [...new Set(data.models.flatMap((model) => Object.keys(model.scores)))];
  measured.sort((a, b) => PLACES.indexOf(a) - PLACES.indexOf(b));
  const metrics = [...measured, UNKNOWN, LENGTH];
  const featured = measured.includes("CIDEr") ? "CIDEr" : metrics[0];
  const searched = everything.map((image) => searchText(data, image));
  const visible = new Set(data.models.keys());
  let chosen = everything;
  let page = 0;
  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        fillCard(data, target);
      }
    },
    { rootMargin: "600px" },
  );

  const value = (id) => (find(id).type === "checkbox" ? find(id).checked : find(id).value);
  const models = () => [...visible].sort((a, b) => a - b);

  function choose() {
    const terms = termsOf(value("search"));
    const [split, group, show] = [value("split"), value("group"), value("show")];
    const shown = models();
    chosen = everything.filter(
      (image) =>
        (!split || data.splits[image] === split) &&
        (!group || data.groups[image] === group) &&
        shown.some((model) => data.models[model].captions[image] !== null) &&
        (show !== "differ" || differ(data, shown, image)) &&
        (show !== "unknown" || shown.some((model) => data.models[model].unknown[image].length)) &&
        terms.every((term) => searched[image].includes(term)),
    );
    sortBy(value("sort"), Number(value("of")), value("minus"), value("direction") === "up" ? 1 : -1);
  }

  function sortBy(metric, model, minus, sign) {
    if (!metric) return;
    const keys = everything.map((image) => {
      const first = figure(data, metric, model, image);
      const second = minus === "" ? 0 : figure(data, metric, Number(minus), image);
      return first === null || second === null ? NaN : first - second;
    });
    // Images without the figure come last, whatever the direction.
    chosen.sort((a, b) => {
      if (Number.isNaN(keys[a]) || Number.isNaN(keys[b])) {
        return Number.isNaN(keys[a]) - Number.isNaN(keys[b]) || a - b;
      }
      return sign * (keys[a] - keys[b]) || a - b;
    });
  }

  function draw(moved) {
    const size = Number(value("size"));
    const pages = Math.max(1, Math.ceil(chosen.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    const images = chosen.slice(page * size, (page + 1) * size);
    const base = value("minus") === "" ? models()[0] ?? 0 : Number(value("minus"));
    const sort = value("sort");
    const listed = metrics.filter((name) => name === sort || PLACES.slice(0, 6).includes(name));
    const view = { models: models(), metrics: listed, base, sort, boxes: value("boxes") };
    near.disconnect();
    const cards = images.map((image) => makeCard(data, image, view));
    find("cards").replaceChildren(...cards);
    cards.forEach((card) => near.observe(card));
    const [first, last] = [page * size + 1, page * size + images.length];
    const all = chosen.length === everything.length ? "" : ` (of ${shownCount(everything.length)})`;
    find("status").textContent = images.length
      ? `Images ${first} to ${last} of ${shownCount(chosen.length)}${all}`
      : "No image fits: widen the search or the filters";
    for (const nav of document.querySelectorAll(".pages")) {
      nav.querySelector(".previous").disabled = page === 0;
      nav.querySelector(".next").disabled = page === pages - 1;
      nav.querySelector(".page").value = page + 1;
      nav.querySelector(".page").max = pages;
      nav.querySelector(".of").textContent = `of ${pages}`;
    }
    if (moved) {
      find("cards").focus({ preventScroll: true });
      find("status").scrollIntoView({ block: "start" });
    }
    drawMeans(data, chosen, value("sort") || featured);
    keepAddress();
  }

  function update() {
    page = 0;
    choose();
    draw(false);
  }

  function keepAddress() {
    const address = new URLSearchParams();
    for (const id of FIELDS) {
      if (value(id) !== defaults[id]) address.set(id, String(value(id)));
    }
    if (page) address.set("page", page + 1);
    const unseen = [...data.models.keys()].filter((model) => !visible.has(model));
    if (unseen.length) address.set("without", unseen.map((model) => data.models[model].name).join(","));
    const text = address.toString();
    // Some browsers refuse this to files.
    try { history.replaceState(null, "", text ? `#${text}` : "#"); } catch { /* not kept */ }
  }

  function readAddress() {
    const address = new URLSearchParams(location.hash.slice(1));
    for (const id of FIELDS) {
      if (!address.has(id)) continue;
      if (find(id).type === "checkbox") find(id).checked = address.get(id) === "true";
      else find(id).value = address.get(id);
      if (find(id).value === "" && find(id).options) find(id).value = defaults[id];
    }
    const without = (address.get("without") || "").split(",");
    data.models.forEach(({ name }, model) => without.includes(name) && visible.delete(model));
    page = Number(address.get("page") || 1) - 1 || 0;
  }

  addOptions("sort", metrics.map((name) => [name, name]));
  addOptions("of", data.models.map(({ name }, model) => [model, name]));
  addOptions("minus", data.models.map(({ name }, model) => [model, name]));
  for (const [id, names] of [["split", data.splits], ["group", data.groups]]) {
    const kinds = [...new Set(names)].filter(Boolean).sort();
    addOptions(id, kinds.map((name) => [name, name]));
    find(`${id}s`).hidden = kinds.length < 2;
  }
  const defaults = Object.fromEntries(FIELDS.map((id) => [id, value(id)]));
  readAddress();
  drawTable(data, measured, visible, update);
  const counted = (count, noun) => `${shownCount(count)} ${noun}${count === 1 ? "" : "s"}`;
  const told = [counted(everything.length, "image"), counted(data.models.length, "model")];
  find("about").textContent = told.join(", captions of ");
  if (matchMedia("(max-width: 46rem)").matches) {
    find("filters").open = find("models").open = false;
  }
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  const react = ({ target }) => {
    if (target.id !== "boxes") return update();
    for (const frame of document.querySelectorAll(".frame")) {
      frame.classList.toggle("none", !target.checked);
    }
    return keepAddress();
  };
  // Each field once: text on every key, selections when they are made.
  for (const kind of ["input", "change"]) {
    find("controls").addEventListener(kind, (event) => {
      if ((event.target.tagName === "SELECT") === (kind === "change")) react(event);
    });
  }
  find("again").addEventListener("click", () => {
    find("controls").reset();
    data.models.forEach((_, model) => visible.add(model));
    for (const box of document.querySelectorAll("#table input")) box.checked = true;
    update();
  });
  for (const nav of document.querySelectorAll(".pages")) {
    const turn = (to) => {
      page = to;
      draw(true);
    };
    nav.querySelector(".previous").addEventListener("click", () => turn(page - 1));
    nav.querySelector(".next").addEventListener("click", () => turn(page + 1));
    nav.querySelector(".page").addEventListener("change", (event) => turn(event.target.value - 1));
  }
  choose();
  draw(false);
  performance.mark("drawn");
}

const searchText = (data, image) =>
  [
    data.ids[image],
    ...data.references[image],
    ...data.models.map(({ captions }) => (captions[image] ?? "").replaceAll("\u200b", "")),
  ]
    .join("\n")
    .toLowerCase();

// Words, and phrases in quotes; an image must have all of them.
const termsOf = (text) =>
  [...text.toLowerCase().matchAll(/"([^"]+)"?|(\S+)/g)].map(([, phrase, word]) => phrase ?? word);

function differ(data, models, image) {
  const texts = models.map((model) => data.models[model].captions[image]);
  return new Set(texts.filter((text) => text !== null)).size > 1;
}

function addOptions(id, options) {
  for (const [key, name] of options) find(id).append(make("option", { value: key }, name));
}

// Models with the scores of all their images, as they were evaluated.
function drawTable(data, measured, visible, update) {
  const splits = new Set(data.models.flatMap(({ corpus }) => corpus.map(({ split }) => split)));
  const columns = ["images", "sparsity", "nonzeros", ...measured];
  const used = columns.filter((name) => data.models.some(({ corpus }) => corpus.some((row) => name in row)));
  const names = ["model", "", ...(splits.size > 1 ? ["split"] : []), ...used];
  const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
  head.children[1].id = "mean";
  const body = make("tbody");
  data.models.forEach(({ name, corpus }, model) => {
    const box = make("input", { type: "checkbox" });
    box.checked = visible.has(model);
    box.addEventListener("input", () => {
      if (box.checked) visible.add(model);
      else visible.delete(model);
      update();
    });
    const key = make("span", { class: `key model-${model % 8}`, "aria-hidden": "true" });
    const label = make("label", {}, box, key, name);
    corpus.forEach((row, number) => {
      const mean = make("td", number ? {} : { class: "mean", "data-model": model });
      const cells = [make("td", {}, ...(number ? [] : [label])), mean];
      if (splits.size > 1) cells.push(make("td", {}, row.split));
      for (const column of used) cells.push(cellOf(row, column));
      body.append(make("tr", {}, ...cells));
    });
  });
  const caption = make("caption", { class: "hidden" }, "Models and their scores");
  find("table").replaceChildren(caption, make("thead", {}, head), body);
}

function cellOf(row, column) {
  const value = row[column];
  if (value === undefined || value === null) return make("td", {}, "-");
  const counted = column === "images" || column === "nonzeros";
  const cell = make("td", {}, counted ? shownCount(value) : value.toFixed(3));
  const ends = row[`${column}_95%`];
  if (ends) cell.append(make("small", {}, `${ends[0].toFixed(3)} to ${ends[1].toFixed(3)}`));
  return cell;
}

function drawMeans(data, images, metric) {
  find("mean").textContent = `${metric}, mean of ${shownCount(images.length)} chosen images`;
  for (const cell of document.querySelectorAll("td.mean")) {
    const model = Number(cell.dataset.model);
    const values = images.map((image) => figure(data, metric, model, image));
    const known = values.filter((value) => value !== null);
    const sum = known.reduce((total, value) => total + value, 0);
    cell.textContent = known.length ? (sum / known.length).toFixed(3) : "-";
  }
}

(async () => {
  if (typeof DecompressionStream === "undefined") {
    find("about").textContent = "This browser is too old to unpack the page (DecompressionStream).";
    return;
  }
  start(await loadData());
})();
