// The documents panel: putting files in, watching them being read, the list.
import { get, send, upload } from "./api.js";
import { find, h, icon, iconButton } from "./dom.js";
import { ask, problem, toast } from "./notify.js";
import { said } from "./said.js";
import { bytes, day, number, percent, seconds, t } from "./words.js";

const AT_ONCE = 2; // uploads sent side by side
const ACTIVE = ["waiting", "reading"];
const GOOD = ["added", "updated", "unchanged"];

export class Documents {
  // hooks: { changed(documents), sessionId(): id, preview(document), readOnly }
  constructor(hooks) {
    this.hooks = hooks;
    this.documents = [];
    this.sending = new Map(); // name to { share, cancel }
    this.queue = [];
    this.uploads = [];
    this.build();
  }

  build() {
    const panel = find("#documents");
    const picker = (attributes) => {
      const input = h("input", { type: "file", multiple: true, class: "unseen", tabindex: "-1", "aria-hidden": "true", ...attributes });
      input.addEventListener("change", () => { this.add([...input.files].map((file) => ({ file, name: file.webkitRelativePath || file.name }))); input.value = ""; });
      return input;
    };
    this.files = picker({ id: "pick-files" });
    this.folder = picker({ webkitdirectory: true });
    this.onlyHere = h("input", { type: "checkbox", id: "only-here" });
    this.drop = h("div", { class: "drop" }, icon("upload"), h("p", { text: t("documents.drop") }),
      h("div", { class: "start" },
        h("button", { type: "button", class: "quiet", text: t("documents.files"), onclick: () => this.files.click() }),
        h("button", { type: "button", class: "quiet", text: t("documents.folder"), onclick: () => this.folder.click() })),
      h("label", { class: "check" }, this.onlyHere, t("documents.session")), this.files, this.folder);
    this.incoming = h("div", { "aria-live": "off" });
    this.list = h("div");
    panel.replaceChildren(this.hooks.readOnly ? h("p", { class: "panel-note", text: t("documents.readonly") }) : this.drop, this.incoming, this.list);
    if (!this.hooks.readOnly) this.dragging();
  }

  dragging() {
    let depth = 0;
    const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const state = (on) => document.body.classList.toggle("dragging", on);
    addEventListener("dragenter", (event) => { if (files(event)) { depth += 1; state(true); } });
    addEventListener("dragleave", (event) => { if (files(event) && --depth <= 0) state(false); });
    addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
    addEventListener("drop", async (event) => {
      if (!files(event)) return;
      event.preventDefault();
      depth = 0;
      state(false);
      const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
      const loose = [...event.dataTransfer.files].map((file) => ({ file, name: file.name }));
      this.add(entries.length ? (await Promise.all(entries.map((entry) => inside(entry)))).flat() : loose);
    });
  }

  async add(items) {
    if (this.hooks.readOnly || !items.length) return;
    const sessionId = this.onlyHere.checked ? await this.hooks.makeSession() : "";
    this.hooks.show();
    for (const item of items) {
      if (item.file.name.startsWith(".")) continue;
      if (item.file.size > this.hooks.maxBytes) toast(t("documents.large", { name: item.name, size: bytes(item.file.size), limit: bytes(this.hooks.maxBytes) }), { bad: true });
      else this.queue.push({ ...item, sessionId });
    }
    this.pump();
  }

  pump() {
    while (this.sending.size < AT_ONCE && this.queue.length) {
      const { file, name, sessionId } = this.queue.shift();
      const entry = { name, size: file.size, share: 0 };
      const job = upload(file, name, sessionId, (share) => { entry.share = share; this.drawIncoming(); });
      entry.cancel = job.cancel;
      this.sending.set(entry, entry);
      job.done.catch((error) => {
        if (error instanceof TypeError) this.hooks.lost();
        else if (error.kind !== "cancelled") problem(error);
      }).finally(() => { this.sending.delete(entry); this.pump(); this.watch(); });
    }
    this.drawIncoming();
  }

