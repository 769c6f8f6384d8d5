// One turn on the page: the question, the quotes, the answer as it grows, what can be done with it, its books.
import { books } from "./books.js";
import { h, icon, iconButton } from "./dom.js";
import { mark, render } from "./markdown.js";
import { copy } from "./notify.js";
import { said } from "./said.js";
import { number, placed, seconds, t } from "./words.js";

const SHOWN = 2; // quotes shown before "more"
const LONG = 1500; // characters of a question, or this many lines, before it is folded
const LINES = 16;

// Of the headings only the last: the card is narrow, and the source opens with one click.
const where = (quote) => [quote.name, ...placed({ ...quote, heading: quote.heading?.split(" > ").at(-1) })].join(", ");

export class TurnView {
  // act: { open(quote, quotes), retry(), edit(turn, question), undo(turn), feedback(turn, value), switchTo(id) }
  constructor(turn, act, { threshold = 0 } = {}) {
    this.turn = { quotes: [], marks: [], searched: [], notices: [], answer: "", feedback: 0, ...turn };
    this.act = act;
    this.threshold = threshold; // below this chance that the documents answer, the reply says that they don't
    this.asked = h("div", { class: "asked" });
    this.evidence = h("section", { class: "evidence" });
    this.answer = h("div", { class: "answer" });
    this.state = h("div");
    this.after = h("div", { class: "after" });
    this.element = h("article", { class: "turn" }, this.asked, this.evidence, this.answer, this.state, this.after);
    this.last = false;
    this.draw();
  }

  get live() { return this.element.classList.contains("live"); }

  draw() {
    this.element.dataset.turn = this.turn.id ?? "";
    this.drawQuestion();
    this.drawQuotes();
    this.drawAnswer();
    this.drawState();
    this.drawAfter();
  }

  setLast(last) {
    if (this.last === last) return;
    this.last = last;
    this.drawAfter();
  }

  begin() {
    this.element.classList.add("live");
    Object.assign(this.turn, { answer: "", quotes: [], marks: [], status: "running", error: "" });
    this.draw();
    this.waiting(t("chat.searching"));
  }

  waiting(text) {
    this.state.replaceChildren(h("p", { class: "waiting", text }));
  }

  quotes(event) {
    this.turn.id = event.turn_id;
    this.turn.quotes = event.quotes;
    this.turn.answerable = event.answerable;
    this.element.dataset.turn = event.turn_id;
    this.drawQuotes();
    this.waiting(t("chat.reading"));
  }

  write(text) {
    this.turn.answer += text;
    this.state.replaceChildren();
    if (!this.frame) this.frame = requestAnimationFrame(() => { this.frame = 0; this.drawAnswer(); });
  }

  finish(turn) {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.element.classList.remove("live");
    Object.assign(this.turn, turn);
    this.draw();
  }

  drawQuestion() {
    const { question } = this.turn;
    const tools = h("div", { class: "tools" },
      iconButton("copy", t("chat.copy.question"), () => copy(question)),
      this.turn.id && iconButton("edit", t("chat.edit"), () => this.editing()));
    const bubble = h("div", { class: "bubble", text: question });
    if (question.length <= LONG && question.split("\n").length <= LINES) return this.asked.replaceChildren(bubble, tools);
    bubble.classList.add("folded");
    const fold = h("button", { type: "button", class: "quiet", "aria-expanded": "false", text: t("chat.whole"), onclick: () => {
      const folded = bubble.classList.toggle("folded");
      fold.setAttribute("aria-expanded", String(!folded));
      fold.textContent = folded ? t("chat.whole") : t("chat.short");
    } });
    this.asked.replaceChildren(bubble, fold, tools);
  }

