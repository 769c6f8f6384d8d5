// Puts the page together: columns, keys, the address, and what happens when the connection goes and comes back.
import { get } from "./api.js";
import { Chat } from "./chat.js";
import { Documents } from "./documents.js";
import { find, h, icon, iconButton } from "./dom.js";
import { menu, problem, show, toast } from "./notify.js";
import { download, Sessions } from "./sessions.js";
import { Source } from "./source.js";
import { setMessages } from "./said.js";
import { setWords, t } from "./words.js";

const app = find("#app"), panel = find("#panel"), sidebar = find("#sidebar"), scrim = find("#scrim"), question = find("#question");
const narrow = matchMedia("(max-width: 820px)"), medium = matchMedia("(max-width: 1180px)");
const kept = { get: (name) => { try { return localStorage.getItem(name); } catch { return null; } }, set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* private window */ } } };
let chat, sessions, documents, source, lost = false;

const panelOpen = () => !app.classList.contains("no-panel");
const sidebarOpen = () => !app.classList.contains("no-sidebar");

function setPanel(open, { focus = false } = {}) {
  app.classList.toggle("no-panel", !open);
  find("#toggle-panel").setAttribute("aria-expanded", String(open));
  if (!medium.matches) kept.set("thimble-panel", open ? "open" : "shut");
  drawers();
  if (open && focus && medium.matches) find("#close-panel").focus();
  if (!open && focus) find("#toggle-panel").focus();
}

function setSidebar(open, { focus = false } = {}) {
  app.classList.toggle("no-sidebar", !open);
  find("#open-sidebar").setAttribute("aria-expanded", String(open));
  drawers();
  if (focus && narrow.matches) (open ? find("#close-sidebar") : find("#open-sidebar")).focus();
}

// On a narrow screen the columns lie over the page, which then takes no clicks and no focus.
function drawers() {
  const left = narrow.matches && sidebarOpen(), right = medium.matches && panelOpen();
  scrim.hidden = !(left || right);
  find("#main").inert = left || right;
  sidebar.inert = right;
  panel.inert = left;
}

function tab(name) {
  for (const one of ["documents", "source"]) {
    const on = one === name, button = find(`#tab-${one}`);
    button.setAttribute("aria-selected", String(on));
    button.tabIndex = on ? 0 : -1;
    find(`#${one}`).hidden = !on;
  }
}

function openPanel(name) {
  tab(name);
  setPanel(true, { focus: true });
}

function opened(session) {
  const title = session?.title ?? t("sessions.new");
  find("#title").textContent = title;
  document.title = session ? `${title} – Thimble` : "Thimble";
  find("#bar-end").replaceChildren(session ? iconButton("download", t("sessions.export.md"), () => download(session.id, "md"), { id: "export" }) : "");
  sessions.select();
}

async function goTo(id, options) {
  if (narrow.matches) setSidebar(false);
  try {
    await chat.open(id, options);
    source.clear();
    documents.load().catch((reason) => chat.failed(reason));
    if (!medium.matches) question.focus();
  } catch (error) {
    if (error instanceof TypeError) return connectionLost();
    toast(error.status === 404 ? t("sessions.gone") : error.message, { bad: true });
    await chat.open("", { push: false });
    history.replaceState({}, "", "/");
    documents.load().catch((reason) => chat.failed(reason));
  }
}

async function connectionLost() {
  if (lost) return;
  lost = true;
  find("#connection").hidden = false;
  for (let wait = 700; lost; wait = Math.min(wait * 1.3, 5000)) {
    await new Promise((resolve) => setTimeout(resolve, wait));
    try {
      await get("health");
      lost = false;
    } catch { /* not yet */ }
  }
  find("#connection").hidden = true;
  toast(t("app.online"));
  await goTo(chat.sessionId, { push: false });
  sessions.load().catch(problem);
}

