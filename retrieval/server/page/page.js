// The page of llm2clip-serve. No library, no build step, nothing from another host.

const EXAMPLES = [
  ["en", "a dog running on the beach"], ["zh", "雪山下的湖"], ["es", "una calle de noche"],
  ["ar", "قطة نائمة"], ["hi", "लाल फूल"], ["ja", "料理の皿"], ["de", "\"ein Strand\" - \"Menschen\""],
];
const PAGE = 60;
const $ = (id) => document.getElementById(id);
const state = { images: {}, cursor: null, hits: [], asked: 0, last: -1, selected: new Set() };
let token = sessionStorage.getItem("token") || "";

async function api(path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = body ? { method: "POST", body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } } : { headers };
  let response;
  try { response = await fetch(path, options); } catch { throw new Error("The server cannot be reached. Is it still running?"); }
  if (response.status === 401) {
    token = prompt("This server needs its token:") || "";
    sessionStorage.setItem("token", token);
    if (token) return api(path, body);
  }
  if (!response.ok) {
    const told = await response.json().catch(() => null);
    throw new Error(told?.error?.message || `The server answered with status ${response.status}.`);
  }
  return response;
}

// --- query -----------------------------------------------------------------------------------------------------------

function quoted(text) { return `"${text.replace(/["\\]/g, "\\$&")}"`; }

function isExpression(text) { return /^\s*(?:[+-]\s+)?(?:(?:\d+(?:\.\d*)?|\.\d+)\*\s*\S|"|(?:image|item):)/.test(text); }

function withTerm(sign, term) {
  const text = $("query").value.trim();
  const before = !text ? "" : isExpression(text) ? text : quoted(text);
  $("query").value = before ? `${before} ${sign} ${term}` : sign === "-" ? `- ${term}` : term;
  grow();
  search();
}

function addImage(name, uri) {
  let unique = name.replace(/["\\\s]/g, "_").slice(0, 60) || "image";
  while (unique in state.images) unique = `_${unique}`;
  state.images[unique] = uri;
  withTerm("+", `image:${quoted(unique)}`);
}

async function readImage(file) {
  if (!file || !file.type.startsWith("image/")) return say(`${file?.name || "this"} is not an image`, true);
  if (file.size > 16e6) return say(`${file.name} is larger than 16 MB; use a smaller copy`, true);
  const reader = new FileReader();
  reader.onload = () => addImage(file.name || "pasted", reader.result);
  reader.readAsDataURL(file);
}

function showTerms() {
  $("terms").replaceChildren(...Object.entries(state.images).filter(([name]) => $("query").value.includes(quoted(name))).map(([name, uri]) => {
    const chip = document.createElement("button");
    const picture = document.createElement("img");
    picture.src = uri; picture.alt = "";
    chip.type = "button"; chip.title = "Take this image out of the query";
    chip.append(picture, name);
    chip.onclick = () => {
      const term = `image:${quoted(name)}`.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
      $("query").value = $("query").value.replace(new RegExp(`\\s*[+-]?\\s*${term}`), "").replace(/^\s*\+\s*/, "");
      delete state.images[name];
      search();
    };
    return chip;
  }));
}

// --- search ----------------------------------------------------------------------------------------------------------

async function search({ more = false, push = true } = {}) {
  const query = $("query").value.trim(), where = $("where").value.trim();
  showTerms();
  if (!query) return reset();
  if (push && !more) history.pushState(null, "", address(query, where));
  const asked = ++state.asked;
  say(more ? "" : "Searching …");
  const named = Object.fromEntries(Object.entries(state.images).filter(([name]) => query.includes(quoted(name))));
  const body = { query, images: named, limit: PAGE };
  if (where) body.where = where;
  if (more) body.cursor = state.cursor;
  try {
    const answer = await (await api("v1/search", body)).json();
    if (asked !== state.asked) return;
    show(answer, more);
  } catch (error) {
    if (asked === state.asked) { if (!more) state.hits = []; draw(); say(error.message, true); }
  }
}

function address(query, where) {
  const asked = new URLSearchParams({ q: query });
  if (where) asked.set("where", where);
  if ($("sort").value !== "relevance") asked.set("sort", $("sort").value);
  return `?${asked}`;
}

function reset() {
  state.hits = []; state.cursor = null; state.asked++;
  draw(); say(""); $("examples").hidden = false;
  history.replaceState(null, "", location.pathname);
}

function show(answer, more) {
  state.cursor = answer.next_cursor;
  state.hits = more ? state.hits.concat(answer.hits) : answer.hits;
  if (!more) state.selected.clear();
  $("examples").hidden = true;
  draw(more);
  const took = Object.values(answer.took_ms).reduce((sum, part) => sum + part, 0);
  const shown = state.hits.length.toLocaleString(), total = answer.total.toLocaleString();
  say(!state.hits.length ? (answer.total ? "Nothing found." : "No image passes the filter.")
    : `${shown} of ${total} images, best first; ${Math.round(took)} ms${state.cursor ? "" : "; no more"}`);
  for (const note of answer.notes) $("status").append(document.createElement("br"), note);
}

function say(text, bad = false) { $("status").textContent = text; $("status").classList.toggle("bad", bad); }

// --- tiles -----------------------------------------------------------------------------------------------------------

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); thumbnail(entry.target); }
}, { rootMargin: "400px" });

