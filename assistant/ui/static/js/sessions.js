// The list of chats on the left.
import { get, importFile, send } from "./api.js";
import { find, h, iconButton } from "./dom.js";
import { ask, menu, problem, show, toast } from "./notify.js";
import { said } from "./said.js";
import { age, number, percent, t } from "./words.js";

export class Sessions {
  // hooks: { open(id), current(): id, renamed(id, title), deleted(id) }
  constructor(hooks) {
    this.hooks = hooks;
    this.box = find("#session-list");
    this.input = find("#session-search");
    this.limit = 60;
    let timer = 0;
    this.input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(() => this.load().catch(problem), 180); });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Escape") { event.stopPropagation(); this.input.value = ""; this.load().catch(problem); this.input.blur(); }
      if (event.key === "ArrowDown") { event.preventDefault(); this.box.querySelector("a")?.focus(); }
    });
    this.box.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step || event.target.tagName !== "A") return;
      event.preventDefault();
      const links = [...this.box.querySelectorAll(".session > a")];
      (links[links.indexOf(event.target) + step] ?? this.input).focus();
    });
  }

  async load() {
    const query = this.input.value.trim();
    const found = await get("sessions", { query });
    if (query !== this.input.value.trim()) return;
    this.box.replaceChildren(...(query ? this.hits(found.hits) : this.groups(found)));
    this.select();
  }

  async append(button) {
    const found = await get("sessions", { offset: this.box.querySelectorAll(".session").length });
    button.replaceWith(h("ul", {}, ...found.sessions.map((session) => this.item(session))), ...(found.more ? [this.more()] : []));
  }

  groups({ sessions, more }) {
    if (!sessions.length) return [h("p", { class: "list-note", text: t("sessions.none") })];
    const out = [];
    for (const group of ["today", "yesterday", "earlier"]) {
      const some = sessions.filter((session) => age(session.updated_at) === group);
      if (some.length) out.push(h("h2", { text: t(`sessions.${group}`) }), h("ul", {}, ...some.map((session) => this.item(session))));
    }
    if (more) out.push(this.more());
    return out;
  }

  more() {
    return h("button", { type: "button", class: "quiet", text: t("sessions.more"), onclick: (event) => this.append(event.target).catch(problem) });
  }

  hits(hits) {
    if (!hits.length) return [h("p", { class: "list-note", text: t("sessions.nothing") })];
    return [h("ul", {}, ...hits.map((hit) => this.item({ id: hit.session_id, title: hit.title }, hit)))];
  }

  item(session, hit) {
    const link = h("a", { href: `/?s=${encodeURIComponent(session.id)}`, onclick: (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.hooks.open(session.id);
    } }, h("span", { class: "name", text: session.title }));
    if (hit) link.append(h("span", { class: "hit" }, ...highlighted(hit)));
    const actions = iconButton("dots", t("sessions.actions", { title: session.title }), (event) => this.actions(event.currentTarget, session), { "aria-haspopup": "menu", "aria-expanded": "false" });
    return h("li", { class: "session", "data-id": session.id }, link, actions);
  }

  actions(button, session) {
    menu(button, [
      { name: "edit", label: t("sessions.rename"), act: () => this.rename(session).catch(problem) },
      { name: "download", label: t("sessions.export.md"), act: () => download(session.id, "md") },
      { name: "download", label: t("sessions.export.jsonl"), act: () => download(session.id, "jsonl") },
      { name: "trash", label: t("sessions.delete"), danger: true, act: () => this.remove(session).catch(problem) },
    ]);
  }

  async rename(session) {
    const title = await ask({ title: t("sessions.rename.title"), field: t("sessions.name"), value: session.title, yes: t("app.save") });
    if (title === null) return;
    const done = await send("PATCH", `sessions/${encodeURIComponent(session.id)}`, { title });
    this.hooks.renamed(session.id, done.title);
    await this.load();
  }

  async remove(session) {
    if (!(await ask({ title: t("sessions.delete.title"), text: t("sessions.delete.text", { title: session.title }), yes: t("sessions.delete"), danger: true }))) return;
    await send("DELETE", `sessions/${encodeURIComponent(session.id)}`);
    this.hooks.deleted(session.id);
    await this.load();
  }

  // Sends a file of chats, shows how far it is, and says at the end what was taken and what was not.
  async import(file) {
    const bar = h("progress", { max: "1", value: "0", "aria-label": file.name }), meta = h("p", { text: t("documents.sending", { percent: percent(0) }) });
    const box = h("div", { class: "importing" }, h("p", { class: "name", text: file.name }), bar, meta);
    let over = false;
    const dialog = show(t("sessions.import"), box, { close: t("app.cancel"), closed: () => { if (!over && bar.dataset.sent !== "true") job.cancel(); } });
    const job = importFile(file, (share) => {
      bar.value = share;
      meta.textContent = t("documents.sending", { percent: percent(share) });
      if (share === 1) { bar.dataset.sent = "true"; bar.removeAttribute("value"); meta.textContent = t("sessions.importing", { count: number(0) }); dialog.label(t("app.close")); }
    }, ({ share, conversations }) => {
      if (share === undefined) return;
      bar.value = share;
      meta.textContent = t("sessions.importing", { count: number(conversations) });
    });
    try {
      const report = await job.done;
      over = true;
      const line = report.conversations ? t("sessions.imported", { count: number(report.conversations), turns: number(report.turns) }) : t("sessions.imported.none");
      if (dialog.open) box.replaceChildren(...reported(line, report));
      else toast(line);
    } catch (error) {
      over = true;
      dialog.close();
      if (error.kind !== "cancelled") throw error;
      return;
    } finally {
      dialog.label(t("app.close"));
      await this.load().catch(() => {});
    }
  }

  select() {
    const current = this.hooks.current();
    for (const item of this.box.querySelectorAll(".session")) {
      const is = item.dataset.id === current;
      item.classList.toggle("current", is);
      if (is) item.firstChild.setAttribute("aria-current", "page");
      else item.firstChild.removeAttribute("aria-current");
    }
  }
}

function reported(line, { skipped, skipped_count: count, cut_off: missing }) {
  const out = [h("p", { class: "outcome", text: line })];
  if (missing) out.push(h("p", { text: t("sessions.cut", { reason: said(missing) }) }));
  if (!count) return out;
  out.push(h("h3", { text: t("sessions.skipped", { count: number(count) }) }));
  const items = skipped.map(({ name, reason }) => h("li", {}, h("span", { class: "name", text: said(name) }), h("span", { class: "meta", text: said(reason) })));
  if (count > skipped.length) items.push(h("li", { text: t("chat.more", { count: number(count - skipped.length) }) }));
  out.push(h("ul", { class: "report", tabindex: "0" }, ...items));
  return out;
}

// Downloads one chat, or all where there is no id.
export function download(id, format) {
  const link = h("a", { href: `/api/${id ? `sessions/${encodeURIComponent(id)}/` : ""}export?format=${format}`, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}

// A hit's text comes in pieces, every other one of them matched.
function highlighted(hit) {
  return hit.pieces.map((piece, at) => (at % 2 ? h("mark", { text: piece }) : document.createTextNode(piece)));
}
