// Classify images with a file that takes raw images, in the browser; the page is a static folder.

import * as ort from "./ort.wasm.min.mjs";

const SHOWN = 5;
const MOST_PIXELS = 8192; // a side
const [status, files, drop, results] = ["status", "files", "drop", "results"].map((id) => document.getElementById(id));

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
  const [{ dtype, shape }] = inputs;
  if (dtype !== "uint8") {
    throw new Error("model.onnx takes no raw images; export it with --input image");
  }
  const bytes = await (await fetched("model.onnx")).arrayBuffer();
  const session = await ort.InferenceSession.create(new Uint8Array(bytes));
  return { session, labels: manifest.labels, name: manifest.architecture, channels: shape.length === 4 ? 3 : 1 };
}

// Returns pixels as uint8 (1, height, width) or (1, height, width, 3), upright; transparent ones become black.
async function pixelsOf(file, channels) {
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = image;
  if (Math.max(width, height) > MOST_PIXELS) {
    throw new Error(`it has ${width} x ${height} pixels; make it at most ${MOST_PIXELS} a side first`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  context.drawImage(image, 0, 0);
  image.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const pixels = new Uint8Array(width * height * channels);
  for (let pixel = 0; pixel < width * height; pixel++) {
    const [red, green, blue] = [rgba[4 * pixel], rgba[4 * pixel + 1], rgba[4 * pixel + 2]];
    if (channels === 1) {
      pixels[pixel] = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16; // as Pillow computes grey
    } else {
      pixels[3 * pixel] = red;
      pixels[3 * pixel + 1] = green;
      pixels[3 * pixel + 2] = blue;
    }
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
        element("td", {}, element("meter", { value })),
        element("td", { textContent: `${(100 * value).toFixed(1)}%` }),
      );
    });
    Object.assign(item.dataset, { label: rows[0].firstChild.textContent, probability: probabilities.data[best[0]] });
    const picture = element("img", { alt: "", src: URL.createObjectURL(file) });
    picture.onload = () => URL.revokeObjectURL(picture.src);
    item.append(picture, element("p", { textContent: `${file.name} · ${milliseconds.toFixed(1)} ms` }));
    item.append(element("table", {}, element("tbody", {}, ...rows)));
  } catch (error) {
    item.dataset.failure = error.message;
    item.append(element("p", { textContent: `${file.name} cannot be classified: ${error.message}` }));
  }
}

function listen(network) {
  let last = Promise.resolve(); // one image after the other
  const take = (list) => {
    for (const file of list) {
      last = last.then(() => classify(network, file));
    }
  };
  files.addEventListener("change", () => {
    take(files.files);
    files.value = ""; // so that the same file can be chosen again
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") {
        take(event.dataTransfer.files);
      }
    });
  }
  files.disabled = false;
}

try {
  const network = await load();
  listen(network);
  const threads = crossOriginIsolated ? "several threads" : "one thread";
  status.textContent = `${network.name} is ready; WebAssembly with ${threads}.`;
} catch (error) {
  status.textContent = `The network cannot be loaded: ${error.message}`;
  status.className = "failed";
}
