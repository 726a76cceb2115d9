// Keeps the files of the page, whose names and version come before these lines, for use offline.

const PREFIX = "sparsecap:";
const OWN = `${PREFIX}${registration.scope}:`;
const CACHE = `${OWN}${VERSION}`;
const KNOWN = new Set(FILES.map((name) => new URL(name, registration.scope).href));
const PAGE = new URL("./", registration.scope).href;

async function keep() {
  const cache = await caches.open(CACHE);
  await cache.addAll([...KNOWN].map((url) => new Request(url, { cache: "no-cache" })));
  await skipWaiting();
}

async function drop() {
  const names = await caches.keys();
  const old = names.filter((name) => name.startsWith(OWN) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
  await clients.claim();
}

async function answer(request, url) {
  const cache = await caches.open(CACHE);
  return (await cache.match(url)) ?? fetch(request);
}

addEventListener("install", (event) => event.waitUntil(keep()));
addEventListener("activate", (event) => event.waitUntil(drop()));
addEventListener("fetch", (event) => {
  const { request } = event;
  const url = request.url.split(/[?#]/)[0];
  const page = url === `${PAGE}index.html` ? PAGE : url;
  if (request.method === "GET" && KNOWN.has(page)) event.respondWith(answer(request, page));
});