function composer() {
  const sendButton = find("#send");
  const fit = () => { // one line or as many as it has; measured only when the text may have changed its height
    question.style.height = "auto";
    question.style.height = `${Math.min(question.scrollHeight, innerHeight * 0.34)}px`;
    sendButton.disabled = !question.value.trim();
  };
  const submit = () => {
    const text = question.value.trim();
    if (!text || chat.running) return;
    question.value = "";
    fit();
    chat.ask(text).catch((error) => chat.failed(error));
  };
  question.addEventListener("input", fit);
  question.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
  });
  find("#composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  find("#stop").addEventListener("click", () => { chat.stop(); question.focus(); });
  fit();
}

function keys() {
  const typing = () => ["INPUT", "TEXTAREA", "SELECT"].includes(document.activeElement?.tagName);
  addEventListener("keydown", (event) => {
    if (document.querySelector("dialog[open]") || event.isComposing) return;
    if (event.key === "Escape") {
      if (chat.running) chat.stop();
      else if (medium.matches && panelOpen()) setPanel(false, { focus: true });
      else if (narrow.matches && sidebarOpen()) setSidebar(false, { focus: true });
      return;
    }
    if (event.altKey && event.code === "KeyN") { event.preventDefault(); goTo(""); return; }
    if (event.altKey && event.code === "KeyP") { event.preventDefault(); setPanel(!panelOpen(), { focus: true }); return; }
    if (typing() || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); setSidebar(true); find("#session-search").focus(); }
    else if (event.key === "?") shortcuts();
    else if (event.key === "i") { event.preventDefault(); question.focus(); }
  });
}

function shortcuts() {
  const rows = [["Enter", "send"], ["Shift+Enter", "newline"], ["Esc", "stop"], ["/", "search"], ["Alt+N", "new"], ["i", "write"], ["Alt+P", "panel"], ["?", "help"]];
  show(t("app.shortcuts"), h("dl", {}, ...rows.flatMap(([key, what]) => [h("dt", {}, h("kbd", { text: key })), h("dd", { text: t(`keys.${what}`) })])));
}

function foot(start) {
  const importer = h("input", { type: "file", accept: ".json,.jsonl,.md,.zip,.gz", class: "unseen", tabindex: "-1", "aria-hidden": "true", id: "pick-import" });
  importer.addEventListener("change", () => { if (importer.files[0]) sessions.import(importer.files[0]).catch((error) => chat.failed(error)); importer.value = ""; });
  const languages = (event) => menu(event.currentTarget, Object.entries(start.languages).map(([code, name]) => ({ name: "world", label: name, act: () => {
    document.cookie = `thimble-language=${code}; path=/; max-age=31536000; samesite=lax`;
    location.reload();
  } })));
  const who = { local: t("app.local"), public: t("app.visitor"), login: start.user }[start.mode];
  find("#side-foot").replaceChildren(
    h("span", { class: "who", text: who, title: who }),
    start.mode === "public" ? "" : iconButton("swap", t("sessions.transfer"), (event) => menu(event.currentTarget, [
      { name: "upload", label: t("sessions.import"), act: () => importer.click() },
      { name: "download", label: t("sessions.export.all"), act: () => download("", "jsonl") },
    ]), { "aria-haspopup": "menu" }), importer,
    iconButton("keys", t("app.shortcuts"), shortcuts),
    iconButton("world", t("app.language"), languages, { "aria-haspopup": "menu" }),
    iconButton("sun", t("app.theme"), () => {
      const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
      document.documentElement.dataset.theme = theme;
      kept.set("thimble-theme", theme);
    }),
    start.mode === "login" ? h("form", { method: "post", action: "/logout" }, h("button", { type: "submit", class: "icon", "aria-label": t("app.logout"), title: t("app.logout") }, icon("out"))) : "");
}

