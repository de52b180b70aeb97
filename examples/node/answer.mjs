// node answer.mjs BUNDLE PICTURE QUESTION: answers a question about a picture; prints {"ids": ..., "text": ...}.
//
// Everything here follows from docs/bundle-format.md, for the dialect ort.
import { readFileSync } from "node:fs";
import { join } from "node:path";

process.env.ORT_DISABLE_TELEMETRY ??= "1"; // ONNX Runtime 1.31 and later report to their maker otherwise
const { InferenceSession, Tensor } = (await import("onnxruntime-node")).default;
const { Template } = await import("@huggingface/jinja");
const { Tokenizer } = await import("@huggingface/tokenizers");
const { pixels, read } = await import("./pixels.mjs");

const MOST_TOKENS = 64; // of an answer
const [folder, picture, question] = process.argv.slice(2);
if (question === undefined) {
  console.error("node answer.mjs BUNDLE PICTURE QUESTION");
  process.exit(2);
}
const text = (file) => readFileSync(join(folder, file), "utf8");
const manifest = JSON.parse(text("lensmith.json"));
if (manifest.format_version !== 1) throw new Error("this example knows bundles of format version 1");
const { graphs, prompt, limits, options } = manifest;
// Without VNNI, ONNX Runtime's products of signed 8 bits overflow unless it is told.
const exact = { extra: { session: { x64quantprecision: "1" } } };
const open = (name) => InferenceSession.create(join(folder, graphs[name].file), exact);
const [encoder, decoder] = await Promise.all([open("vision_encoder"), open("decoder")]);

const int64 = (values, shape) => new Tensor("int64", BigInt64Array.from(values, BigInt), shape);
const float32 = (values, shape) => new Tensor("float32", values, shape);

// The picture: its pixels, its features.
const image = pixels(await read(picture), manifest);
const seen = { pixel_values: float32(image.values, image.shape) };
if (image.grid) seen.image_grid_thw = int64(image.grid, [1, 3]);
const features = await encoder.run(seen);

// Rows begin..end of all features; [taps, tokens, hidden] have taps in front.
function slice(feature, begin, end) {
  const [tokens, hidden] = feature.dims.slice(-2);
  const taps = feature.dims.length === 3 ? feature.dims[0] : 1;
  const out = new Float32Array(taps * (end - begin) * hidden);
  for (let tap = 0; tap < taps; tap++) {
    const rows = feature.data.subarray((tap * tokens + begin) * hidden, (tap * tokens + end) * hidden);
    out.set(rows, tap * (end - begin) * hidden);
  }
  return float32(out, [...feature.dims.slice(0, -2), end - begin, hidden]);
}

// The prompt: template, tokenizer, one token for each of the picture's; positions in time, height and width.
const messages = [{ role: "user", content: [{ type: "image" }, { type: "text", text: question }] }];
const words = new Template(text(prompt.template)).render({
  messages, tools: null, documents: null, add_generation_prompt: true, ...prompt.template_kwargs,
});
const tokenizer = new Tokenizer(JSON.parse(text(prompt.tokenizer)), {});
const begun = Boolean(prompt.bos_token) && words.startsWith(prompt.bos_token);
const imageToken = prompt.token_ids[prompt.tokens.image_token];
const mrope = graphs.decoder.inputs.position_ids.shape.length === 3;
const ids = [];
const positions = []; // [seq][3]
let next = 0; // the position behind
let imageBegin = 0;
let imageEnd = 0;
for (const id of tokenizer.encode(words, { add_special_tokens: !begun }).ids) {
  if (id !== imageToken) {
    ids.push(id);
    positions.push([next, next, next]);
    next += 1;
    continue;
  }
  imageBegin = ids.length;
  for (let i = 0; i < image.rows * image.columns; i++) {
    ids.push(id);
    const along = [0, Math.floor(i / image.columns), i % image.columns];
    positions.push(along.map((place) => next + (mrope ? place : i)));
  }
  imageEnd = ids.length;
  next += mrope ? Math.max(image.rows, image.columns) : imageEnd - imageBegin;
}
if (ids.length >= limits.context) throw new Error("the prompt is longer than the context");

// States begin as zeros; each step gives those behind it.
const capacity = Math.min(limits.context, ids.length + MOST_TOKENS);
const states = {};
for (const [name, port] of Object.entries(graphs.decoder.inputs)) {
  if (!name.startsWith("past") || name === "past_lengths") continue;
  const shape = port.shape.map((size) => ({ batch: 1, capacity })[size] ?? size);
  const count = shape.reduce((product, size) => product * size, 1);
  states[name] = port.dtype === "INT8" ? new Tensor("int8", new Int8Array(count), shape)
    : port.dtype === "FLOAT16" ? new Tensor("float16", new Uint16Array(count), shape)
    : float32(new Float32Array(count), shape);
}
const present = (name) => `present.${name.replace(/^past(_key_values)?\./, "")}`;
let length = 0;

async function append(step, places, begin, end) {
  const given = {
    input_ids: int64(step, [1, step.length]),
    position_ids: mrope
      ? int64([0, 1, 2].flatMap((axis) => places.map((place) => place[axis])), [3, 1, step.length])
      : int64(places.map((place) => place[0]), [1, step.length]),
    past_lengths: new Tensor("int32", [length], [1]),
    num_logits: int64([1], [1]),
    num_hidden_states: int64([1], [1]),
    image_features: slice(features.image_features, begin, end),
    deepstack_features: features.deepstack_features && slice(features.deepstack_features, begin, end),
    ...states,
  };
  const wanted = Object.keys(graphs.decoder.inputs).map((name) => [name, given[name]]);
  const made = await decoder.run(Object.fromEntries(wanted));
  for (const name of Object.keys(states)) states[name] = made[present(name)];
  length += step.length;
  return made.logits.data.reduce((best, value, id, all) => (value > all[best] ? id : best), 0);
}

// Steps: the prompt in pieces, then token by token.
let id;
for (let begin = 0; begin < ids.length; begin += options.prefill_chunk) {
  const end = Math.min(begin + options.prefill_chunk, ids.length);
  const [first, last] = [imageBegin, imageEnd].map((place) => Math.min(Math.max(place, begin), end) - imageBegin);
  id = await append(ids.slice(begin, end), positions.slice(begin, end), ...(first < last ? [first, last] : [0, 0]));
}
const answer = [id];
while (!prompt.eos_token_ids.includes(id) && answer.length < capacity - ids.length) {
  id = await append([id], [[next, next, next]], 0, 0);
  next += 1;
  answer.push(id);
}
console.log(JSON.stringify({ ids: answer, text: tokenizer.decode(answer, { skip_special_tokens: true }) }));
