// Classify images in Node.js, with ONNX Runtime and a file that takes raw images:
//
//     cnndeploy export lenet.pt --format onnx --input image
//     cnndeploy inspect lenet.onnx --json > lenet.json
//     npm install --ignore-scripts        # a script would fetch libraries for GPUs
//     node classify.mjs lenet.onnx lenet.json shoe.png bag.png

import { readFile } from "node:fs/promises";
import ort from "onnxruntime-node";
import { PNG } from "pngjs";

// Reads a PNG file as grey levels, uint8 (1, height, width); transparent pixels become black, the background.
async function readImage(path) {
  const file = await readFile(path);
  let picture;
  try {
    picture = PNG.sync.read(file);
  } catch (error) {
    throw new Error(`${path} cannot be read as a PNG file: ${error.message}`);
  }
  const { width, height, depth, data } = picture;
  if (depth > 8) {
    throw new Error(`${path} has more than 8 bits a channel; convert it to 8 bits first`);
  }
  const grey = new Uint8Array(width * height);
  for (let pixel = 0; pixel < grey.length; pixel++) {
    const [red, green, blue, alpha] = data.subarray(4 * pixel, 4 * pixel + 4);
    grey[pixel] = Math.round(((0.299 * red + 0.587 * green + 0.114 * blue) * alpha) / 255);
  }
  return new ort.Tensor("uint8", grey, [1, height, width]);
}

async function main(modelPath, factsPath, imagePaths) {
  const { inputs, manifest } = JSON.parse(await readFile(factsPath, "utf8"));
  if (inputs[0].dtype !== "uint8") {
    throw new Error(`${modelPath} takes no raw images; export it with --input image`);
  }
  const session = await ort.InferenceSession.create(modelPath);
  for (const path of imagePaths) {
    const { probabilities } = await session.run({ image: await readImage(path) }, ["probabilities"]);
    const best = probabilities.data.indexOf(Math.max(...probabilities.data));
    console.log(`${path}: ${manifest.labels[best]} ${probabilities.data[best].toFixed(6)}`);
  }
}

const [modelPath, factsPath, ...imagePaths] = process.argv.slice(2);
if (imagePaths.length === 0) {
  console.error("usage: node classify.mjs MODEL.onnx MODEL.json IMAGE.png ...");
  process.exitCode = 2;
} else {
  main(modelPath, factsPath, imagePaths).catch((error) => {
    console.error(`Error: ${error.message}`);
    process.exitCode = 1;
  });
}