  async samples() {
    await send("POST", "samples");
    this.hooks.show();
    await this.watch();
  }

  async load() {
    const found = await get("documents", { session_id: this.hooks.sessionId() });
    this.documents = found.documents;
    this.uploads = found.uploads;
    this.loaded = true;
    this.drawList();
    this.drawIncoming();
    this.hooks.changed(this.documents);
    if (this.uploads.some((one) => ACTIVE.includes(one.state))) this.watch();
  }

  // Asks again and again while something is being read; one watcher at a time.
  async watch() {
    if (this.watching) return;
    this.watching = true;
    try {
      let done = -1;
      for (;;) {
        this.uploads = (await get("uploads")).uploads;
        const now = this.uploads.filter((one) => !ACTIVE.includes(one.state)).length;
        if (now !== done && done >= 0) await this.load();
        done = now;
        this.drawIncoming();
        if (!this.uploads.some((one) => ACTIVE.includes(one.state))) break;
        await new Promise((resolve) => setTimeout(resolve, 400));
      }
      await this.load();
      this.tell();
    } catch (error) {
      if (error instanceof TypeError) this.hooks.lost();
      else problem(error);
    } finally {
      this.watching = false;
    }
  }

  // What went well is in the list by now: it is said once, and only what did not stays in view.
  tell() {
    const good = this.uploads.filter((one) => GOOD.includes(one.state));
    const bad = this.uploads.filter((one) => one.state === "refused" && !one.locked && this.listed(one));
    if (bad.length) toast(bad.length === 1 ? t("documents.one.refused", { name: bad[0].name }) : t("documents.many.refused", { count: number(bad.length) }), { bad: true });
    const fresh = good.filter((one) => one.state !== "unchanged");
    if (fresh.length) toast(fresh.length === 1 ? t("documents.one.added", { name: fresh[0].name }) : t("documents.many.added", { count: number(fresh.length) }));
    else if (good.length) toast(t("documents.none.added"));
    for (const one of [...good, ...bad]) send("DELETE", `uploads/${one.id}`).catch(() => {});
    this.uploads = this.uploads.filter((one) => !good.includes(one) && !bad.includes(one));
    this.drawIncoming();
  }

  // Whether a document is still being read: then it is shown above, with how far it is.
  arriving(document) {
    return this.uploads.some((one) => ACTIVE.includes(one.state) && one.name.split("/").at(-1) === document.name);
  }

  // The refused document that an upload has become, if it is in the list.
  listed(upload) {
    return this.documents.find((document) => document.status === "refused" && document.name === upload.name.split("/").at(-1));
  }

  drawIncoming() {
    const sending = [...this.sending.values()].map((one) => this.row({ name: one.name, meta: t("documents.sending", { percent: percent(one.share) }), share: one.share, cancel: one.cancel }));
    const queued = this.queue.length ? [this.row({ name: `+ ${number(this.queue.length)}`, meta: t("documents.waiting") })] : [];
    const rows = this.uploads.filter((one) => !GOOD.includes(one.state)).map((one) => this.row({ ...facts(one), name: one.name, share: ACTIVE.includes(one.state) ? one.share : undefined, refused: one.state === "refused", unlock: one.locked && (() => this.unlock(one).catch(problem)), cancel: () => send("DELETE", `uploads/${one.id}`).then(() => this.watch()).catch(problem) }));
    if (!sending.length && !rows.length && !queued.length) return this.incoming.replaceChildren();
    const clear = h("button", { type: "button", text: t("documents.clear"), onclick: () => send("DELETE", "uploads").then(() => this.load()).catch(problem) });
    this.incoming.replaceChildren(h("h2", { class: "panel-title" }, t("documents.uploads"), this.uploads.some((one) => ["refused", "cancelled"].includes(one.state)) ? clear : ""), h("ul", { class: "files" }, ...sending, ...queued, ...rows));
  }