  editing() {
    const area = h("textarea", { "aria-label": t("chat.edit") });
    area.value = this.turn.question;
    const form = h("form", {}, area, h("div", { class: "buttons" },
      h("button", { type: "button", class: "plain", text: t("app.cancel"), onclick: () => this.drawQuestion() }),
      h("button", { type: "submit", class: "solid", text: t("chat.send") })));
    const submit = (event) => { event.preventDefault(); if (area.value.trim()) this.act.edit(this.turn, area.value.trim()); };
    form.addEventListener("submit", submit);
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
      if (event.key === "Escape") { event.stopPropagation(); this.drawQuestion(); }
    });
    this.asked.replaceChildren(form);
    area.focus();
  }

  drawQuotes() {
    const { quotes, time, answerable } = this.turn;
    const far = typeof answerable === "number" && answerable < this.threshold;
    this.evidence.hidden = !quotes.length;
    this.evidence.classList.toggle("far", far);
    if (!quotes.length) return this.evidence.replaceChildren();
    const parts = [];
    for (const [kind, title] of [["document", far ? "chat.evidence.far" : "chat.evidence"], ["turn", "chat.evidence.turn"]]) {
      const some = quotes.filter((quote) => quote.kind === kind);
      if (!some.length) continue;
      const list = h("ol", {}, ...some.map((quote, at) => h("li", { hidden: at >= SHOWN }, this.quote(quote))));
      const head = h("h3", { text: t(title) + (time && kind === "document" ? ` · ${seconds(time.quotes_s)}` : "") });
      const group = h("div", { class: parts.length ? "" : "first" }, head, list);
      if (some.length > SHOWN) group.append(h("button", { type: "button", class: "quiet more-quotes", "aria-expanded": "false", text: t("chat.more", { count: some.length - SHOWN }), onclick: (event) => {
        const open = event.target.getAttribute("aria-expanded") === "false";
        [...list.children].forEach((item, at) => { item.hidden = !open && at >= SHOWN; });
        event.target.setAttribute("aria-expanded", String(open));
        event.target.textContent = open ? t("chat.less") : t("chat.more", { count: some.length - SHOWN });
      } }));
      parts.push(group);
    }
    this.evidence.replaceChildren(...parts);
  }

  quote(quote) {
    const place = quote.kind === "turn" ? `${t(`chat.said.${quote.said_by || "user"}`)}${quote.name ? ` · ${quote.name}` : ""}` : where(quote);
    return h("button", { type: "button", class: "quote", "data-number": quote.number, title: t("chat.open", { place }), onclick: () => this.act.open(quote, this.turn) },
      h("span", { class: "n", text: number(quote.number) }),
      h("span", { class: "said" }, h("span", { text: quote.text.trim() })),
      h("span", { class: "place", text: place }));
  }

  drawAnswer() {
    const { marks, quotes, tokens, time } = this.turn;
    const answer = time && !tokens ? said(this.turn.answer) : this.turn.answer; // without a model, the program's own words
    const echo = quotes.length && this.turn.answer === quotes.map((quote) => `${quote.text} [${quote.number}]`).join("\n\n");
    const live = this.live && this.turn.status === "running";
    this.answer.hidden = !answer || Boolean(echo);
    this.answer.classList.toggle("writing", live && Boolean(answer));
    if (this.answer.hidden) return this.answer.replaceChildren();
    this.answer.replaceChildren(...render(mark(answer, live ? [] : marks), { cite: (number) => this.cite(number) }));
  }

  cite(number) {
    const quote = this.turn.quotes.find((one) => one.number === number);
    if (!quote) return document.createTextNode(`[${number}]`);
    return h("button", { type: "button", class: "cite", text: String(number), title: [quote.name, ...placed(quote)].join(", "), "aria-label": t("chat.cite", { number }), onclick: () => this.act.open(quote, this.turn) });
  }

  drawState() {
    const { status, error, notices } = this.turn;
    const lines = [];
    const line = (name, text, bad) => lines.push(h("p", { class: bad ? "state bad" : "state" }, icon(name), h("span", { text })));
    if (status === "stopped") line("pause", t("chat.stopped"));
    if (status === "interrupted") line("pause", t("chat.interrupted"));
    if (status === "failed") line("warn", t("chat.failed", { error: said(error) || "" }), true);
    if (status === "running" && !this.live) lines.push(h("p", { class: "waiting", text: t("chat.elsewhere") }));
    for (const text of notices) line("warn", said(text));
    this.state.replaceChildren(...lines);
  }

  drawAfter() {
    const { status, feedback, siblings = [], id } = this.turn;
    if (this.live || status === "running" || !id) return this.after.replaceChildren();
    const thumb = (name, label, value) => iconButton(name, label, () => this.act.feedback(this, feedback === value ? 0 : value), { "aria-pressed": String(feedback === value) });
    const tools = h("div", { class: "tools" },
      iconButton("copy", t("chat.copy"), () => copy(this.turn.answer)),
      this.last && iconButton("retry", t("chat.retry"), () => this.act.retry(this)),
      this.last && iconButton("undo", t("chat.undo"), () => this.act.undo(this)),
      thumb("good", t("chat.up"), 1), thumb("bad", t("chat.down"), -1));
    const at = siblings.indexOf(id);
    if (siblings.length > 1) {
      tools.append(h("span", { class: "branches" },
        iconButton("left", t("chat.previous"), () => this.act.switchTo(siblings[at - 1]), { disabled: at <= 0 }),
        h("span", { text: `${at + 1}/${siblings.length}`, "aria-label": t("chat.branch", { at: at + 1, of: siblings.length }) }),
        iconButton("right", t("chat.next"), () => this.act.switchTo(siblings[at + 1]), { disabled: at >= siblings.length - 1 })));
    }
    this.after.replaceChildren(tools, books(this.turn) ?? "");
  }
}
