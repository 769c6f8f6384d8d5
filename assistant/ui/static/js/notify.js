// Toasts, questions and menus.
import { find, h, icon, iconButton } from "./dom.js";
import { t } from "./words.js";

export function toast(text, { bad = false, lasts = bad ? 9000 : 3500 } = {}) {
  const box = find("#toasts");
  if ([...box.children].some((one) => one.textContent === text)) return;
  const close = () => item.remove();
  const item = h("div", { class: bad ? "toast bad" : "toast", role: bad ? "alert" : undefined }, bad && icon("warn"), h("span", { text }), iconButton("close", t("app.dismiss"), close));
  box.append(item);
  while (box.children.length > 3) box.firstChild.remove();
  setTimeout(close, lasts);
}

export function problem(error) {
  toast(error.message, { bad: true });
}

// Resolves to the text (or true) when confirmed, to null when not.
export function ask({ title, text, field, value = "", yes, danger = false, type = "text" }) {
  return new Promise((resolve) => {
    const input = field && h("input", { "aria-label": field, value, maxlength: "200", type, autocomplete: "off" });
    const form = h("form", { method: "dialog" },
      h("h2", { text: title, id: "dialog-title" }),
      text && h("p", { text }),
      input,
      h("div", { class: "buttons" },
        h("button", { type: "button", class: "plain", text: t("app.cancel"), onclick: () => dialog.close() }),
        h("button", { type: "submit", class: danger ? "solid danger" : "solid", text: yes }),
      ),
    );
    const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
    let answer = null;
    form.addEventListener("submit", () => { answer = input ? input.value.trim() : true; });
    dialog.addEventListener("close", () => { dialog.remove(); resolve(answer === "" ? null : answer); });
    document.body.append(dialog);
    dialog.showModal();
    if (input) input.select();
  });
}

// Returns what closes it, what names its button anew, and whether it is still open.
export function show(title, content, { close = t("app.close"), closed = () => {} } = {}) {
  const button = h("button", { type: "button", class: "solid", text: close, onclick: () => dialog.close() });
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" },
    h("h2", { text: title, id: "dialog-title" }), content, h("div", { class: "buttons" }, button));
  dialog.addEventListener("close", () => { dialog.remove(); closed(); });
  document.body.append(dialog);
  dialog.showModal();
  return { close: () => dialog.close(), label: (text) => { button.textContent = text; }, get open() { return dialog.open; } };
}

export function menu(button, items) {
  const box = h("div", { class: "menu", popover: "auto" });
  for (const { name, label, act, danger } of items) {
    box.append(h("button", { type: "button", class: danger ? "danger" : "", onclick: () => { box.hidePopover(); act(); } }, icon(name), h("span", { text: label })));
  }
  box.addEventListener("toggle", (event) => { if (event.newState === "closed") { box.remove(); button.setAttribute("aria-expanded", "false"); } });
  box.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...box.children];
    all[(all.indexOf(document.activeElement) + step + all.length) % all.length].focus();
  });
  button.after(box);
  box.showPopover();
  button.setAttribute("aria-expanded", "true");
  const place = button.getBoundingClientRect(), size = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(place.right - size.width, innerWidth - size.width - 8))}px`;
  box.style.top = `${place.bottom + size.height + 8 < innerHeight ? place.bottom + 4 : Math.max(8, place.top - size.height - 4)}px`;
  box.firstChild.focus();
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no clipboard over plain HTTP: the old way
    const area = h("textarea", { class: "unseen" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  toast(t("chat.copied"), { lasts: 1500 });
}
