// The words of the chosen language, and numbers, sizes and times the way it writes them.
let words = {};
let language = "en";

export function setWords(table, code) {
  words = table;
  language = navigator.language?.split("-")[0] === code ? navigator.language : code; // en-GB has its own dates
}

export function t(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

export const number = (value, digits = 0) => new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: 0 }).format(value);
export const percent = (share) => new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 0 }).format(share);

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = count, unit = 0;
  while (Math.abs(value) >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${number(value, unit >= 3 || (unit === 2 && value < 10) ? 1 : 0)} ${units[unit]}`;
}

export function seconds(value) {
  if (value < 10) return `${number(Math.max(value, value > 0 ? 0.1 : 0), 1)} s`;
  if (value < 60) return `${number(value)} s`;
  const minutes = Math.floor(value / 60);
  return minutes < 60 ? `${minutes} min ${number(value % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function day(stamp) {
  const date = new Date(stamp * 1000);
  const sameYear = date.getFullYear() === new Date().getFullYear();
  return new Intl.DateTimeFormat(language, { day: "numeric", month: "short", year: sameYear ? undefined : "numeric" }).format(date);
}

// Where a quote stands in its document: the page, row or line, and the heading.
export function placed({ page, row, line, heading }) {
  const [kind, value] = Object.entries({ page, row, line }).find(([, one]) => one !== null && one !== undefined) ?? [];
  return [kind && t(`place.${kind}`, { number: value }), heading].filter(Boolean);
}

export function age(stamp) {
  const start = new Date();
  start.setHours(0, 0, 0, 0);
  const then = stamp * 1000;
  if (then >= start.getTime()) return "today";
  return then >= start.getTime() - 86_400_000 ? "yesterday" : "earlier";
}
