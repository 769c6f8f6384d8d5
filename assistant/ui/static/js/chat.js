// The conversation in the middle: opening a chat, asking, watching an answer grow, and coming back to it later.
import { get, send, turn as streamTurn } from "./api.js";
import { announce, find, h } from "./dom.js";
import { problem, toast } from "./notify.js";
import { said } from "./said.js";
import { TurnView } from "./turn.js";
import { t } from "./words.js";

export class Chat {
  // hooks: { changed(), opened(session), openQuote(quote, turn), busy(bool) }
  constructor(start, hooks) {
    this.start = start;
    this.hooks = hooks;
    this.views = [];
    this.session = null;
    this.running = false;
    this.generation = 0; // counts chats opened: what an older one still streams is not drawn any more
    this.box = find("#turns");
    this.scroller = find("#scroll");
    this.question = find("#question");
    find("#show-earlier").addEventListener("click", () => this.earlier().catch(problem));
    this.stuck = true;
    this.scroller.addEventListener("scroll", () => {
      this.stuck = this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < 60;
    }, { passive: true });
  }

  get sessionId() { return this.session?.id ?? ""; }

  async open(id, { push = true } = {}) {
    const generation = ++this.generation;
    if (push) history.pushState({}, "", id ? `/?s=${encodeURIComponent(id)}` : "/");
    if (!id) {
      this.show(null, [], false);
      this.hooks.opened(null);
      return;
    }
    const page = await get(`sessions/${encodeURIComponent(id)}`);
    if (generation !== this.generation) return;
    this.show(page.session, page.turns, page.more);
    this.hooks.opened(this.session);
    if (page.running) this.follow(generation);
    else if (page.turns.at(-1)?.status === "running") setTimeout(() => { if (generation === this.generation) this.refresh(); }, 2000);
  }

  // The id of this chat, which is made now if there is none yet.
  async make() {
    if (!this.session) {
      this.session = (await send("POST", "sessions")).session;
      history.replaceState({}, "", `/?s=${encodeURIComponent(this.session.id)}`);
      this.hooks.opened(this.session);
    }
    return this.session.id;
  }

  refresh() {
    return this.session ? this.open(this.session.id, { push: false }) : Promise.resolve();
  }

  show(session, turns, more) {
    this.session = session;
    this.setRunning(false);
    this.views = turns.map((turn) => this.view(turn));
    this.box.replaceChildren(...this.views.map((view) => view.element));
    find("#earlier").hidden = !more;
    this.settle();
    this.stuck = true;
    this.scroll(10);
  }

  async earlier() {
    const first = this.views[0]?.turn.id;
    if (!first) return;
    const page = await get(`sessions/${encodeURIComponent(this.sessionId)}`, { before: first });
    const views = page.turns.map((turn) => this.view(turn));
    const height = this.scroller.scrollHeight;
    this.views.unshift(...views);
    this.box.prepend(...views.map((view) => view.element));
    find("#earlier").hidden = !page.more;
    this.scroller.scrollTop += this.scroller.scrollHeight - height;
  }

  view(turn) {
    const guarded = (action) => (...values) => action(...values).catch((error) => this.failed(error));
    return new TurnView(turn, {
      open: (quote, of) => this.hooks.openQuote(quote, of),
      retry: guarded(async (view) => this.run({ kind: "retry" }, view)),
      edit: guarded(async (of, question) => this.edit(of, question)),
      undo: guarded(async (view) => {
        await send("POST", "undo", { session_id: this.sessionId });
        await this.refresh();
        if (!this.question.value) this.write(view.turn.question);
        this.hooks.changed();
      }),
      feedback: guarded(async (view, value) => {
        await send("POST", "feedback", { session_id: this.sessionId, turn_id: view.turn.id, value });
        view.turn.feedback = value;
        view.drawAfter();
      }),
      switchTo: guarded(async (id) => {
        await send("POST", "switch", { session_id: this.sessionId, turn_id: id });
        await this.refresh();
      }),
    }, { threshold: this.start.answer_threshold });
  }

  settle() {
    this.views.forEach((view, at) => view.setLast(at === this.views.length - 1));
    find("#empty").hidden = this.views.length > 0;
  }

  write(text) {
    this.question.value = text;
    this.question.dispatchEvent(new Event("input"));
    this.question.focus();
  }

  async ask(question, documents = []) {
    if (this.running) return;
    const view = this.view({ question });
    this.views.push(view);
    this.box.append(view.element);
    this.settle();
    this.stuck = true;
    await this.run({ kind: "ask", question, documents, version: this.session?.version ?? null }, view);
  }

  async edit(of, question) {
    const at = this.views.findIndex((view) => view.turn.id === of.id);
    for (const gone of this.views.splice(at)) gone.element.remove();
    const view = this.view({ question });
    this.views.push(view);
    this.box.append(view.element);
    this.settle();
    await this.run({ kind: "edit", turn_id: of.id, question }, view);
  }