  async unlock(one) {
    const password = await ask({ title: t("documents.unlock"), field: t("documents.password", { name: one.name }), yes: t("documents.unlock"), type: "password" });
    if (password === null) return;
    await send("POST", `uploads/${one.id}/password`, { password });
    await this.watch();
  }

  row({ name, meta, share, cancel, refused, unlock }) {
    return h("li", { class: refused ? "file refused" : "file" }, type(name),
      h("div", { class: "about" }, h("span", { class: "name", text: name, title: name }), share === undefined ? "" : h("progress", { max: "1", value: String(share), "aria-label": name }), h("span", { class: "meta", text: meta }), unlock ? h("button", { type: "button", class: "quiet", text: t("documents.unlock"), onclick: unlock }) : ""),
      cancel ? iconButton("close", t("documents.cancel", { name }), cancel) : "");
  }

  drawList() {
    const locked = this.uploads.filter((one) => one.locked).map((one) => this.listed(one)); // shown above, with a button
    const shown = this.documents.filter((document) => !locked.includes(document) && !(document.status === "partial" && this.arriving(document)));
    const count = shown.length;
    if (!count) return this.list.replaceChildren(h("p", { class: "panel-note", text: t("documents.none") }));
    this.list.replaceChildren(
      h("h2", { class: "panel-title", text: count === 1 ? t("documents.one") : t("documents.listed", { count: number(count) }) }),
      h("ul", { class: "files" }, ...shown.map((document) => this.item(document))));
  }

  item(document) {
    const refused = document.status === "refused";
    const meta = refused ? t("documents.refused", { reason: said(document.reason) }) : t("documents.meta", { size: bytes(document.size_bytes), passages: passages(document.chunk_count), date: day(document.added_at) });
    const more = [document.status === "partial" && t("documents.partial"), document.session_only && t("documents.only")].filter(Boolean);
    const name = refused ? h("span", { class: "name", text: document.name, title: document.name })
      : h("button", { type: "button", class: "name", text: document.name, title: document.name, "aria-label": t("documents.preview", { name: document.name }), onclick: () => this.hooks.preview(document) });
    return h("li", { class: refused ? "file refused" : "file", "data-id": document.id }, type(document.name),
      h("div", { class: "about" }, name, h("span", { class: "meta", text: [meta, ...more].join(" · ") })),
      this.hooks.readOnly || document.removable === false ? "" : iconButton("trash", t("documents.remove", { name: document.name }), () => this.remove(document).catch(problem)));
  }

  async remove(document) {
    if (!(await ask({ title: t("documents.remove.title"), text: t("documents.remove.text", { name: document.name }), yes: t("documents.remove.yes"), danger: true }))) return;
    await send("DELETE", `documents/${document.id}?${new URLSearchParams({ session_id: this.hooks.sessionId() })}`);
    toast(t("documents.removed", { name: document.name }));
    await this.load();
  }
}

const type = (name) => h("span", { class: "type", "aria-hidden": "true", text: /\.(\w{1,4})$/.exec(name)?.[1] ?? "" });

const passages = (count) => count === 1 ? t("documents.passage") : t("documents.passages", { count: number(count) });

function facts(one) {
  if (one.state === "reading") {
    const parts = [t("documents.reading")];
    if (one.chunks_per_s > 0) parts.push(t("documents.rate", { rate: number(one.chunks_per_s) }));
    if (one.remaining_s) parts.push(t("documents.left", { time: seconds(one.remaining_s) }));
    return { meta: parts.join(" · ") };
  }
  if (one.state === "refused") return { meta: t("documents.refused", { reason: said(one.reason) }) };
  return { meta: t(`documents.${one.state}`, { passages: passages(one.chunks) }) };
}

async function inside(entry, path = "") {
  const name = path + entry.name;
  if (entry.isFile) return [{ file: await new Promise((resolve, reject) => entry.file(resolve, reject)), name }];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives at most 100 entries at once
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...(await Promise.all(some.map((one) => inside(one, `${name}/`)))).flat());
  }
  return found;
}
