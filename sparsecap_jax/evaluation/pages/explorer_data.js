// Blocks of the page, which hold deflated bytes, and what is in them.

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < bytes.length; place += 1) bytes[place] = binary.charCodeAt(place);
  return bytes;
}

async function inflated(text) {
  const stream = new Blob([bytesOf(text)]).stream();
  const bytes = stream.pipeThrough(new DecompressionStream("deflate"));
  return new Response(bytes).arrayBuffer();
}

// The page is shown while it still loads: waits until a block is there, and whole.
async function blockText(name) {
  for (;;) {
    const block = document.getElementById(name);
    const loaded = document.readyState !== "loading";
    if (loaded || (block && block.nextElementSibling)) return block ? block.textContent : null;
    await new Promise((done) => setTimeout(done, 20));
  }
}

const kept = new Map();

function once(name, read) {
  if (!kept.has(name)) kept.set(name, blockText(name).then(read));
  return kept.get(name);
}

const loadData = async () =>
  JSON.parse(new TextDecoder().decode(await inflated(await blockText("data"))));

async function pictureOf(data, image) {
  if (data.links) return data.links[image];
  const name = `pictures-${Math.floor(image / data.chunk)}`;
  const lines = await once(name, (text) => (text === null ? [] : text.split("\n")));
  const line = lines[image % data.chunk];
  return line ? `data:image/webp;base64,${line}` : null;
}

// {boxes: [[x1, y1, x2, y2]], attention: [{words, regions, weights} of each model]}
async function regionsOf(data, image) {
  const name = `regions-${Math.floor(image / data.chunk)}`;
  const all = await once(name, async (text) => unpack(await inflated(text), data.models.length));
  return all[image % data.chunk];
}

// The layout is that of `pack_regions`.
function unpack(buffer, models) {
  const view = new DataView(buffer);
  const images = [];
  let place = 0;
  const uint16 = () => view.getUint16((place += 2) - 2, true);
  while (place < buffer.byteLength) {
    const count = uint16();
    place += 1;
    const boxes = Array.from({ length: count }, () =>
      Array.from({ length: 4 }, () => uint16() / 65535),
    );
    const attention = Array.from({ length: models }, () => {
      const [words, regions] = [uint16(), uint16()];
      const weights = new Uint8Array(buffer, place, words * regions);
      place += weights.length;
      return { words, regions, weights };
    });
    images.push({ boxes, attention });
  }
  return images;
}

// Weights of the regions for one word, from 0 to 1.
function weightsOf({ regions, weights }, word) {
  const row = weights.subarray(word * regions, (word + 1) * regions);
  return Array.from(row, (root) => (root / 255) ** 2);
}
