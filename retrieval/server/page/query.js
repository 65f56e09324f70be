// Expressions (docs/searching.md): adding terms, taking them out, and which way a text runs.

export const quoted = (text) => `"${text.replace(/["\\]/g, "\\$&")}"`;

export const imageTerm = (name) => `image:${quoted(name)}`;

export const isExpression = (text) => /^\s*(?:[+-]\s+)?(?:(?:\d+(?:\.\d*)?|\.\d+)\*\s*\S|"|(?:image|item):)/.test(text);

export function withTerm(text, sign, term) {
  text = text.trim();
  const before = !text ? "" : isExpression(text) ? text : quoted(text);
  return before ? `${before} ${sign} ${term}` : sign === "-" ? `- ${term}` : term;
}

// The query without the first place of a term, and the sign before it.
export function withoutTerm(text, term) {
  const at = text.indexOf(term);
  if (at < 0) return text;
  const before = text.slice(0, at).replace(/\s*[+-]?\s*$/, ""), after = text.slice(at + term.length).trim();
  return `${before} ${after}`.trim().replace(/^\+\s*/, "");
}

// Terms of the query that are images of the index.
export const itemTerms = (text) => [...text.matchAll(/item:(\d+)/g)].map(([term, id]) => ({ term, id: Number(id) }));

// Whether the first letter of a text is of a script that runs from right to left.
export const runsLeft = (text) => /^[^\p{L}]*[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/u.test(text);
