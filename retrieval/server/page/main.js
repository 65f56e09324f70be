// The page of llm2clip-serve: what is asked, what was found, and keys. No library, no build step, nothing from another host.

import { imageAddress, json, openOriginal, thumbnail } from "./api.js";
import * as facets from "./facets.js";
import { imageTerm, isExpression, itemTerms, runsLeft, withTerm, withoutTerm } from "./query.js";
import { focusTile, makeTile, neighbour, tiles } from "./tiles.js";
import { cropped, hint, paint, setUpViewer, view, viewed } from "./viewer.js";

const EXAMPLES = [
  ["en", "a dog running on the beach"], ["zh", "雪山下的湖"], ["es", "una calle de noche"],
  ["ar", "قطة نائمة"], ["hi", "लाल फूल"], ["ja", "料理の皿"], ["de", "\"ein Strand\" - \"Menschen\""],
];
const PAGE = 60, MOST_BYTES = 16e6, CUT_OFF = 0.8;
const $ = (id) => document.getElementById(id);
const state = {
  images: new Map(),   // name in the query -> data URI
  regions: new Map(),  // name in the query -> [id, [x, y, width, height]]: images that the address can hold
  hits: [], cursor: null, asked: 0, language: null, cutOff: null, weaker: false,
  selected: new Map(), last: null,
};

// --- asking ----------------------------------------------------------------------------------------------------------

async function search({ more = false, push = true, facetsToo = true } = {}) {
  const query = $("query").value.trim(), typed = $("where").value.trim(), where = facets.combined(typed);
  if (push && !more) history.pushState(null, "", address(query, typed));
  const turn = ++state.asked;
  showTerms();
  $("examples").hidden = Boolean(query);
  document.title = query ? `${query.slice(0, 60)} – Image search` : "Image search";
  if (!more) say("Searching …", { busy: true });
  if (!more && facetsToo) facets.showFacets(typed, () => search()).catch(() => {});
  try {
    const answer = query ? await json("v1/search", await request(query, where, more)) : await listed(where, more);
    if (turn === state.asked) show(answer, { query, more });
  } catch (error) {
    if (turn !== state.asked) return;
    if (!more) { state.hits = []; state.cursor = null; draw(); }
    say(error.message, { bad: true });
  }
}

async function request(query, where, more) {
  const images = {};
  for (const [name, uri] of state.images) if (query.includes(imageTerm(name))) images[name] = uri;
  for (const [name, [id, box]] of state.regions) {
    if (query.includes(imageTerm(name)) && !images[name]) state.images.set(name, images[name] = await cropped(id, box));
  }
  showTerms();
  // The cut-off is for texts: scores of images mean something else.
  state.cutOff = isExpression(query) || state.weaker ? null : CUT_OFF;
  return {
    query, images, limit: PAGE, sort: $("sort").value, min_confidence: state.cutOff,
    ...(where && { where }), ...(more && { cursor: state.cursor }),
  };
}

async function listed(where, more) {
  const asked = new URLSearchParams({ limit: PAGE, ...(where && { where }), ...(more && { cursor: state.cursor }) });
  const answer = await json(`v1/items?${asked}`);
  return { ...answer, hits: answer.items, notes: [], language: null };
}

function show(answer, { query, more }) {
  state.cursor = answer.next_cursor;
  state.language = answer.language;
  state.hits = more ? state.hits.concat(answer.hits) : answer.hits;
  $("main").dir = runsLeft(query) ? "rtl" : "ltr";
  draw(more ? answer.hits : null);
  $("notes").replaceChildren(...answer.notes.map((note) => Object.assign(document.createElement("li"), { textContent: note })));
  $("notes").hidden = !answer.notes.length;
  const total = answer.total.toLocaleString(), images = answer.total === 1 ? "image" : "images";
  const cut = Boolean(query) && state.cutOff !== null, took = Object.values(answer.took_ms || {}).reduce((sum, part) => sum + part, 0);
  $("weaker").hidden = !cut || Boolean(state.cursor);
  $("sort").hidden = !query;
  if (cut) say(state.hits.length ? `${total} ${images}, ${Math.round(took)} ms` : "Nothing like that here.");
  else if (!answer.total) say(facets.combined($("where").value.trim()) ? "No image passes the filter." : "The index holds no image.");
  else if (query) say(`The best of ${total} ${images}, ${Math.round(took)} ms`);
  else say(`${total} ${images}, the newest first`);
  $("end").textContent = state.cursor || !state.hits.length ? "" : cut ? "No more above the cut-off." : "No more images.";
}

