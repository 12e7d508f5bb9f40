// Classify images with a file that takes raw images, in the browser; the page is a static folder.

import * as ort from "./ort.wasm.min.mjs";

const SHOWN = 5;
const MOST_THREADS = 4;
const MOST_PIXELS = 24e6; // more takes more memory than a phone gives a page
const ROWS = 256; // drawn at once, for some browsers draw nothing on a large canvas
const [SHAPE, SEEN] = [128, 16]; // as cnndeploy.read_image tells what is lost on a transparent ground

const [status, files, drop, said, results] = ["status", "files", "drop", "said", "results"].map((id) =>
  document.getElementById(id),
);

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) {
    throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  }
  return answer;
}

// Returns the network: its session, its labels, and how many channels its images have.
async function load() {
  const { inputs, manifest } = await (await fetched("model.json")).json();
  if (!manifest || inputs?.[0].dtype !== "uint8") {
    throw new Error("model.onnx takes no raw images; export it with cnndeploy export --format onnx --input image");
  }
  // Browsers give threads only to pages that share nothing with other sites.
  ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
  const bytes = await (await fetched("model.onnx")).arrayBuffer();
  const session = await ort.InferenceSession.create(new Uint8Array(bytes));
  const channels = inputs[0].shape.length === 4 ? 3 : 1;
  // The first call takes many times as long, so it is not that of the user's first image.
  const shape = inputs[0].shape.map((size, axis) => (axis === 0 ? 1 : Number.isInteger(size) ? size : 32));
  const black = new Uint8Array(shape.reduce((product, size) => product * size));
  await session.run({ image: new ort.Tensor("uint8", black, shape) }, ["probabilities"]);
  return { session, labels: manifest.labels, name: manifest.architecture, channels };
}

// Returns pixels as uint8 (1, height, width) or (1, height, width, 3), upright; transparent ones become black.
async function pixelsOf(file, channels) {
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = image;
  if (width * height > MOST_PIXELS) {
    throw new Error(`it has ${width} x ${height} pixels; make it smaller first, at most ${MOST_PIXELS / 1e6} megapixels`);
  }
  const pixels = new Uint8Array(width * height * channels);
  const canvas = new OffscreenCanvas(width, Math.min(ROWS, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let [clear, opaque, dark, light, next] = [255, 0, 255, 0, 0]; // least and greatest alpha, and value on black
  for (let top = 0; top < height; top += ROWS) {
    context.clearRect(0, 0, width, ROWS);
    context.drawImage(image, 0, -top);
    const rgba = context.getImageData(0, 0, width, Math.min(ROWS, height - top)).data;
    for (let place = 0; place < rgba.length; place += 4) {
      const alpha = rgba[place + 3];
      let [red, green, blue] = [rgba[place], rgba[place + 1], rgba[place + 2]];
      if (alpha < 255) {
        [red, green, blue] = [red, green, blue].map((value) => Math.round((value * alpha) / 255));
      }
      clear = Math.min(clear, alpha);
      opaque = Math.max(opaque, alpha);
      dark = Math.min(dark, red, green, blue);
      light = Math.max(light, red, green, blue);
      if (channels === 1) {
        pixels[next++] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16; // as Pillow computes grey
      } else {
        pixels[next++] = red;
        pixels[next++] = green;
        pixels[next++] = blue;
      }
    }
  }
  image.close();
  if (opaque === 0 || (opaque - clear >= SHAPE && light - dark < SEEN)) {
    throw new Error("on black, which transparent pixels become, nothing is left of it; put it on white first");
  }
  return new ort.Tensor("uint8", pixels, channels === 1 ? [1, height, width] : [1, height, width, 3]);
}

// Shows what the network says of an image file.
async function classify(network, file) {
  const item = element("li");
  item.dataset.name = file.name;
  results.prepend(item);
  try {
    const image = await pixelsOf(file, network.channels);
    const start = performance.now();
    const { probabilities } = await network.session.run({ image }, ["probabilities"]);
    const milliseconds = performance.now() - start;
    const best = [...probabilities.data.keys()].sort((a, b) => probabilities.data[b] - probabilities.data[a]);
    const rows = best.slice(0, SHOWN).map((place) => {
      const value = probabilities.data[place];
      return element(
        "tr",
        {},
        element("th", { scope: "row", textContent: network.labels?.[place] ?? `class ${place}` }),
        element("td", {}, element("meter", { value, ariaHidden: "true" })),
        element("td", { textContent: `${(100 * value).toFixed(1)}%` }),
      );
    });
    const [label, , share] = [...rows[0].children].map((cell) => cell.textContent);
    Object.assign(item.dataset, { label, probability: probabilities.data[best[0]] });
    const picture = element("img", { alt: "", src: URL.createObjectURL(file) });
    picture.onload = () => URL.revokeObjectURL(picture.src);
    item.append(picture, element("p", { textContent: `${file.name} · ${milliseconds.toFixed(1)} ms` }));
    item.append(element("table", {}, element("tbody", {}, ...rows)));
    said.textContent = `${file.name}: ${label}, ${share}`;
  } catch (error) {
    item.dataset.failure = error.message;
    said.textContent = `${file.name} cannot be classified: ${error.message}`;
    item.append(element("p", { textContent: said.textContent }));
  }
}

let network = null;
let last = Promise.resolve(); // one image after the other

function take(list) {
  if (network === null) {
    said.textContent = "The network is not loaded yet.";
  } else if (list.length === 0) {
    said.textContent = "That was no image file.";
  }
  for (const file of network === null ? [] : list) {
    last = last.then(() => classify(network, file));
  }
}

files.addEventListener("change", () => {
  take([...files.files]);
  files.value = ""; // so that the same file can be chosen again
});
// Anywhere on the page, from the start: else the browser would leave it for the image.
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (event.relatedTarget === null) {
    drop.classList.remove("over");
  }
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take([...event.dataTransfer.files]);
});

try {
  network = await load();
  files.disabled = false;
  const threads = ort.env.wasm.numThreads;
  status.textContent = `${network.name} is ready; WebAssembly with ${threads} thread${threads === 1 ? "" : "s"}.`;
} catch (error) {
  status.role = "alert";
  status.className = "failed";
  status.textContent = `The network cannot be loaded: ${error.message}`;
}