async function thumbnail(link) {
  const picture = link.querySelector("img"), path = `v1/items/${link.dataset.id}/thumbnail?size=320`;
  try {
    if (!token) { picture.src = path; await picture.decode(); return; }
    picture.src = URL.createObjectURL(await (await api(path)).blob());
  } catch {
    link.classList.add("lost");
    link.textContent = `The original is missing: ${link.dataset.uri}`;
  }
}

function draw(more = false) {
  const hits = [...state.hits];
  const byDate = $("sort").value === "date";
  if (byDate) hits.sort((a, b) => (dateOf(b) || "").localeCompare(dateOf(a) || ""));
  const from = more && !byDate ? $("hits").children.length : 0;
  const tiles = hits.slice(from).map(tile);
  if (from) $("hits").append(...tiles); else $("hits").replaceChildren(...tiles);
  $("more").hidden = !state.cursor;
  showSelection();
}

function dateOf(hit) { return typeof hit.time === "string" ? hit.time : null; }

function tile(hit) {
  const item = $("tile").content.cloneNode(true).firstElementChild, article = item.firstElementChild;
  const name = hit.key.split("#").pop().split("/").pop(), link = item.querySelector(".image");
  article.dataset.id = link.dataset.id = hit.id;
  link.dataset.uri = hit.uri;
  link.href = `v1/items/${hit.id}/image`;
  link.querySelector("img").alt = hit.caption || name;
  item.querySelector(".caption").textContent = hit.caption || name;
  item.querySelector(".caption").title = hit.uri;
  item.querySelector(".rank").textContent = hit.rank;
  item.querySelector(".date").textContent = (dateOf(hit) || "").slice(0, 10);
  item.querySelector(".folder").textContent = hit.caption ? name : hit.key.split("/").slice(0, -1).join("/");
  item.querySelector(".score").textContent = hit.score.toFixed(3);
  item.querySelector(".like").onclick = () => like(hit.id);
  item.querySelector(".plus").onclick = () => withTerm("+", `item:${hit.id}`);
  item.querySelector(".minus").onclick = () => withTerm("-", `item:${hit.id}`);
  const box = item.querySelector("input");
  box.checked = state.selected.has(hit.id);
  article.classList.toggle("selected", box.checked);
  box.onclick = (event) => select(article, box.checked, event.shiftKey);
  if (token) link.onclick = async (event) => {
    event.preventDefault();
    open(URL.createObjectURL(await (await api(link.getAttribute("href"))).blob()), "_blank", "noopener");
  };
  seen.observe(link);
  return item;
}

function like(id) { $("query").value = `item:${id}`; grow(); search(); scrollTo({ top: 0 }); }

// --- selection -------------------------------------------------------------------------------------------------------

function articles() { return [...document.querySelectorAll("#hits article")]; }

function select(article, on, range) {
  const all = articles(), here = all.indexOf(article);
  const [first, end] = range && state.last >= 0 ? [Math.min(here, state.last), Math.max(here, state.last)] : [here, here];
  for (const one of all.slice(first, end + 1)) {
    const id = Number(one.dataset.id);
    if (on) state.selected.add(id); else state.selected.delete(id);
    one.classList.toggle("selected", on);
    one.querySelector("input").checked = on;
  }
  state.last = here;
  showSelection();
}

function showSelection() {
  $("selection").hidden = !state.selected.size;
  $("count").textContent = `${state.selected.size} selected`;
}

function chosen() { return state.hits.filter((hit) => state.selected.has(hit.id)); }

