// Colours for code: comments, strings, numbers and the words that most languages share. No grammar of any one language.
import { h } from "./dom.js";

const KEYS = new Set("and as async await bool boolean break case catch char class const continue def default del do double elif else end enum except export extends false finally float fn for from func function global if impl implements import in int interface is lambda let long match mod module mut namespace new nil none None not null of or package pass private protected pub public raise return self short signed static string struct super switch then this throw trait true True False try type typeof undefined union unsigned use using val var void volatile when where while with yield select insert update delete create table join on group by order limit into values set".split(" "));
const HASH = new Set(["python", "py", "bash", "sh", "shell", "ruby", "rb", "yaml", "yml", "toml", "r", "perl", "make", "makefile", "dockerfile", ""]);

export function highlight(text, language) {
  const hash = HASH.has(language.toLowerCase());
  const token = new RegExp(`(${hash ? "#[^\\n]*|" : ""}\\/\\/[^\\n]*|\\/\\*[^]*?\\*\\/|--\\s[^\\n]*)|("""[^]*?"""|"(?:\\\\.|[^"\\\\\\n])*"|'(?:\\\\.|[^'\\\\\\n])*'|\`(?:\\\\.|[^\`\\\\])*\`)|(\\b\\d[\\w.]*)|([A-Za-z_]\\w*)`, "g");
  const out = [];
  let at = 0;
  for (const match of text.matchAll(token)) {
    const kind = match[1] ? "c" : match[2] ? "s" : match[3] ? "d" : KEYS.has(match[4]) ? "k" : null;
    if (!kind) continue;
    if (match.index > at) out.push(text.slice(at, match.index));
    out.push(h("span", { class: kind, text: match[0] }));
    at = match.index + match[0].length;
  }
  out.push(text.slice(at));
  return out;
}
