// The books of an answer: one line of what it took, and behind it where the tokens and the memory went.
import { h } from "./dom.js";
import { said } from "./said.js";
import { bytes, number, percent, seconds, t } from "./words.js";

const WORDS_PER_TOKEN = 0.75; // English; the model counts tokens, people words
const NAMED = 6; // turns named in a list of them
const PARTS = ["template", "system", "window", "recalled", "evidence", "question", "reserve"];

const mib = (count) => number(count / 2 ** 20);

export function books(turn) {
  const { time, tokens, memory } = turn;
  if (!time && !tokens && !memory) return null;
  const line = [];
  if (time) {
    if (turn.quotes.length) line.push(t("books.quotes", { s: seconds(time.quotes_s) }));
    if (time.first_token_s !== null && tokens) line.push(t("books.first", { s: seconds(time.first_token_s) }));
    if (time.tokens_per_s > 0) line.push(t("books.rate", { rate: number(time.tokens_per_s * WORDS_PER_TOKEN) }));
  }
  if (tokens) line.push(t("books.tokens", { used: number(tokens.prompt + tokens.generated), context: number(tokens.context) }));
  if (memory) line.push(t("books.memory", { before: mib(memory.before), after: mib(memory.after), budget: mib(memory.budget) }));
  if (!line.length) line.push(t("books.total", { s: seconds(time.total_s) }));
  const details = h("details", { class: "books" }, h("summary", { text: line.join(" · ") }));
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(inside(turn));
    if (details.open) details.scrollIntoView({ block: "nearest" });
  });
  return details;
}

function inside({ tokens, memory, searched, answerable, time }) {
  const box = h("div", { class: "inside" });
  if (tokens) {
    const bar = h("div", { class: "meter", role: "img", "aria-label": PARTS.map((part) => `${t(`books.${part}`)} ${number(tokens[part])}`).join(", ") });
    const legend = h("ul", { class: "legend" });
    const add = (part, count) => {
      const piece = h("span", { class: `part-${part}` });
      piece.style.flexGrow = String(count);
      bar.append(piece);
      legend.append(h("li", { class: `part-${part}`, text: `${t(`books.${part}`)} ${number(count)}` }));
    };
    for (const part of PARTS) if (tokens[part]) add(part, tokens[part]);
    const free = tokens.context - tokens.prompt - tokens.reserve;
    if (free > 0) add("free", free);
    box.append(section("books.context", bar, legend));
    const turns = [group("books.seen", tokens.window_turns.length, tokens.window_turns)];
    if (tokens.left_out_count) turns.push(group("books.left", tokens.left_out_count, tokens.left_out_turns));
    if (tokens.recalled_turns.length) turns.push(group("books.brought", tokens.recalled_turns.length, tokens.recalled_turns));
    box.append(section("books.turns", h("ul", {}, ...turns)), h("p", { text: t("books.generated", { count: number(tokens.generated) }) }));
  }
  if (memory) {
    const values = Object.fromEntries(["before", "peak", "after", "released", "left"].map((name) => [name, bytes(memory[name])]));
    box.append(section("books.ram", h("p", { text: t("books.ram.line", values) }), memory.actions.length ? h("ul", {}, ...memory.actions.map((text) => h("li", { text: said(text) }))) : null));
  }
  if (searched.length) box.append(section("books.searched", h("ul", {}, ...searched.map((query) => h("li", { text: `${query.text} (${number(query.weight, 2)})` })))));
  const last = [];
  if (typeof answerable === "number") last.push(t("books.answerable", { percent: percent(answerable) }));
  if (time) last.push(t("books.total", { s: seconds(time.total_s) }));
  if (last.length) box.append(h("p", { text: last.join(" · ") }));
  return box;
}

// How many turns, and which: by their questions, of those that are on the page.
function group(key, count, ids) {
  const item = h("li", { text: t(key, { count: number(count) }) });
  const asked = ids.map((id) => document.querySelector(`.turn[data-turn="${Number(id)}"] .bubble`)?.textContent).filter(Boolean);
  for (const [at, question] of asked.slice(0, NAMED).entries()) item.append(at ? ", " : ": ", h("q", { text: question.length > 50 ? `${question.slice(0, 48).trim()} …` : question }));
  if (asked.length > NAMED) item.append(", …");
  return item;
}

const section = (title, ...content) => h("div", {}, h("h4", { text: t(title) }), ...content.filter(Boolean));
