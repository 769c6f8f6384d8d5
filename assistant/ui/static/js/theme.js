// Runs before the first paint, so that a dark page never flashes white.
(() => {
  const chosen = (() => { try { return localStorage.getItem("thimble-theme"); } catch { return null; } })();
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
