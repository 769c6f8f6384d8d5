// What the program says, in the reader's language. It comes in English, as sentences with values in them; the catalogue
// (static/messages) has each sentence with {names} for the values. What it lacks stays as it came.
import { number } from "./words.js";

let exact = new Map();
let patterns = [];

export function setMessages(table) {
  exact = new Map();
  patterns = [];
  for (const [english, other] of Object.entries(table)) {
    const names = [...english.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
    if (!names.length) { exact.set(english, other); continue; }
    const source = english.split(/\{\w+\}/).map((part) => part.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&")).join("([^]+?)");
    patterns.push({ at: new RegExp(`^${source}$`), names, other, weight: english.length });
  }
  patterns.sort((a, b) => b.weight - a.weight); // the one with most words of its own fits best
}

export function said(text) {
  return (text && whole(text)) ?? composed(text ?? "") ?? text;
}

function whole(text) {
  const found = exact.get(text);
  if (found !== undefined) return found;
  for (const { at, names, other } of patterns) {
    const match = at.exec(text);
    if (match) return other.replace(/\{(\w+)\}/g, (_, name) => { const value = match[names.indexOf(name) + 1]; return exact.get(value) ?? figure(value); });
  }
  return null;
}

// "1,234" and "1.2 GiB" the way the language writes them.
function figure(value) {
  const match = /^(\d{1,3}(?:,\d{3})*|\d+)(\.\d+)?( ?[KMGT]?i?B| bytes)?$/.exec(value);
  if (!match) return value;
  return number(Number(match[1].replaceAll(",", "") + (match[2] ?? "")), 3) + (match[3] ?? "");
}

// An error of a document reads "name: reason; remedy."
function composed(text) {
  if (!exact.size) return null;
  const bare = text.endsWith(".") ? text.slice(0, -1) : text;
  const stop = text.slice(bare.length);
  for (let from = 0; ;) {
    const cut = bare.indexOf("; ", from);
    const reason = whole(cut < 0 ? bare : bare.slice(0, cut));
    if (reason !== null && (cut >= 0 || stop)) {
      const remedy = cut < 0 ? "" : bare.slice(cut + 2);
      return reason + (remedy && `; ${whole(remedy) ?? remedy}`) + stop;
    }
    if (cut < 0) break;
    from = cut + 1;
  }
  const colon = text.indexOf(": ");
  if (colon < 0) return null;
  const rest = whole(text.slice(colon + 2)) ?? composed(text.slice(colon + 2));
  return rest === null ? null : text.slice(0, colon + 2) + rest;
}
