// The page: takes photos, hands them to the worker, and shows what comes back.

import { CaptionView } from "./view.js";

const find = (id) => document.getElementById(id);
const view = new CaptionView({
  caption: find("caption"),
  canvas: find("light"),
  frame: find("frame"),
  share: find("share"),
  where: find("where"),
});
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e6 ? 2 : 1)} MB`;
const milliseconds = (time) => (time < 1000 ? `${Math.round(time)} ms` : `${(time / 1000).toFixed(1)} s`);
const PARTS = {
  "captioner.bin": "captioner",
  "extractor.bin": "extractor",
  "runtime.bin": "ONNX Runtime",
  "runtime.js": "ONNX Runtime",
};

let latest = 0;
let about;
let ready = false;

// A worker from the network would be free of the page's policy; one that the page makes is not.
const address = new URL("worker.js", import.meta.url).href;
const code = new Blob([`import ${JSON.stringify(address)};`], { type: "text/javascript" });
const worker = new Worker(URL.createObjectURL(code), { type: "module" });

function tell(text, kind = "") {
  find("message").textContent = text;
  find("message").className = kind;
  find("message").hidden = !text;
}

function take(file) {
  if (!file) return;
  latest += 1;
  view.clear();
  const photo = find("photo");
  URL.revokeObjectURL(photo.src);
  photo.src = URL.createObjectURL(file);
  photo.alt = "The chosen photo";
  find("picture").hidden = false;
  find("empty").hidden = true;
  for (const id of ["caption", "where", "copy"]) find(id).hidden = true;
  tell(ready ? "Looking" : "Waiting for the models", "busy");
  worker.postMessage({ id: latest, file });
}

function captioned({ captions, words, times }) {
  const text = captions[0]?.text ?? "";
  find("announced").textContent = text ? `Caption: ${text}` : "No caption was found.";
  find("seeing").textContent = milliseconds(times.photo + times.extractor);
  find("writing").textContent = milliseconds(times.search);
  if (!text) return tell("No caption was found.", "problem");
  tell("");
  find("photo").alt = text;
  for (const id of ["caption", "where"]) find(id).hidden = false;
  find("copy").hidden = !navigator.clipboard; // browsers offer it to https:// and localhost alone
  view.show(words, about.boxes);
}

function failed(reason) {
  find("picture").hidden = true;
  find("empty").hidden = false;
  tell(`This file cannot be described: ${reason}`, "problem");
}

function loaded({ bytes }) {
  if (!about) return;
  const names = ["captioner.bin", "extractor.bin", "runtime.bin"];
  const total = names.reduce((sum, name) => sum + about.bytes[name], 0);
  find("progress").value = bytes / total;
  const come = `${(bytes / 1e6).toFixed(1)} of ${megabytes(total)}`;
  find("state").textContent = bytes < total ? come : "Starting";
}

function broken(reason) {
  find("ready").removeAttribute("aria-busy");
  find("state").textContent = "Cannot start";
  find("progress").hidden = true;
  tell(`The models cannot be loaded: ${reason}`, "problem");
}

// Lets the files of a newer export take the place of those that this page has loaded.
function letIn(registration) {
  registration.waiting?.postMessage("take over");
  registration.installing?.addEventListener("statechange", () => letIn(registration));
}

async function begun() {
  ready = true;
  find("ready").removeAttribute("aria-busy"); // so that what follows is told, and no count of bytes
  find("progress").hidden = true;
  find("state").textContent = "Ready";
  const registration = await navigator.serviceWorker?.register("sw.js").catch(() => null);
  if (!registration) return;
  registration.addEventListener("updatefound", () => letIn(registration));
  letIn(registration);
  await navigator.serviceWorker.ready;
  find("state").textContent = "Ready, also offline";
  find("offline").textContent = "Saved on this device: the page works without a network.";
}

worker.addEventListener("message", ({ data }) => {
  if (data.type === "loaded") loaded(data);
  if (data.type === "ready") begun();
  if (data.type === "broken") broken(data.reason);
  if (data.id !== latest) return;
  if (data.type === "captioned") captioned(data);
  if (data.type === "failed") failed(data.reason);
});
worker.addEventListener("error", ({ message }) => broken(message || "a script did not load"));

function row(table, ...cells) {
  const line = find(table).tBodies[0].insertRow();
  for (const cell of cells) line.insertCell().append(cell);
}

function describe() {
  const { tensors, bytes } = about;
  const sum = (name) => tensors.reduce((total, tensor) => total + tensor[name], 0);
  const zeros = (size, kept) => `${((100 * (size - kept)) / Math.max(size, 1)).toFixed(1)}%`;
  find("size").textContent = megabytes(bytes["captioner.bin"]);
  find("sparsity").textContent = zeros(sum("size"), sum("kept"));
  const parts = {};
  for (const [name, size] of Object.entries(bytes)) {
    const part = Object.hasOwn(PARTS, name) ? PARTS[name] : "page and example photos";
    parts[part] = (parts[part] ?? 0) + size;
  }
  const labels = { captioner: `captioner ${about.name}`, extractor: `extractor ${about.extractor}` };
  for (const [part, size] of Object.entries(parts)) row("files", labels[part] ?? part, megabytes(size));
  row("files", "all", megabytes(Object.values(bytes).reduce((total, size) => total + size, 0)));
  for (const { name, size, kept } of tensors) {
    row("tensors", name, size.toLocaleString("en"), zeros(size, kept));
  }
  row("tensors", "all that may be pruned", sum("size").toLocaleString("en"), zeros(sum("size"), sum("kept")));
}

function offer(name) {
  const button = document.createElement("button");
  const picture = document.createElement("img");
  button.type = "button";
  picture.src = name;
  picture.alt = name.replace(/^.*\/|\.\w+$/g, "");
  button.append(picture);
  button.addEventListener("click", async () => {
    try {
      take(await (await fetch(name)).blob());
    } catch (error) {
      tell(`The example cannot be loaded: ${error.message}`, "problem");
    }
  });
  find("examples").append(button);
}

find("photo").addEventListener("load", ({ target }) => {
  const ratio = target.naturalWidth / target.naturalHeight;
  find("picture").style.setProperty("--ratio", ratio.toFixed(4));
});
for (const id of ["file", "camera"]) {
  find(id).addEventListener("change", ({ target }) => {
    take(target.files[0]);
    target.value = "";
  });
}
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  take(event.dataTransfer.files[0]);
});
addEventListener("paste", ({ clipboardData }) => {
  take([...clipboardData.files].find(({ type }) => type.startsWith("image/")));
});
find("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(find("photo").alt);
  find("copy").textContent = "Copied";
  setTimeout(() => (find("copy").textContent = "Copy caption"), 1500);
});

fetch("site.json")
  .then((answer) => answer.json())
  .then((answer) => {
    about = answer;
    describe();
    about.examples.forEach(offer);
  })
  .catch((error) => broken(error.message));