async function copy(text, what) {
  try { await navigator.clipboard.writeText(text); say(`Copied ${what}.`); } catch { say("The browser does not allow copying here.", true); }
}

function download(text, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
}

// --- keyboard --------------------------------------------------------------------------------------------------------

function move(step) {
  const all = articles(), here = all.indexOf(document.activeElement?.closest("article"));
  const next = all[Math.max(0, Math.min(all.length - 1, here + step))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

function columns() {
  const all = articles();
  const top = all[0]?.getBoundingClientRect().top;
  return Math.max(1, all.findIndex((one) => one.getBoundingClientRect().top > top + 4));
}

const KEYS = {
  ArrowRight: () => move(document.dir === "rtl" ? -1 : 1), ArrowLeft: () => move(document.dir === "rtl" ? 1 : -1),
  ArrowDown: () => move(columns()), ArrowUp: () => move(-columns()),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("dialog").open) return;
  const typing = event.target.matches("textarea, input:not([type=checkbox]), select");
  const article = document.activeElement?.closest("article");
  if (typing) { if (event.key === "Escape") event.target.blur(); return; }
  if (event.key === "/") { event.preventDefault(); $("query").focus(); $("query").select(); return; }
  if (KEYS[event.key] && state.hits.length) { event.preventDefault(); KEYS[event.key](); return; }
  if (!article || event.target !== article) return;
  const id = Number(article.dataset.id), hit = state.hits.find((one) => one.id === id);
  const actions = {
    Enter: () => article.querySelector(".image").click(), m: () => like(id), y: () => copy(hit.uri, hit.uri),
    "+": () => withTerm("+", `item:${id}`), "-": () => withTerm("-", `item:${id}`),
    " ": () => select(article, !state.selected.has(id), event.shiftKey),
  };
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
});

// --- wiring ----------------------------------------------------------------------------------------------------------

function grow() { $("query").style.height = "auto"; $("query").style.height = `${$("query").scrollHeight}px`; }

function fromAddress() {
  const asked = new URLSearchParams(location.search);
  $("query").value = asked.get("q") || "";
  $("where").value = asked.get("where") || "";
  $("sort").value = asked.get("sort") === "date" ? "date" : "relevance";
  $("filters").open = Boolean($("where").value);
  grow();
  search({ push: false });
}

async function showErrors() {
  const { errors } = await (await api("v1/errors?limit=500")).json();
  $("dialog-title").textContent = errors.length ? `${errors.length} images could not be read` : "Every image could be read";
  const table = document.createElement("table");
  for (const { key, reason } of errors) {
    const row = table.insertRow();
    row.insertCell().textContent = key;
    row.insertCell().textContent = reason;
  }
  $("dialog-body").replaceChildren(table);
  $("dialog").showModal();
}

$("form").onsubmit = (event) => { event.preventDefault(); search(); };
$("query").oninput = grow;
$("query").onkeydown = (event) => { if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); search(); } };
$("sort").onchange = () => { draw(); history.replaceState(null, "", address($("query").value.trim(), $("where").value.trim())); };
$("pick").onclick = () => $("file").click();
$("file").onchange = () => { readImage($("file").files[0]); $("file").value = ""; };
$("more").onclick = () => search({ more: true });
$("copy").onclick = () => copy(chosen().map((hit) => hit.uri).join("\n"), `${state.selected.size} paths`);
$("export").onclick = () => download(JSON.stringify(chosen(), null, 2), "hits.json");
$("clear").onclick = () => { state.selected.clear(); draw(); };
$("errors").onclick = () => showErrors().catch((error) => say(error.message, true));
document.addEventListener("dragover", (event) => { event.preventDefault(); $("box").classList.add("over"); });
document.addEventListener("dragleave", () => $("box").classList.remove("over"));
document.addEventListener("drop", (event) => { event.preventDefault(); $("box").classList.remove("over"); readImage(event.dataTransfer.files[0]); });
document.addEventListener("paste", (event) => { const file = [...event.clipboardData.files][0]; if (file) { event.preventDefault(); readImage(file); } });
addEventListener("popstate", fromAddress);
$("examples").replaceChildren(...EXAMPLES.map(([language, text]) => {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button"; button.lang = language; button.dir = "auto"; button.textContent = text;
  button.onclick = () => { $("query").value = text; grow(); search(); };
  item.append(button);
  return item;
}));
api("v1/models").then((response) => response.json()).then(({ data: [model] }) => { $("about").textContent = `Encoder ${model.id}.`; }).catch(() => {});
fromAddress();
