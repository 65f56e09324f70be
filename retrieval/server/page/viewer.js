// One image at a time: large, with what is known of it, and a box to drag for a part of it.

import { imageAddress, thumbnail } from "./api.js";
import { captionOf, dateOf, dateSource, nameOf, scoreOf } from "./tiles.js";

const $ = (id) => document.getElementById(id);
const LARGE = 1280, LEAST = 8;  // pixels: of the image asked for, and of a box that is no slip
let shown = null, actions = {};

export const viewed = () => ($("viewer").open ? shown : null);

export function setUpViewer(given) {
  actions = given;
  $("actions").append(...[
    ["why", "Why?", "w"], ["like", "Similar", "m"], ["plus", "Add", "+"], ["minus", "Subtract", "-"], ["select", "Select", "space"],
    ["copy", "Copy path", "y"], ["original", "Original", "o"],
  ].map(([name, label, key]) => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = label; button.title = `${label} (${key})`;
    button.onclick = () => actions[name](shown);
    return button;
  }));
  $("before").onclick = () => actions.turn("before");
  $("after").onclick = () => actions.turn("next");
  $("close").onclick = () => $("viewer").close();
  $("viewer").addEventListener("close", () => actions.closed(shown));
  $("viewer").addEventListener("click", (event) => { if (event.target === $("viewer")) $("viewer").close(); });
  setUpRegion();
}

// Paint where the image matches: none below a cosine of 0, and the full colour at the best one or at 0.3.
export function paint(cosines) {
  const canvas = $("heat"), image = drawn(), outer = $("stage").getBoundingClientRect();
  const most = Math.max(0.3, ...cosines.flat());
  [canvas.height, canvas.width] = [cosines.length, cosines[0].length];
  const pixels = canvas.getContext("2d").createImageData(canvas.width, canvas.height);
  cosines.flat().forEach((cosine, place) => pixels.data.set([255, 90, 0, 255 * Math.max(0, cosine / most) ** 1.5], 4 * place));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  Object.assign(canvas.style, { left: `${image.left - outer.left}px`, top: `${image.top - outer.top}px`, width: `${image.width}px`, height: `${image.height}px` });
  canvas.hidden = false;
  $("hint").textContent = "What matches the search is coloured; strong colour is a strong match.";
}

export function hint(text) { $("hint").textContent = text; }

export async function view(hit, language) {
  shown = hit;
  const picture = $("large");
  picture.removeAttribute("src");
  picture.alt = captionOf(hit, language) || nameOf(hit);
  $("caption").textContent = captionOf(hit, language) || "";
  $("region").hidden = true;
  $("heat").hidden = true;
  $("facts").replaceChildren(...facts(hit).flatMap(([term, told]) => {
    const name = document.createElement("dt"), value = document.createElement("dd");
    name.textContent = term; value.textContent = told; value.dir = "auto";
    return [name, value];
  }));
  if (!$("viewer").open) { $("viewer").showModal(); $("viewer").focus(); }  // on no button: Enter closes
  $("hint").textContent = "Drag a box on the image to search for that part of it.";
  try {
    const address = await imageAddress(thumbnail(hit.id, LARGE));
    if (shown === hit) { picture.src = address; await picture.decode(); }
  } catch { if (shown === hit) $("hint").textContent = `The original is missing: ${hit.uri}`; }
}

function facts(hit) {
  const told = [["Name", nameOf(hit)], ["Path", hit.uri]];
  if (hit.time) told.push(["Date", `${dateOf(hit)}, ${hit.time.slice(11, 16)} (${dateSource(hit)})`]);
  told.push(["Size", `${hit.width} × ${hit.height}`]);
  if (typeof hit.score === "number") told.push(["Match", `${scoreOf(hit)} (rank ${hit.rank}, score ${hit.score.toFixed(3)})`]);
  if (hit.duplicates?.length) told.push(["Copies", hit.duplicates.map((copy) => copy.uri).join("\n")]);
  for (const [name, value] of Object.entries(hit.metadata || {})) {
    if (["string", "number", "boolean"].includes(typeof value)) told.push([name, String(value)]);
  }
  return told;
}

// Where the image is drawn within its element, which is as large as the stage.
export function drawn() {
  const picture = $("large"), box = picture.getBoundingClientRect(), padding = 2 * parseFloat(getComputedStyle(picture).paddingLeft);
  const scale = Math.min((box.width - padding) / picture.naturalWidth, (box.height - padding) / picture.naturalHeight);
  const width = picture.naturalWidth * scale, height = picture.naturalHeight * scale;
  return { left: box.left + (box.width - width) / 2, top: box.top + (box.height - height) / 2, width, height };
}

function setUpRegion() {
  const stage = $("stage"), region = $("region");
  let from = null;
  const at = (event) => {
    const image = drawn(), within = (value, most) => Math.min(most, Math.max(0, value));
    return [within(event.clientX - image.left, image.width), within(event.clientY - image.top, image.height)];
  };
  const box = (to) => ({ x: Math.min(from[0], to[0]), y: Math.min(from[1], to[1]), width: Math.abs(from[0] - to[0]), height: Math.abs(from[1] - to[1]) });
  stage.onpointerdown = (event) => {
    if (!$("large").naturalWidth || event.button) return;
    from = at(event);
    stage.setPointerCapture(event.pointerId);
    event.preventDefault();
  };
  stage.onpointermove = (event) => {
    if (!from) return;
    const { x, y, width, height } = box(at(event)), image = drawn(), outer = stage.getBoundingClientRect();
    Object.assign(region.style, { left: `${image.left - outer.left + x}px`, top: `${image.top - outer.top + y}px`, width: `${width}px`, height: `${height}px` });
    region.hidden = false;
  };
  stage.onpointercancel = () => { from = null; region.hidden = true; };
  stage.onpointerup = (event) => {
    if (!from) return;
    const { x, y, width, height } = box(at(event)), image = drawn();
    from = null; region.hidden = true;
    if (width < LEAST || height < LEAST) return;
    actions.region(shown, [x / image.width, y / image.height, width / image.width, height / image.height].map((part) => Number(part.toFixed(4))));
  };
}

// A part of an image of the index as a data URI. The box is x, y, width and height as shares of the image.
export async function cropped(id, [x, y, width, height]) {
  const picture = new Image();
  picture.src = await imageAddress(thumbnail(id, LARGE));
  await picture.decode();
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * picture.naturalWidth));
  canvas.height = Math.max(1, Math.round(height * picture.naturalHeight));
  canvas.getContext("2d").drawImage(picture, -Math.round(x * picture.naturalWidth), -Math.round(y * picture.naturalHeight));
  return canvas.toDataURL("image/png");
}
