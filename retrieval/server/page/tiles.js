// The grid: one tile for each image, in rows of equal height.

import { imageAddress, original, thumbnail } from "./api.js";

const $ = (id) => document.getElementById(id);
const SIZE = devicePixelRatio > 1.5 ? 640 : 320;

export const nameOf = (hit) => hit.key.split(/[/#]/).pop();
export const folderOf = (hit) => hit.key.slice(0, -nameOf(hit).length).replace(/[/#]$/, "");

export function captionOf(hit, language) {
  for (const field of ["names", "captions"]) {
    const told = hit.metadata?.[field]?.[language];
    if (typeof told === "string" && told.trim()) return told;
  }
  return hit.caption;
}

export function dateOf(hit) {
  if (!hit.time) return "";
  const day = new Date(`${hit.time.slice(0, 10)}T00:00Z`);
  return Number.isNaN(day.valueOf()) ? hit.time.slice(0, 10) : day.toLocaleDateString(undefined, { dateStyle: "medium", timeZone: "UTC" });
}

export const dateSource = (hit) => (hit.time_source === "file" ? "date of the file" : `capture time (${hit.time_source})`);

export function scoreOf(hit) {
  if (typeof hit.confidence === "number") return `${Math.round(100 * hit.confidence)} %`;
  return typeof hit.score === "number" ? hit.score.toFixed(2) : "";
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) { seen.unobserve(entry.target); show(entry.target); }
}, { rootMargin: "600px" });

async function show(link) {
  const picture = link.querySelector("img");
  try {
    picture.src = await imageAddress(thumbnail(link.dataset.id, SIZE));
    await picture.decode();
    link.classList.add("shown");
  } catch {
    link.classList.add("lost");
    link.textContent = `The original is missing: ${link.dataset.uri}`;
  }
}

export function makeTile(hit, language) {
  const item = $("tile").content.cloneNode(true).firstElementChild, link = item.querySelector(".image");
  const name = nameOf(hit), caption = captionOf(hit, language);
  item.dataset.id = link.dataset.id = hit.id;
  item.style.setProperty("--ratio", Math.min(1.9, Math.max(0.68, hit.width / hit.height || 1)));
  link.dataset.uri = hit.uri;
  link.href = original(hit.id);
  link.querySelector("img").alt = caption || name;
  item.querySelector("input").setAttribute("aria-label", `Select ${caption || name}`);
  item.querySelector(".caption").textContent = caption || name;
  item.querySelector(".caption").title = caption ? `${caption}\n${hit.uri}` : hit.uri;
  const time = item.querySelector("time");
  time.textContent = dateOf(hit);
  time.title = hit.time ? dateSource(hit) : "";
  item.querySelector(".folder").textContent = folderOf(hit);
  item.querySelector(".score").textContent = scoreOf(hit);
  const copies = hit.duplicates?.length || 0;
  item.querySelector(".copies").textContent = copies ? `+${copies}` : "";
  item.querySelector(".copies").title = copies ? `${copies} more of the same image:\n${hit.duplicates.map((copy) => copy.uri).join("\n")}` : "";
  if (typeof hit.score === "number") item.querySelector(".score").title = `rank ${hit.rank}, score ${hit.score.toFixed(3)}`;
  seen.observe(link);
  return item;
}

export const tiles = () => [...$("hits").children];

export function focusTile(item) {
  for (const other of tiles()) other.querySelector(".image").tabIndex = -1;
  const link = item?.querySelector(".image");
  if (!link) return;
  link.tabIndex = 0;
  link.focus();
  item.scrollIntoView({ block: "nearest" });
}

// The tile a step away: "next" and "before" in reading order, "down" and "up" in the rows.
export function neighbour(item, way) {
  const all = tiles(), here = all.indexOf(item);
  if (here < 0) return all[0];
  if (way === "next" || way === "before") return all[here + (way === "next" ? 1 : -1)] || item;
  const from = item.getBoundingClientRect(), centre = from.left + from.width / 2;
  const rest = way === "down" ? all.slice(here + 1) : all.slice(0, here).reverse();
  let row = null, best = null, least = Infinity;
  for (const other of rest) {
    const box = other.getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 4) continue;
    if (row !== null && Math.abs(box.top - row) > 4) break;
    row = box.top;
    const away = Math.abs(box.left + box.width / 2 - centre);
    if (away < least) { least = away; best = other; }
  }
  return best || item;
}