  async follow(generation) {
    const view = this.views.at(-1);
    if (!view || generation !== this.generation) return;
    await this.run({ kind: "follow" }, view);
  }

  // Streams one turn into its view; afterwards the stored turn is read back, so that the page shows what is on disk.
  async run(call, view) {
    const generation = this.generation;
    const here = () => generation === this.generation;
    this.setRunning(true);
    view.begin();
    this.scroll();
    let failure = null;
    try {
      await streamTurn({ ...call, session_id: this.sessionId }, (event) => {
        if (!here()) return;
        if (event.type === "error") failure = { kind: event.kind, message: said(event.message) };
        else this.event(event, view);
        this.scroll();
      });
    } catch (error) {
      if (!here()) return;
      this.setRunning(false);
      if (error instanceof TypeError) return this.hooks.lost();
      failure = { kind: error.kind, message: error.message };
    }
    if (!here()) return this.hooks.changed();
    this.setRunning(false);
    if (failure) await this.refused(failure, call, view);
    else {
      announce(t("chat.done"));
      await this.reconcile(view);
    }
    this.hooks.changed();
  }

  event(event, view) {
    if (event.type === "started") {
      if (!this.session) {
        this.session = { id: event.session_id, title: event.question, version: null };
        history.replaceState({}, "", `/?s=${encodeURIComponent(event.session_id)}`);
        this.hooks.opened(this.session);
      }
      if (event.question) { view.turn.question = event.question; view.drawQuestion(); }
    } else if (event.type === "queued") view.waiting(t("chat.queued", { position: event.position }));
    else if (event.type === "quotes") view.quotes(event);
    else if (event.type === "text") view.write(event.text);
    else if (event.type === "done") view.finish(event.turn);
  }

  async reconcile(view) {
    const page = await get(`sessions/${encodeURIComponent(this.sessionId)}`, { limit: 1 });
    this.session = page.session;
    const stored = page.turns.at(-1);
    if (stored) view.finish(stored);
    this.hooks.opened(this.session);
    this.settle();
    this.scroll();
  }

  async refused(failure, call, view) {
    const stale = failure.kind === "StaleSessionError";
    toast(stale ? t("chat.stale") : failure.message, { bad: !stale });
    try {
      await this.refresh(); // shows what was stored, if anything was
    } catch { // the very first question of a chat was not stored
      this.views = [];
      await this.open("", { push: false });
      history.replaceState({}, "", "/");
    }
    const stored = this.views.at(-1)?.turn.question === view.turn.question;
    if (call.kind === "ask" && !stored && !this.question.value) this.write(call.question);
  }

  failed(error) {
    if (error instanceof TypeError) this.hooks.lost();
    else problem(error);
  }

  stop() {
    if (this.running && this.session) send("POST", "stop", { session_id: this.sessionId }).catch((error) => this.failed(error));
  }

  setRunning(running) {
    this.running = running;
    find("#stop").hidden = !running;
    find("#send").hidden = running;
    this.hooks.busy?.(running);
  }

  // Keeps the end in view while the reader is there. Turns out of view have a guessed height until they are drawn,
  // so that a chat just opened (several frames) finds its end step by step.
  scroll(frames = 1) {
    if (!this.stuck) return;
    requestAnimationFrame(() => {
      this.scroller.scrollTop = this.scroller.scrollHeight;
      if (frames > 1) { this.stuck = true; this.scroll(frames - 1); }
    });
  }

  // What an empty chat shows: how to begin, or questions to try; *documents* is null while there are some, not listed yet.
  welcome(documents, { addFiles, addSamples }) {
    const box = find("#empty");
    const readOnly = this.start.read_only;
    const questions = SAMPLES.filter((one) => documents?.some((document) => document.name === one.file && document.status === "ready"));
    const none = documents?.length === 0;
    box.replaceChildren(
      h("h2", { text: none && !readOnly ? t("chat.empty.title") : t("chat.welcome") }),
      h("p", { text: none ? t(readOnly ? "chat.empty.public" : "chat.empty.text") : t("chat.welcome.text") }),
      none && !readOnly ? h("div", { class: "start" },
        h("button", { type: "button", class: "solid", text: t("documents.files"), onclick: addFiles }),
        h("button", { type: "button", class: "quiet", text: t("chat.try"), onclick: addSamples })) : "",
      questions.length ? h("ul", { class: "samples" }, ...questions.map((one) => h("li", {},
        h("button", { type: "button", onclick: () => this.ask(one.question).catch(problem) }, one.question, h("small", { text: one.file }))))) : "",
    );
  }
}

const SAMPLES = [
  { file: "handbook.md", question: "How long is the notice period?" },
  { file: "k2-manual.pdf", question: "How often should I descale the kettle?" },
  { file: "delivery-terms.docx", question: "How many days do I have to return something?" },
  { file: "repair-faq.html", question: "Why does the light blink red?" },
];
