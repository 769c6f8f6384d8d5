// Elements from code. Text goes in as text nodes: no string ever becomes HTML here.
const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  plus: "M12 5v14M5 12h14", close: "M6 6l12 12M18 6L6 18", menu: "M4 6h16M4 12h16M4 18h10", search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM16.500 16.500L21 21",
  panel: "M4 5h16v14H4zM14.500 5v14", up: "M12 19V5M5.500 11.500L12 5l6.500 6.500", stop: "M8 8h8v8H8z", copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  retry: "M20 11a8 8 0 1 0-.6 4M20 5v6h-6", good: "M7 11v9H4v-9zM7 11l4-7c1.700 0 2.500 1.200 2.200 2.800L12.600 10H19c1.200 0 2 1 1.700 2.200l-1.600 6.300c-.2.9-1 1.500-1.900 1.500H7",
  bad: "M17 13V4h3v9zM17 13l-4 7c-1.700 0-2.500-1.200-2.200-2.800l.6-3.200H5c-1.200 0-2-1-1.700-2.200l1.600-6.300C5.100 4.600 5.900 4 6.800 4H17",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4", undo: "M9 14L4 9l5-5M4 9h10a6 6 0 0 1 0 12h-3", dots: "M6 12h.01M12 12h.01M18 12h.01", trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14", upload: "M12 16V5M7 9l5-5 5 5M5 20h14", file: "M6 3h8l4 4v14H6zM14 3v4h4", sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M4.900 4.900l1.400 1.400M17.700 17.700l1.400 1.400M2 12h2M20 12h2M4.900 19.100l1.400-1.400M17.700 6.300l1.400-1.400",
  swap: "M7 20V5M3.500 8.500L7 5l3.500 3.500M17 4v15M13.500 15.500L17 19l3.500-3.500", keys: "M3 7h18v10H3zM7 11h.01M11 11h.01M15 11h.01M8 14h8", world: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM3 12h18M12 3c2.500 2.500 3.500 5.500 3.500 9S14.500 18.500 12 21c-2.500-2.500-3.500-5.500-3.500-9S9.500 5.500 12 3z",
  out: "M10 4H5v16h5M15 8l4 4-4 4M19 12H9", warn: "M12 4l9 16H3zM12 10v4M12 17h.01", left: "M14 6l-6 6 6 6", right: "M10 6l6 6-6 6", pause: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM10 9v6M14 9v6", clip: "M20 11l-8.500 8.500a5 5 0 0 1-7-7L13 4a3.300 3.300 0 0 1 4.700 4.700L9.200 17a1.700 1.700 0 0 1-2.400-2.400l7.700-7.600",
};

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (value === true) element.setAttribute(name, "");
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "i");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  if (name === "dots") path.setAttribute("stroke-width", "3");
  svg.append(path);
  return svg;
}

export function iconButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

export const find = (selector) => document.querySelector(selector);

export function announce(text) {
  find("#announce").textContent = text;
}
