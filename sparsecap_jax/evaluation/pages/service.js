const byId = (id) => document.getElementById(id);
const drop = byId("drop"), picture = byId("picture"), caption = byId("caption"), about = byId("about");
let latest = 0;

function show(text, below = "", problem = false) {
  caption.textContent = text;
  caption.className = problem ? "problem" : "";
  about.textContent = below;
}

async function send(file) {
  const number = ++latest, start = performance.now();
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.hidden = false;
  byId("hint").textContent = "Choose another photo";
  show("...");
  let answer, seconds;
  try {
    const type = file.type.startsWith("image/") ? file.type : "application/octet-stream";
    const response = await fetch("v1/caption", { method: "POST", body: file, headers: { "Content-Type": type } });
    answer = await response.json();
    seconds = (performance.now() - start) / 1000;
  } catch {
    answer = { message: "The service does not answer." };
  }
  if (number !== latest) return;
  if (answer.caption === undefined) show(answer.message, "", true);
  else show(answer.caption, `${seconds.toFixed(2)} s, of which captioning took ${answer.seconds.toFixed(2)} s`);
}

picture.addEventListener("error", () => { picture.hidden = true; });
byId("form").addEventListener("submit", (event) => event.preventDefault());
byId("file").addEventListener("change", (event) => {
  if (event.target.files.length) send(event.target.files[0]);
  event.target.value = "";
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
  });
}
