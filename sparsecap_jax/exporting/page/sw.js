// Keeps the files of the page, whose names and version come before these lines, for use offline.

const PREFIX = "sparsecap:";
const OWN = `${PREFIX}${registration.scope}:`;
const CACHE = `${OWN}${VERSION}`;
const KNOWN = new Set(FILES.map((name) => new URL(name, registration.scope).href));
const PAGE = new URL("./", registration.scope).href;

async function keep() {
  const cache = await caches.open(CACHE);
  await cache.addAll([...KNOWN].map((url) => new Request(url, { cache: "no-cache" })));
}

async function drop() {
  const names = await caches.keys();
  const old = names.filter((name) => name.startsWith(OWN) && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
  await clients.claim();
}

// A page that has loaded asks for the files of a newer export. Of several open pages, others may still
// load older ones: then these stay until all pages are closed, or one that is alone asks again.
async function takeOver() {
  const pages = await clients.matchAll({ type: "window", includeUncontrolled: true });
  const open = pages.filter(({ url }) => url.startsWith(registration.scope));
  if (open.length < 2) await skipWaiting();
}

async function answer(request, url) {
  const cache = await caches.open(CACHE);
  return (await cache.match(url)) ?? fetch(request);
}

addEventListener("install", (event) => event.waitUntil(keep()));
addEventListener("activate", (event) => event.waitUntil(drop()));
addEventListener("message", (event) => event.waitUntil(takeOver()));
addEventListener("fetch", (event) => {
  const { request } = event;
  const url = request.url.split(/[?#]/)[0];
  const page = url === `${PAGE}index.html` ? PAGE : url;
  if (request.method === "GET" && KNOWN.has(page)) event.respondWith(answer(request, page));
});
