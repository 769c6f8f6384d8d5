// The passage behind a quote: the sentence marked in its context, and the page it stands on.
import { get } from "./api.js";
import { find, h, icon } from "./dom.js";
import { placed, t } from "./words.js";

export class Source {
  constructor() {
    this.box = find("#source");
    this.clear();
  }

  clear() {
    this.box.replaceChildren(h("p", { class: "panel-note", text: t("source.none") }));
  }

  async open(quote, turn) {
    this.mark(quote, turn);
    const steps = this.steps(quote, turn);
    if (quote.kind === "turn" || !quote.document_id) {
      this.draw(t("source.turn"), quote.name, marked(quote.context || quote.text, quote.text), steps);
      return;
    }
    this.box.replaceChildren(h("p", { class: "panel-note", text: t("source.loading") }));
    let shown;
    try {
      const found = await get("passage", { document_id: quote.document_id, start: quote.start, end: quote.end });
      shown = around(found);
    } catch (error) {
      if (error instanceof TypeError) throw error;
      shown = marked(quote.context || quote.text, quote.text); // removed since: the turn still holds its context
    }
    this.draw(quote.name, placed(quote).join(", "), shown, steps, quote.page && /\.pdf$/i.test(quote.name) ? pageImage(quote) : null);
  }

  async preview(document) {
    this.mark(null, null);
    const found = await get("passage", { document_id: document.id, start: 0, end: 0, around: 4000 });
    this.draw(document.name, t("source.preview"), [unwrapped(found.text)], null);
  }

  draw(title, where, content, steps, image) {
    const passage = h("div", { class: "passage", tabindex: "0", role: "region", "aria-label": title }, ...content);
    this.box.replaceChildren(h("div", { class: "source-head" }, h("h2", { text: title }), where ? h("p", { text: where }) : ""), passage, steps ?? "", image ?? "");
    this.box.scrollTop = 0;
    const mark = passage.querySelector("mark"); // not scrollIntoView: that would move the page under the panel too
    if (mark) this.box.scrollTop = mark.getBoundingClientRect().top - this.box.getBoundingClientRect().top - this.box.clientHeight / 3;
  }

  steps(quote, turn) {
    const at = turn.quotes.indexOf(quote);
    if (turn.quotes.length < 2) return null;
    const step = (name, label, to) => h("button", { type: "button", class: "quiet", disabled: !to, onclick: () => this.open(to, turn) }, label);
    return h("div", { class: "step" }, step("left", t("source.previous"), turn.quotes[at - 1]), step("right", t("source.next"), turn.quotes[at + 1]));
  }

  mark(quote, turn) {
    for (const open of document.querySelectorAll(".quote.open")) open.classList.remove("open");
    if (turn) document.querySelector(`.turn[data-turn="${Number(turn.id)}"] .quote[data-number="${Number(quote.number)}"]`)?.classList.add("open");
  }
}

// Offsets count code points, as Python's strings do.
function around(found) {
  const chars = Array.from(unwrapped(found.text)), from = found.quote_start, to = found.quote_end;
  return [chars.slice(0, from).join(""), h("mark", { text: chars.slice(from, to).join("") }), chars.slice(to).join("")];
}

// Lines that were only broken to fit a width flow again; a space for a line break, so that offsets stay.
function unwrapped(text) {
  return text.replace(/([^\n]{45,}[^\n])\n(?=[\p{L}\p{N}“"(])(?!\d+[.)]\s)/gu, "$1 ");
}

function marked(context, text) {
  const at = context.indexOf(text);
  return at < 0 ? [h("mark", { text })] : [context.slice(0, at), h("mark", { text }), context.slice(at + text.length)];
}

function pageImage(quote) {
  const image = h("img", { class: "page-image", alt: t("source.page", { page: quote.page, name: quote.name }), src: `/api/documents/${encodeURIComponent(quote.document_id)}/page/${Number(quote.page)}.png`, loading: "lazy" });
  image.addEventListener("error", () => image.remove()); // no page image to be had: the text is there
  return image;
}