function frame() {
  for (const [id, name] of [["open-sidebar", "menu"], ["toggle-panel", "panel"], ["close-panel", "close"], ["close-sidebar", "close"], ["attach", "clip"], ["send", "up"], ["stop", "stop"]]) find(`#${id}`).prepend(icon(name));
  find("#new-chat").prepend(icon("plus"));
  find(".search").prepend(icon("search"));
  find("#new-chat").addEventListener("click", () => goTo(""));
  find(".brand").addEventListener("click", (event) => { event.preventDefault(); goTo(""); });
  find("#open-sidebar").addEventListener("click", () => setSidebar(!sidebarOpen(), { focus: true }));
  find("#close-sidebar").addEventListener("click", () => setSidebar(false, { focus: true }));
  find("#toggle-panel").addEventListener("click", () => setPanel(!panelOpen(), { focus: true }));
  find("#close-panel").addEventListener("click", () => setPanel(false, { focus: true }));
  scrim.addEventListener("click", () => { if (medium.matches) setPanel(false); if (narrow.matches) setSidebar(false); });
  for (const [name, other] of [["documents", "source"], ["source", "documents"]]) {
    find(`#tab-${name}`).addEventListener("click", () => tab(name));
    find(`#tab-${name}`).addEventListener("keydown", (event) => {
      if (event.key === "ArrowLeft" || event.key === "ArrowRight") { tab(other); find(`#tab-${other}`).focus(); }
    });
  }
  const resized = () => { setPanel(!medium.matches && kept.get("thimble-panel") !== "shut"); setSidebar(!narrow.matches); };
  narrow.addEventListener("change", resized);
  medium.addEventListener("change", resized);
  resized();
}

async function begin() {
  const start = await get("start");
  setWords(start.words, start.language);
  setMessages(start.messages);
  frame();
  source = new Source();
  sessions = new Sessions({
    open: (id) => goTo(id),
    current: () => chat?.sessionId ?? "",
    renamed: (id, title) => { if (id === chat.sessionId) { chat.session.title = title; opened(chat.session); } },
    deleted: (id) => { if (id === chat.sessionId) goTo(""); },
  });
  chat = new Chat(start, {
    opened,
    changed: () => sessions.load().catch((error) => chat.failed(error)),
    openQuote: (quote, turn) => { openPanel("source"); source.open(quote, turn).catch((error) => chat.failed(error)); },
    lost: connectionLost,
  });
  const welcome = (list) => chat.welcome(list, { addFiles: () => documents.files.click(), addSamples: () => documents.samples().catch(problem) });
  documents = new Documents({
    readOnly: start.read_only,
    maxBytes: start.max_file_bytes,
    sessionId: () => chat.sessionId,
    makeSession: () => chat.make(),
    show: () => openPanel("documents"),
    preview: (document) => { openPanel("source"); source.preview(document).catch((error) => chat.failed(error)); },
    changed: (list) => { kept.set("thimble-documents", list.length ? "some" : "none"); welcome(list); },
    lost: connectionLost,
  });
  welcome(kept.get("thimble-documents") === "some" ? null : []); // as it was last time, until the list is there
  if (start.read_only) find("#attach").hidden = true;
  find("#attach").addEventListener("click", () => documents.files.click());
  foot(start);
  composer();
  keys();
  const wanted = () => new URLSearchParams(location.search).get("s") ?? "";
  addEventListener("popstate", () => goTo(wanted(), { push: false }));
  document.addEventListener("visibilitychange", () => { // another tab may have gone on with this chat
    if (document.visibilityState !== "visible" || chat.running || !chat.session || lost) return;
    get(`sessions/${encodeURIComponent(chat.sessionId)}`, { limit: 1 })
      .then(({ session }) => { if (session.version !== chat.session.version && !chat.running) return chat.refresh(); })
      .catch(() => {});
  });
  await Promise.all([sessions.load(), goTo(wanted(), { push: false })]);
  document.body.dataset.ready = "true";
}

begin().catch((error) => {
  find("#connection").hidden = false;
  find("#connection").textContent = error.message;
});
