// Markdown to elements, for text that nobody vouches for. Makes elements only, never HTML from text: tags are shown as
// they are written, links lead to http, https or mail only, images become their description and load nothing.
import { h, iconButton } from "./dom.js";
import { highlight } from "./code.js";
import { copy } from "./notify.js";
import { t } from "./words.js";

const OPEN = "\uE000", SHUT = "\uE001"; // around a sentence that the quotes don't support; see mark()
const INLINE = /(`+)([^]*?[^`])\1(?!`)|!\[([^\]]*)\]\(([^)\s]*)[^)]*\)|\[([^\]]+)\]\(([^)\s]+)[^)]*\)|\[(\d{1,2}(?:\s*,\s*\d{1,2})*)\]|\*\*(?=\S)([^]*?\S)\*\*|__(?=\S)([^]*?\S)__|(?<![\w*])\*(?=[^\s*])([^*]*[^\s*])\*(?![\w*])|(?<!\w)_(?=[^\s_])([^_]*[^\s_])_(?!\w)|~~(?=\S)([^]*?\S)~~|\\([\\`*_{}[\]()#+\-.!|>~])/;

// Puts invisible signs around unsupported sentences, so that they survive the rendering, and the numbers of their
// quotes behind supported ones; offsets count code points.
export function mark(text, marks) {
  const chars = Array.from(text.replace(/[\uE000\uE001]/g, "\uFFFD"));
  for (const one of [...marks].sort((a, b) => b.start - a.start)) {
    if (one.end > chars.length) continue;
    if (one.supported) { // say which quotes, where the model did not
      if (!/\[\d/.test(chars.slice(one.start, one.end).join(""))) chars.splice(one.end, 0, ...one.quotes.slice(0, 2).map((number) => `\u2009[${number}]`));
      continue;
    }
    chars.splice(one.end, 0, SHUT);
    chars.splice(one.start, 0, OPEN);
  }
  return chars.join("");
}

export function render(text, { cite }) {
  const state = { cite, unsure: false };
  return blocks(text.replace(/\r\n?/g, "\n").split("\n"), state, 0);
}

function blocks(lines, state, depth) {
  const out = [];
  let i = 0;
  const clean = (line) => line.replace(/[\uE000\uE001]/g, "");
  while (i < lines.length) {
    const line = lines[i], bare = clean(line);
    let match;
    if (!bare.trim()) { i += 1; continue; }
    if ((match = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)/.exec(bare))) {
      const body = [];
      i += 1;
      while (i < lines.length && !clean(lines[i]).trim().startsWith(match[1])) body.push(clean(lines[i++]));
      i += 1;
      out.push(codeBlock(body.join("\n"), match[2]));
    } else if ((match = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/.exec(bare))) {
      out.push(h(`h${Math.min(4, match[1].length + 1)}`, {}, ...inline(line.replace(/^([\uE000\uE001]*) {0,3}#{1,6}\s+/, "$1"), state)));
      i += 1;
    } else if (/^ {0,3}([-*_])(\s*\1){2,}\s*$/.test(bare)) {
      out.push(h("hr"));
      i += 1;
    } else if (/^ {0,3}>/.test(bare) && depth < 6) {
      const body = [];
      while (i < lines.length && /^ {0,3}>/.test(clean(lines[i]))) body.push(lines[i++].replace(/^([\uE000\uE001]*) {0,3}> ?/, "$1"));
      out.push(h("blockquote", {}, ...blocks(body, state, depth + 1)));
    } else if ((match = /^( {0,3})([-*+]|\d{1,9}[.)])\s+/.exec(bare)) && depth < 6) {
      const ordered = /\d/.test(match[2]);
      const list = h(ordered ? "ol" : "ul", ordered && match[2].slice(0, -1) !== "1" ? { start: match[2].slice(0, -1) } : {});
      const item = ordered ? /^([\uE000\uE001]*) {0,3}\d{1,9}[.)]\s+/ : /^([\uE000\uE001]*) {0,3}[-*+]\s+/;
      while (i < lines.length && item.test(lines[i])) {
        const body = [lines[i++].replace(item, "$1")];
        while (i < lines.length && clean(lines[i]).trim() && (/^\s{2,}/.test(clean(lines[i])) || !/^ {0,3}([-*+]|\d{1,9}[.)])\s+|^ {0,3}(#{1,6}\s|```|>)/.test(clean(lines[i])))) body.push(lines[i++].replace(/^ {2,4}/, ""));
        const inner = blocks(body, state, depth + 1);
        list.append(h("li", {}, ...(inner.length && inner[0].tagName === "P" ? [...inner[0].childNodes, ...inner.slice(1)] : inner)));
        if (i + 1 < lines.length && !clean(lines[i]).trim() && item.test(lines[i + 1])) i += 1;
      }
      out.push(list);
    } else if (bare.includes("|") && i + 1 < lines.length && /^\s*\|?\s*:?-{2,}:?\s*(\|\s*:?-*:?\s*)*\|?\s*$/.test(clean(lines[i + 1])) && clean(lines[i + 1]).includes("|")) {
      const row = (source, tag) => h("tr", {}, ...source.trim().replace(/^\||\|$/g, "").split("|").map((cell) => h(tag, tag === "th" ? { scope: "col" } : {}, ...inline(cell.trim(), state))));
      const body = h("tbody");
      const head = h("thead", {}, row(line, "th"));
      i += 2;
      while (i < lines.length && clean(lines[i]).includes("|")) body.append(row(lines[i++], "td"));
      out.push(h("div", { class: "table", tabindex: "0", role: "region" }, h("table", {}, head, body)));
    } else {
      const body = [line];
      i += 1;
      while (i < lines.length && clean(lines[i]).trim() && !/^ {0,3}(#{1,6}\s|`{3,}|~{3,}|>|[-*+]\s|\d{1,9}[.)]\s)/.test(clean(lines[i]))) body.push(lines[i++]);
      out.push(h("p", {}, ...inline(body.join("\n"), state)));
    }
  }
  return out;
}

function inline(text, state, depth = 0) {
  const out = [];
  let rest = text;
  while (rest) {
    const match = depth < 8 ? INLINE.exec(rest) : null;
    if (!match) { plain(rest, state, out); break; }
    if (match.index) plain(rest.slice(0, match.index), state, out);
    out.push(...element(match, state, depth));
    rest = rest.slice(match.index + match[0].length);
  }
  return state.unsure || out.some((node) => node.unsure) ? gather(out) : out;
}

function element(match, state, depth) {
  const [whole, , code, alt, , label, target, cites, bold1, bold2, thin1, thin2, gone, escaped] = match;
  const inner = (text) => inline(text, state, depth + 1);
  const tagged = (node) => { node.unsure = state.unsure; return [node]; };
  if (code !== undefined) return tagged(h("code", { text: code.replace(/[\uE000\uE001]/g, "").trim() }));
  if (alt !== undefined) return tagged(document.createTextNode(alt ? `[${alt}]` : ""));
  if (label !== undefined) {
    const url = safe(target);
    return tagged(url ? h("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow", title: url }, ...inner(label)) : document.createTextNode(whole.replace(/[\uE000\uE001]/g, "")));
  }
  if (cites !== undefined) return cites.split(",").map((one) => { const node = state.cite(Number(one)); node.unsure = state.unsure; return node; });
  if (bold1 ?? bold2) return tagged(h("strong", {}, ...inner(bold1 ?? bold2)));
  if (thin1 ?? thin2) return tagged(h("em", {}, ...inner(thin1 ?? thin2)));
  if (gone !== undefined) return tagged(h("s", {}, ...inner(gone)));
  const node = document.createTextNode(escaped);
  return tagged(node);
}

function plain(text, state, out) {
  for (const part of text.split(/([\uE000\uE001])/)) {
    if (part === OPEN) state.unsure = true;
    else if (part === SHUT) state.unsure = false;
    else if (part) {
      const node = document.createTextNode(part);
      node.unsure = state.unsure;
      out.push(node);
    }
  }
}

function gather(nodes) { // neighbours of one unsupported sentence go into one span
  const out = [];
  let span = null;
  for (const node of nodes) {
    if (!node.unsure) { span = null; out.push(node); continue; }
    if (!span) { span = h("span", { class: "unsure", title: t("chat.unsure") }); span.unsure = true; out.push(span); }
    span.append(node);
  }
  return out;
}

function safe(target) {
  try {
    const url = new URL(target);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function codeBlock(text, language) {
  const button = iconButton("copy", t("code.copy"), () => copy(text));
  return h("div", { class: "code" }, h("header", {}, h("span", { text: language || "text" }), button), h("pre", { tabindex: "0" }, h("code", {}, ...highlight(text, language))));
}