function say(text, { bad = false, busy = false } = {}) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
  $("hits").setAttribute("aria-busy", String(busy));
}

// --- the query -------------------------------------------------------------------------------------------------------

function ask(text) { $("query").value = text; state.weaker = false; grow(); scrollTo({ top: 0 }); search(); }

function addTerm(sign, term) { ask(withTerm($("query").value, sign, term)); }

function nameFor(wanted) {
  let name = wanted.replace(/["\\\s]/g, "_").slice(0, 60) || "image";
  while (state.images.has(name) || state.regions.has(name)) name = `_${name}`;
  return name;
}

function readImage(file) {
  if (!file?.type.startsWith("image/")) return say(`${file?.name || "This"} is not an image.`, { bad: true });
  if (file.size > MOST_BYTES) return say(`${file.name} is larger than 16 MB; use a smaller copy.`, { bad: true });
  const reader = new FileReader(), name = nameFor(file.name || "pasted");
  reader.onload = () => { state.images.set(name, reader.result); addTerm("+", imageTerm(name)); };
  reader.readAsDataURL(file);
}

// What is in the search as chips that take it out: images, and values of the menus.
function showTerms() {
  const query = $("query").value, chips = [];
  const chip = (label, source, remove) => {
    const button = document.createElement("button"), picture = source && document.createElement("img");
    if (picture) { picture.alt = ""; source.then((address) => { picture.src = address; }).catch(() => {}); }
    button.type = "button"; button.title = "Take out of the search"; button.dir = "auto";
    button.append(...(picture ? [picture] : []), label, " ×");
    button.onclick = remove;
    chips.push(button);
  };
  const removed = (term) => () => ask(withoutTerm($("query").value, term));
  for (const [name, uri] of state.images) {
    if (query.includes(imageTerm(name))) chip(state.regions.has(name) ? "part of an image" : name, Promise.resolve(uri), removed(imageTerm(name)));
  }
  for (const { term, id } of itemTerms(query)) chip(`image ${id}`, imageAddress(thumbnail(id, 160)), removed(term));
  for (const values of Object.values(facets.chosen)) {
    for (const value of values.keys()) chip(value.replace(/[/#]$/, ""), null, () => { values.delete(value); search(); });
  }
  $("terms").replaceChildren(...chips);
}

// --- the address -----------------------------------------------------------------------------------------------------

function address(query, typed) {
  const parameters = new URLSearchParams();
  if (query) parameters.set("q", query);
  if (typed) parameters.set("where", typed);
  if (state.weaker) parameters.set("weaker", "1");
  if ($("sort").value !== "score") parameters.set("sort", $("sort").value);
  facets.toAddress(parameters);
  for (const [name, [id, box]] of state.regions) {
    if (query.includes(imageTerm(name))) parameters.append("part", [id, ...box, name].join(","));
  }
  const text = parameters.toString();
  return text ? `?${text}` : location.pathname;
}

function fromAddress() {
  const parameters = new URLSearchParams(location.search);
  $("query").value = parameters.get("q") || "";
  $("where").value = parameters.get("where") || "";
  state.weaker = parameters.has("weaker");
  $("sort").value = parameters.get("sort") === "date" ? "date" : "score";
  facets.fromAddress(parameters);
  for (const part of parameters.getAll("part")) {
    const [id, x, y, width, height, ...name] = part.split(",");
    state.regions.set(name.join(","), [Number(id), [x, y, width, height].map(Number)]);
  }
  grow();
  search({ push: false });
}

// --- the grid --------------------------------------------------------------------------------------------------------

// All hits, or those that come after the ones that are there.
function draw(further = null) {
  const made = (further || state.hits).map((hit) => wired(makeTile(hit, state.language), hit));
  if (further) $("hits").append(...made); else { $("hits").replaceChildren(...made); state.last = null; }
  const first = $("hits").querySelector(".image");
  if (!further && first) first.tabIndex = 0;
  $("more").hidden = !state.cursor;
  showSelection();
}

function wired(item, hit) {
  const box = item.querySelector("input");
  for (const button of item.querySelectorAll("[data-do]")) button.onclick = () => actions[button.dataset.do](hit);
  box.checked = state.selected.has(hit.id);
  item.classList.toggle("selected", box.checked);
  box.onclick = (event) => select(hit, { on: box.checked, range: event.shiftKey });
  item.querySelector(".image").onclick = (event) => {
    if (event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (event.shiftKey) select(hit, { on: true, range: true }); else actions.view(hit);
  };
  return item;
}

const tileOf = (hit) => tiles().find((item) => Number(item.dataset.id) === hit?.id);
const hitOf = (item) => state.hits.find((hit) => hit.id === Number(item?.dataset.id));

const actions = {
  view: (hit) => view(hit, state.language),
  why: async (hit) => {
    const query = $("query").value.trim();
    if (!query) return hint("Search for something first; then this shows where the image matches.");
    hint("Looking …");
    try {
      const { images } = await request(query, "", false);
      const { cosines } = await json(`v1/items/${hit.id}/heat`, { query, images });
      if (viewed() === hit) paint(cosines);
    } catch (error) { hint(error.message); }
  },
  like: (hit) => { $("viewer").close(); ask(`item:${hit.id}`); },
  plus: (hit) => { $("viewer").close(); addTerm("+", `item:${hit.id}`); },
  minus: (hit) => { $("viewer").close(); addTerm("-", `item:${hit.id}`); },
  select: (hit) => select(hit, { on: !state.selected.has(hit.id) }),
  copy: (hit) => copy(hit.uri, hit.uri),
  original: (hit) => openOriginal(hit.id).catch((error) => say(error.message, { bad: true })),
  region: (hit, box) => {
    const name = nameFor(`part-of-${hit.id}`);
    state.regions.set(name, [hit.id, box]);
    $("viewer").close();
    ask(imageTerm(name));
  },
  turn: (way) => {
    const next = hitOf(neighbour(tileOf(viewed()), way));
    if (next && next !== viewed()) actions.view(next);
    if (next === state.hits.at(-1) && state.cursor) search({ more: true });
  },
  closed: (hit) => focusTile(tileOf(hit)),
};

// --- selection -------------------------------------------------------------------------------------------------------

function select(hit, { on, range = false }) {
  const all = state.hits, here = all.indexOf(hit), last = range ? all.indexOf(state.last) : -1;
  for (const one of last < 0 ? [hit] : all.slice(Math.min(here, last), Math.max(here, last) + 1)) {
    if (on) state.selected.set(one.id, one); else state.selected.delete(one.id);
  }
  state.last = hit;
  showSelection();
}

function showSelection() {
  for (const item of tiles()) {
    const on = state.selected.has(Number(item.dataset.id));
    item.classList.toggle("selected", on);
    item.querySelector("input").checked = on;
  }
  $("selection").hidden = !state.selected.size;
  $("count").textContent = `${state.selected.size} selected`;
}

async function copy(text, what) {
  try { await navigator.clipboard.writeText(text); say(`Copied ${what}.`); } catch { say("The browser does not allow copying here.", { bad: true }); }
}

function download(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
}

// --- keys ------------------------------------------------------------------------------------------------------------

const RIGHT = { ltr: "next", rtl: "before" }, LEFT = { ltr: "before", rtl: "next" };
const ways = () => ({ ArrowRight: RIGHT[$("main").dir || "ltr"], ArrowLeft: LEFT[$("main").dir || "ltr"], ArrowDown: "down", ArrowUp: "up" });
const ON_IMAGE = { Enter: "view", m: "like", w: "why", "+": "plus", "-": "minus", y: "copy", o: "original", " ": "select" };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("dialog").open) return;
  const target = event.target, item = target.closest?.("#hits li"), hit = viewed() || hitOf(item);
  if (target.matches("textarea, input:not([type=checkbox])")) {
    if (event.key === "Escape") target.blur();
    if (event.key === "ArrowDown" && target.id === "query" && !target.value.includes("\n")) { event.preventDefault(); focusTile(tiles()[0]); }
    return;
  }
  if (event.key === "Escape") for (const menu of document.querySelectorAll("details.menu[open]")) menu.open = false;
  if (event.key === "/" && !viewed()) { event.preventDefault(); $("query").focus(); $("query").select(); return; }
  if (event.key === "?") return showKeys();
  const way = ways()[event.key];
  if (way && viewed()) { event.preventDefault(); actions.turn({ down: "next", up: "before" }[way] || way); return; }
  if (way && !target.closest("details")) { event.preventDefault(); focusTile(neighbour(item, way)); return; }
  const name = ON_IMAGE[event.key];
  const onButton = target.closest("button, label") && (!viewed() || ["Enter", " "].includes(event.key));
  if (!name || (name === "why" && !viewed()) || !hit || onButton) return;
  event.preventDefault();
  if (name === "view" && viewed()) $("viewer").close();
  else if (name === "select" && event.shiftKey) select(hit, { on: true, range: true });
  else actions[name](hit);
});

// --- dialogs ---------------------------------------------------------------------------------------------------------

function showDialog(title, body) {
  $("dialog-title").textContent = title;
  $("dialog-body").replaceChildren(body);
  $("dialog").showModal();
}

function showKeys() { showDialog("Keys", $("keys").content.cloneNode(true)); }

async function showErrors() {
  const { errors } = await json("v1/errors?limit=500"), table = document.createElement("table");
  for (const { key, reason } of errors) {
    const row = table.insertRow();
    row.insertCell().textContent = key;
    row.insertCell().textContent = reason;
  }
  showDialog(errors.length ? `Images that could not be read: ${errors.length}` : "Every image could be read", table);
}

// --- wiring ----------------------------------------------------------------------------------------------------------

function grow() { $("query").style.height = "auto"; $("query").style.height = `${$("query").scrollHeight}px`; }

$("form").onsubmit = (event) => { event.preventDefault(); ask($("query").value); };
$("query").oninput = grow;
$("query").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask($("query").value); } };
$("where").onchange = $("sort").onchange = () => search();
$("weaker").onclick = () => { state.weaker = true; search(); };
$("pick").onclick = () => $("file").click();
$("file").onchange = () => { readImage($("file").files[0]); $("file").value = ""; };
$("more").onclick = () => { if (state.cursor) search({ more: true }); };
new IntersectionObserver(([entry]) => { if (entry.isIntersecting && state.hits.length) $("more").click(); }, { rootMargin: "1200px" }).observe($("more"));
$("copy").onclick = () => copy([...state.selected.values()].map((hit) => hit.uri).join("\n"), `${state.selected.size} paths`);
$("export").onclick = () => download(JSON.stringify([...state.selected.values()], null, 2), "images.json");
$("like-all").onclick = () => ask([...state.selected.keys()].slice(0, 32).map((id) => `item:${id}`).join(" + "));
$("clear").onclick = () => { state.selected.clear(); showSelection(); };
$("errors").onclick = () => showErrors().catch((error) => say(error.message, { bad: true }));
$("help").onclick = showKeys;
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("dragover", (event) => { event.preventDefault(); $("box").classList.add("over"); });
document.addEventListener("dragleave", () => $("box").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("box").classList.remove("over");
  if (event.dataTransfer.files.length) readImage(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const [file] = event.clipboardData.files;
  if (file) { event.preventDefault(); readImage(file); }
});
addEventListener("popstate", fromAddress);
$("examples").append("Try ", ...EXAMPLES.map(([language, text]) => {
  const button = document.createElement("button");
  button.type = "button"; button.lang = language; button.dir = "auto"; button.textContent = text;
  button.onclick = () => ask(text);
  return button;
}));
json("v1/models").then(({ data: [model] }) => { $("about").textContent = `Encoder ${model.id}.`; }).catch(() => {});
setUpViewer(actions);
fromAddress();
