// Menus of years, folders and types: what there is, how many, and what is chosen.

import { json } from "./api.js";

const $ = (id) => document.getElementById(id);
const KINDS = { years: "Year", folders: "Folder", types: "Type" };
let asked = 0;

// Chosen values: kind -> Map of value to the filter that its images pass. One folder at a time, within which the next are shown.
export const chosen = { years: new Map(), folders: new Map(), types: new Map() };

const anyOf = (values) => (values.size ? `(${[...values.values()].join(" OR ")})` : "");

// One filter of what is typed and what is chosen, without one of the kinds.
export function combined(typed, without) {
  const parts = Object.keys(KINDS).filter((kind) => kind !== without).map((kind) => anyOf(chosen[kind]));
  return [typed && `(${typed})`, ...parts].filter(Boolean).join(" AND ");
}

export function toAddress(parameters) {
  for (const kind in KINDS) for (const [value, where] of chosen[kind]) parameters.append(kind, JSON.stringify([value, where]));
}

export function fromAddress(parameters) {
  for (const kind in KINDS) {
    chosen[kind].clear();
    for (const told of parameters.getAll(kind)) {
      try {
        const [value, where] = JSON.parse(told);
        if (typeof value === "string" && typeof where === "string") chosen[kind].set(value, where);
      } catch { /* an address that was cut */ }
    }
  }
}

export async function showFacets(typed, changed) {
  const turn = ++asked, found = {};
  const counts = new Map();  // one request for each filter that differs
  const count = (where) => {
    if (!counts.has(where)) counts.set(where, json(`v1/facets${where ? `?${new URLSearchParams({ where })}` : ""}`));
    return counts.get(where);
  };
  for (const kind in KINDS) {
    const own = kind === "folders" ? undefined : kind;
    found[kind] = (await count(combined(typed, own)))[kind];
  }
  if (turn !== asked) return;
  const open = document.querySelector("#menus details[open]")?.dataset.kind;
  $("menus").replaceChildren(...Object.keys(KINDS).flatMap((kind) => menu(kind, found[kind], changed, kind === open)));
}

function menu(kind, values, changed, open) {
  if (values.length < 2 && !chosen[kind].size) return [];
  const details = document.createElement("details"), summary = document.createElement("summary"), panel = document.createElement("div");
  details.className = "menu"; details.dataset.kind = kind; details.open = open;
  summary.textContent = KINDS[kind];
  panel.className = "panel";
  panel.append(...values.map((facet) => row(kind, facet, changed)));
  if (!values.length) panel.append("No folder below this one.");
  details.append(summary, panel);
  return [details];
}

function row(kind, { value, count, where }, changed) {
  const label = document.createElement("label"), box = document.createElement("input");
  const name = document.createElement("span"), number = document.createElement("span");
  box.type = "checkbox"; box.checked = chosen[kind].has(value);
  name.textContent = label.title = value.replace(/[/#]$/, ""); name.dir = "auto"; name.className = "name";
  number.textContent = count.toLocaleString(); number.className = "number";
  box.onchange = () => {
    if (kind === "folders") chosen.folders.clear();
    if (box.checked) chosen[kind].set(value, where); else chosen[kind].delete(value);
    changed();
  };
  label.append(box, name, number);
  return label;
}
